"""Attention within the windows of a map, with a learned bias for every offset, as in Swin Transformers.

Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., ICCV 2021.
Deviation from the authors' code: any map size. A map that its windows do not divide is filled up on the right and at
the bottom, and nothing attends to the filling; a map that is no larger than a window is not rolled, whatever its image.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, F = 3*C, or 2*C where queries are given, H W map, Y X windows
#         down and across, P = Y*X, T = window^2 positions of a window, Q those that query, O = (2*window - 1)^2 offsets
#         between two of them, A = T*T pairs

from collections.abc import Callable
from functools import lru_cache, partial
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.ops._window_cuts import windows_of

APART = -100.0  # added to the logit between two positions that must not attend to each other; exp(-100) is 4e-44

# Queries and keys, each (B, P, N, T, D), to those whose products over sqrt(D) are the logits, queries perhaps fewer of
# them, (B, P, N, Q, D); and to what is added to the logits: (N, Q, T), (B, P, N, Q, T), or nothing.
Scoring = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


def window_attention(
    map_BHWF: Tensor,
    scoring: Scoring,
    mask_PTT: Tensor | None = None,
    *,
    heads: int,
    window: int,
    shift: int = 0,
    packed: bool = False,
    grid: bool = False,
    queries_BHWC: Tensor | None = None,
) -> Tensor:
    """Attended values, (B, H, W, C), head-major; of a smaller map where queries are fewer than positions.

    Args:
        map_BHWF: queries, keys and values of a map that is already rolled: all of q head by head, of k, of v. Where it
            is `packed`, channel i*3N+m is channel i of map m: all q heads, all k heads, all v heads.
        scoring: makes the logits of queries and keys; `by_offset` is Swin's.
        mask_PTT: added to the logits of each window, all row by row; without, that of `window_mask`.
        shift: by how much the map is rolled, where it is.
        grid: whether a window is no neighbourhood, but positions spread evenly over the whole map, which they divide.
        queries_BHWC: queries, head by head, where the map has only keys and values.
    """
    height, width = map_BHWF.shape[1:3]
    if mask_PTT is None and not grid:
        mask_PTT = window_mask(height, width, window=window, shift=shift, like=map_BHWF)
    cut = partial(windows_of, heads=heads, window=window, grid=grid)
    if queries_BHWC is None:
        q_BPNTD, k_BPNTD, v_BPNTD = cut(_filled_up(map_BHWF, window), parts=3, packed=packed)
    else:
        k_BPNTD, v_BPNTD = cut(_filled_up(map_BHWF, window), parts=2, packed=packed)
        (q_BPNTD,) = cut(_filled_up(queries_BHWC, window), parts=1, packed=False)
    q_BPNQD, k_BPNTD, bias = scoring(q_BPNTD, k_BPNTD)
    lanes, added = _lanes(bias, mask_PTT, q_BPNQD)
    q, k, v = (each.flatten(*lanes) for each in (q_BPNQD, k_BPNTD, v_BPNTD))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
    side = isqrt(q_BPNQD.shape[3])  # of the queries of a window
    stride = window // side
    return _joined(attended.view(q_BPNQD.shape), -(-height // stride), -(-width // stride), side, grid=grid)


def by_offset(table_ON: Tensor, window: int) -> Scoring:
    """Products, and what a table holds for the offset of two positions.

    Row (dy + window - 1) * (2 * window - 1) + dx + window - 1 is added to a logit of each head, dy and dx being the
    query's row and column minus the key's.
    """
    return lambda q_BPNTD, k_BPNTD: (q_BPNTD, k_BPNTD, _bias(table_ON, window))


def rolled_by(height: int, width: int, *, window: int, shift: int) -> int:
    """By how much a block of that shift rolls a map: not at all one with a side no larger than the window."""
    return shift if min(height, width) > window else 0


def roll(map_BHWC: Tensor, by: int) -> Tensor:
    """The map rolled so that its position (by, by) comes first; by -by, back again."""
    return torch.roll(map_BHWC, (-by, -by), (1, 2)) if by else map_BHWC


def window_mask(height: int, width: int, *, window: int, shift: int, like: Tensor) -> Tensor | None:
    """APART between positions of a window that are no neighbours in the image, else 0, (P, T, T); None where all are.

    What was rolled in from the other edge is apart from what was there, and the filling from both.
    """
    by = rolled_by(height, width, window=window, shift=shift)
    if not by and height % window == 0 and width % window == 0:
        return None
    return (_mask if _is_real(like) else _mask.__wrapped__)(height, width, window, by, like.dtype, like.device)


def _is_real(tensor: Tensor) -> bool:
    """Whether what is made for this tensor may be cached: a fake one would outlive its mode or its trace."""
    return type(tensor) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()


@lru_cache(maxsize=16)  # 0.6 MB for a 56 x 56 map in float32; a Swin needs 3 at once
@torch.inference_mode(mode=False)  # a tensor made in inference mode could not be saved for a later backward
def _mask(height: int, width: int, window: int, by: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    y_Y, x_X = _regions(height, window, by), _regions(width, window, by)
    region_YX = 3 * y_Y[:, None] + x_X
    cut_YTXT = region_YX.view(len(y_Y) // window, window, len(x_X) // window, window)
    region_PT = cut_YTXT.transpose(1, 2).reshape(-1, window**2)
    apart_PTT = region_PT.unsqueeze(1) != region_PT.unsqueeze(2)
    return torch.zeros(apart_PTT.shape, dtype=dtype, device="cpu").masked_fill_(apart_PTT, APART).to(device)


def _regions(side: int, window: int, by: int) -> Tensor:
    """Of each row or column: 0 where it was, 1 rolled in from the other edge, 2 filling."""
    filled = side + -side % window
    region = torch.zeros(filled, dtype=torch.long, device="cpu")
    region[side - by :] = 1
    region[side:] = 2
    return region


def _lanes(bias: Tensor | None, mask_PTT: Tensor | None, q_BPNQD: Tensor) -> tuple[tuple[int, int], Tensor | None]:
    """The two dimensions that attention takes as its heads or as its batch, and what is added to its logits."""
    if mask_PTT is not None:
        mask_P1TT = mask_PTT.to(q_BPNQD.dtype).unsqueeze(1)
        bias = mask_P1TT if bias is None else mask_P1TT + bias.to(q_BPNQD.dtype)
    if bias is None:
        return (0, 1), None
    bias = bias.to(q_BPNQD.dtype)
    if bias.ndim == 3:  # windows are a batch to a bias that all of them have
        return (0, 1), bias.unsqueeze(0)
    if bias.ndim == 4:  # heads of windows, each with its own bias
        return (1, 2), bias.expand(-1, q_BPNQD.shape[2], -1, -1).flatten(0, 1).unsqueeze(0)
    return (0, 1), bias.flatten(0, 1)


def _bias(table_ON: Tensor, window: int) -> Tensor:
    """(N, T, T), query before key."""
    offset_TT = (_offsets if _is_real(table_ON) else _offsets.__wrapped__)(window, table_ON.device)
    row_AN = table_ON.index_select(0, offset_TT.flatten())
    return torch.unflatten(row_AN, 0, offset_TT.shape).permute(2, 0, 1)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _offsets(window: int, device: torch.device) -> Tensor:
    """The row of the table for every query and key."""
    side = torch.arange(window, device="cpu")
    y_T, x_T = side.repeat_interleave(window), side.repeat(window)
    dy_TT, dx_TT = (each[:, None] - each + window - 1 for each in (y_T, x_T))
    return (dy_TT * (2 * window - 1) + dx_TT).to(device)


def _filled_up(map_BHWF: Tensor, window: int) -> Tensor:
    """The map with zeros that fill its last windows."""
    height, width = map_BHWF.shape[1:3]
    if height % window == 0 and width % window == 0:
        return map_BHWF
    return F.pad(map_BHWF, (0, 0, 0, -width % window, 0, -height % window))


def _joined(attended_BPNTD: Tensor, height: int, width: int, window: int, *, grid: bool) -> Tensor:
    """The windows put together and cropped, (B, H, W, C)."""
    cut = torch.unflatten(torch.unflatten(attended_BPNTD, 3, (window, window)), 1, (-(-height // window), -1))
    order = (0, 4, 1, 5, 2, 3, 6) if grid else (0, 1, 4, 2, 5, 3, 6)
    filled = cut.permute(order).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return filled[:, :height, :width]
