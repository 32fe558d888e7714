"""What each layer of a model computes, and what it keeps for the backward pass, noted while the model runs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acmix.model import trunk_of
from acmix.planning.hollow import storage_bytes, storage_key

_aten = torch.ops.aten
_NORMS = {
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit,
    _aten._batch_norm_with_update,
    _aten.native_layer_norm,
    _aten.native_group_norm,
}
_NORM_MACS = 2  # an output element; the rule of the published figures


class LayerMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Multiply-adds, and bytes kept for the backward pass, of the forward passes within: in all, and by layer.

    A module with a method `macs(x_shape)` declares its own multiply-adds, and nothing within it is counted. Others
    are counted by their operations: convolutions, matrix products, attention, and 2 an output element of a norm.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], lasting: Iterable[Tensor]) -> None:
        """`layers` by their names in the backbone; `lasting` are kept anyway and not counted."""
        trunk = trunk_of(model)
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.macs = 0
        self.layer_macs: Counter[str] = Counter()
        self.input_shapes: dict[str, torch.Size] = {}
        self._kept_bytes: dict[int, int] = {}  # by storage
        self._layer_kept_bytes: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._lasting = {storage_key(each) for each in lasting}
        self._layers: Mapping[nn.Module, str] = {trunk.get_submodule(name): name for name in layers}
        self._places: list[tuple[str | None, bool]] = [(None, False)]  # innermost last: layer, whether it declares
        for module in model.modules():
            if module in self._layers or hasattr(module, "macs"):
                module.register_forward_pre_hook(self._enter, with_kwargs=True)
                module.register_forward_hook(self._leave)

    @property
    def kept_bytes(self) -> int:
        """Of all distinct storages that the forward passes keep."""
        return sum(self._kept_bytes.values())

    def layer_kept_bytes(self, layer: str) -> int:
        """Of those that the layer's own operations keep, whoever else keeps them too."""
        return sum(self._layer_kept_bytes[layer].values())

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is saved for the backward pass: the first of the two saved_tensors_hooks."""
        key, layer = storage_key(tensor), self._places[-1][0]
        if key not in self._lasting:
            size_bytes = storage_bytes(tensor)
            self._kept_bytes[key] = size_bytes
            if layer is not None:
                self._layer_kept_bytes[layer][key] = size_bytes
        return tensor

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if not self._places[-1][1]:
            self._count(_macs(operation, args, kwargs or {}, result))
        return result

    def _count(self, macs: int) -> None:
        layer = self._places[-1][0]
        self.macs += macs
        if layer is not None:
            self.layer_macs[layer] += macs

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape = next((each.shape for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), torch.Size())
        layer, declared = self._places[-1]
        if layer is None and module in self._layers:
            layer = self._layers[module]
            self.input_shapes[layer] = shape
        macs = None if declared else _declared_macs(module, shape)
        self._places.append((layer, declared or macs is not None))
        self._count(macs or 0)

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._places.pop()


def _declared_macs(module: nn.Module, x_shape: torch.Size) -> int | None:
    declare = getattr(module, "macs", None)
    if not callable(declare):
        return None
    try:
        return int(declare(x_shape))
    except NotImplementedError:
        return None


def _macs(operation: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiply-adds of one operation."""
    kind = operation.overloadpacket
    if kind in _NORMS:
        return _NORM_MACS * int(result[0].numel())
    if kind is _aten._scaled_dot_product_flash_attention_for_cpu:  # torch's own table leaves it out
        query, key, value = args[:3]
        return int(query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    if kind in flop_registry:
        return int(flop_registry[kind](*args, **kwargs, out_val=result)) // 2
    return 0
