"""Operators of our own in torch's dispatcher: one node each to autograd, torch.compile and torch.export.

torch.library.custom_op would do as well, but the first call of what it makes imports all of torch's compiler, which
takes seconds.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

# torch leaves it untyped; its operators are there as long as it is
_LIBRARY: Any = torch.library.Library("acmix", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(function: Callable[..., Any]) -> Any:
    """acmix::<name of the function>, for any device, computed in its own precision.

    Under autocast its matrix products would round what they add up. The function's annotations make its schema; it
    changes none of its inputs, and its outputs are none of them.
    """

    @wraps(function)
    def exact(*inputs: Any) -> Any:
        first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        with torch.autocast(first.device.type, enabled=False):
            return function(*inputs)

    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, exact, "CompositeExplicitAutograd")
    return getattr(torch.ops.acmix, name).default


def tell_shapes(made: Any, fake: Callable[..., Any]) -> None:
    """`fake` makes outputs of the right shape, dtype and strides without looking at numbers."""
    torch.library.register_fake(made, fake, lib=_LIBRARY)


def differentiate(
    made: Any, backward: Callable[..., Any], keep: Callable[[Any, tuple[Any, ...], Any], None] | None = None
) -> None:
    """`keep(ctx, inputs, output)` saves what `backward(ctx, *grads)` needs."""
    torch.library.register_autograd(made, backward, setup_context=keep, lib=_LIBRARY)


def floats_of(tensor: Tensor) -> torch.dtype:
    """The precision that sums are taken in: float32 for the halves."""
    return torch.promote_types(tensor.dtype, torch.float32)
