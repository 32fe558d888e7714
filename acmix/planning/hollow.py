"""Tensors without memory that say they lie on the CPU, and the count of what they would take there.

Inside each is a meta tensor. What looks at the device, such as autocast and the choice of an attention kernel, decides
as on a CPU; a meta tensor would have it choose otherwise or not at all. torch's fake tensors do all this and more, and
took 2.2 s in place of 0.9 for a ResNet-50, plain and swapped, of a batch size not seen before.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_META, _CPU = torch.device("meta"), torch.device("cpu")


class Hollow(Tensor):
    """Shape, dtype and autograd of a tensor. Operations on it need a HollowMode."""

    inside: Tensor  # on the meta device; views share its storage

    @staticmethod
    def __new__(cls, inside: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=_CPU,
        )
        made.inside = inside
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch documents it

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # torch declares an instance method
        raise TypeError(f"{operation} on hollow tensors needs a HollowMode")


class HollowMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Within, what is made is hollow, and its storage counts until nothing refers to it any more.

    Meta tensors become hollow in any operation. A constant written in numbers is real until it meets a hollow tensor,
    so that it can be read.
    """

    def __init__(self, lasting: Iterable[Tensor] = ()) -> None:
        """`lasting` hollow tensors do not count; the caller keeps them alive."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.now_bytes = 0
        self.most_bytes = 0
        self._known: dict[int, Any] = {storage_key(each): None for each in lasting}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        if tensors and not any(isinstance(each, Hollow) or each.is_meta for each in tensors):
            return operation(*args, **kwargs)
        met = {id(each.inside): each for each in tensors if isinstance(each, Hollow)}
        inside_kwargs = {name: _inside(value) for name, value in kwargs.items()}
        if not tensors and _takes_device(operation):
            inside_kwargs["device"] = _META
        inside_args = [_inside(each) for each in args]
        result = self._hollow(_as_on_cpu(operation, inside_args, operation(*inside_args, **inside_kwargs)), met)
        self.most_bytes = max(self.most_bytes, self.now_bytes)
        return result

    def _hollow(self, result: Any, met: Mapping[int, Hollow]) -> Any:
        """What an operation gave, made hollow; what it changed in place is the same object as before."""
        if isinstance(result, tuple | list):
            return type(result)(self._hollow(each, met) for each in result)
        if not isinstance(result, Tensor):
            return result
        if id(result) in met:
            return met[id(result)]
        self._count(result)
        return Hollow(result)

    def _count(self, inside: Tensor) -> None:
        storage = inside.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now_bytes -= size_bytes
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now_bytes += size_bytes


def storage_key(tensor: Tensor) -> int:
    """The same for tensors that share their memory, as long as that is there."""
    return int(_storage(tensor)._cdata)


def storage_bytes(tensor: Tensor) -> int:
    """Of the memory that the tensor would have, alone or with others."""
    return _storage(tensor).nbytes()


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.inside if isinstance(tensor, Hollow) else tensor).untyped_storage()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _inside(value: Any) -> Any:
    """An argument as the operation takes it on the meta device."""
    if isinstance(value, Hollow):
        return value.inside
    if isinstance(value, Tensor):
        return value.to(_META)
    if isinstance(value, torch.device):
        return _META
    return type(value)(map(_inside, value)) if type(value) in (tuple, list) else value


def _as_on_cpu(operation: Any, args: Sequence[Any], result: Any) -> Any:
    """A convolution with its channels innermost in memory, where a CPU has them so: the meta device never does."""
    if operation.overloadpacket is _aten.convolution and any(map(_is_channels_last, args[:2])):
        return _channels_last(result)
    if operation.overloadpacket is _aten.convolution_backward and any(map(_is_channels_last, args[:3])):
        grad_input, *others = result
        return (grad_input if grad_input is None else _channels_last(grad_input), *others)
    return result


def _channels_last(map_BCHW: Tensor) -> Tensor:
    return map_BCHW.contiguous(memory_format=torch.channels_last)


def _is_channels_last(map_BCHW: Tensor) -> bool:
    """With only one channel or position it is both, and counts as not."""
    return (
        map_BCHW.ndim == 4
        and not map_BCHW.is_contiguous()
        and map_BCHW.is_contiguous(memory_format=torch.channels_last)
    )


@cache
def _takes_device(operation: Any) -> bool:
    return any(argument.name == "device" for argument in operation._schema.arguments)
