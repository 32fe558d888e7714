"""Attention of every position over a window of the map around it: one function in several forms.

Source: paper, section 3.2, with the reflected borders of the authors' code.
Deviation from the authors' code: nothing is padded or unfolded. Reflection only repeats real keys, so a softmax over
the padded window equals one over the real keys in reach, each with log(how often it is repeated) added to its logit.
"""

# Shapes: B batch, N heads, D channels a head, F = D*3N packed channels, H W map, Y X map of queries,
#         J window positions

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from acmix.errors import OptionInvalid
from acmix.ops import _cpu_form, triton_local_attention
from acmix.ops._cpu_form import cpu_form, packed_cpu_form
from acmix.ops._tile_form import tile_form

Form = Literal["auto", "triton", "cpu", "tile", "reference"]

_form: Form = "auto"


def local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Attended values, (B, N, D, Y, X), with logits scaled by D^-1/2.

    Query (y, x) stands at (stride*y, stride*x) of the map, so Y = ceil(H / stride). Its neighbours are `dilation`
    apart; those outside are reflected into the map, again and again where the map is smaller than the window.
    The form that suits the device computes it, unless `using` names another.
    """
    form = _chosen(q_BNDYX)
    if form == "tile" and _form == "auto" and _runs_kernels(q_BNDYX, k_BNDHW, v_BNDHW):
        form = "triton"
    return _FORMS[form](q_BNDYX, k_BNDHW, v_BNDHW, window=window, stride=stride, dilation=dilation)


def packed_attention(
    features_BFHW: Tensor, position_DHW: Tensor, *, heads: int, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The same of packed maps, (B, N, D, Y, X), the position of each key subtracted from it.

    Channel i*3N+m of F is channel i of map m: all q heads, then all k heads, then all v heads.
    """
    geometry = {"window": window, "stride": stride, "dilation": dilation}
    if _chosen(features_BFHW) == "cpu":
        return packed_cpu_form(features_BFHW, position_DHW, heads=heads, **geometry)
    maps_BD3NHW = torch.unflatten(features_BFHW, 1, (-1, 3, heads))
    q_BNDHW, k_BNDHW, v_BNDHW = maps_BD3NHW.permute(2, 0, 3, 1, 4, 5).unbind()
    q_BNDYX, k_BNDHW = q_BNDHW[..., ::stride, ::stride], k_BNDHW - position_DHW.to(k_BNDHW.dtype)
    return local_attention(q_BNDYX, k_BNDHW, v_BNDHW, **geometry)


@contextmanager
def using(form: Form) -> Iterator[None]:
    """Within, every local attention is computed in that form, in all threads.

    `triton`: kernels of our own, on CUDA devices. `cpu`: tile after tile, on CPUs. `tile`: all tiles at once, anywhere.
    `reference`: the slow definition.
    `auto`: what suits the device. OptionInvalid for any other name.
    """
    global _form  # noqa: PLW0603  # a compiled model guards on it; a context variable would break its graph
    if form != "auto" and form not in _FORMS:
        raise OptionInvalid(f"there is no form {form!r} of local attention; auto, {', '.join(_FORMS)} are")
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def _chosen(maps: Tensor) -> Form:
    if _form != "auto":
        return _form
    if torch.compiler.is_exporting():  # an exported program holds torch's own operations alone
        return "tile"
    return "cpu" if _cpu_form.supported(maps) else "tile"


def _runs_kernels(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor) -> bool:
    return (
        q_BNDYX.device.type == "cuda"
        and not torch.compiler.is_exporting()
        and triton_local_attention.supported(q_BNDYX, k_BNDHW, v_BNDHW)
    )


def reference_local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The same by definition: pad by reflection, copy every neighbour out, softmax over them."""
    k_BNDJYX = _unfolded(k_BNDHW, window, stride, dilation)
    v_BNDJYX = _unfolded(v_BNDHW, window, stride, dilation)
    logits_BNJYX = (q_BNDYX.unsqueeze(3) * k_BNDJYX).sum(2) / math.sqrt(q_BNDYX.shape[2])
    weights_BNJYX = logits_BNJYX.softmax(2)
    return (weights_BNJYX.unsqueeze(2) * v_BNDJYX).sum(3)


_FORMS: Mapping[str, Callable[..., Tensor]] = {
    "triton": triton_local_attention.triton_local_attention,
    "cpu": cpu_form,
    "tile": tile_form,
    "reference": reference_local_attention,
}


def _unfolded(map_BNDHW: Tensor, window: int, stride: int, dilation: int) -> Tensor:
    """Every neighbour of every query, (B, N, D, J, Y, X)."""
    height, width = map_BNDHW.shape[-2:]
    reach = dilation * (window - 1) // 2
    rows = torch.tensor([_bounced(y, height) for y in range(-reach, height + reach)], device=map_BNDHW.device)
    columns = torch.tensor([_bounced(x, width) for x in range(-reach, width + reach)], device=map_BNDHW.device)
    padded = map_BNDHW.index_select(3, rows).index_select(4, columns)
    starts: Iterator[tuple[int, int]] = product(range(0, 2 * reach + 1, dilation), repeat=2)  # type: ignore[assignment]  # repeat=2 makes pairs
    return torch.stack([padded[..., y : y + height : stride, x : x + width : stride] for y, x in starts], dim=3)


def _bounced(position: int, side: int) -> int:
    """A position outside the map, reflected at its borders until it lies inside."""
    if side == 1:
        return 0
    while not 0 <= position < side:
        position = -position if position < 0 else 2 * (side - 1) - position
    return position
