"""Attention of every position over a window of the map around it.

Source: paper, section 3.2, with the reflected borders of the authors' code.
Deviation from the authors' code: nothing is padded or unfolded. Reflection only repeats real keys, so a softmax over
the padded window equals one over the real keys in reach, each with log(how often it is repeated) added to its logit.
The map is cut into tiles of queries; each tile attends to the rectangle of keys that its windows touch, its halo.
"""

# Shapes: B batch, N heads, L = B*N, D channels a head, H W map, P = H*W, Y X map of queries,
#         T tiles, Q queries a tile, K keys of a tile's halo, J window positions

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_SIDE = 7
DENSE_POSITIONS = 200  # maps up to this size attend to all their keys at once: gathering halos would cost more


def local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Attended values, (B, N, D, Y, X), with logits scaled by D^-1/2.

    Query (y, x) stands at (stride*y, stride*x) of the map, so Y = ceil(H / stride). Its neighbours are `dilation`
    apart; those outside are reflected into the map, again and again where the map is smaller than the window.
    """
    # a fake tensor in the cache would outlive its mode; the plain class is what real runs have
    tiling_of = _tiling if type(q_BNDYX) is Tensor else _tiling.__wrapped__
    tiling = tiling_of(*k_BNDHW.shape[-2:], window, stride, dilation, q_BNDYX.dtype, q_BNDYX.device)
    attended_TLQD = F.scaled_dot_product_attention(
        _query_tiles(q_BNDYX, tiling),
        _halos(k_BNDHW, tiling),
        _halos(v_BNDHW, tiling),
        attn_mask=tiling.bias_TQK.unsqueeze(1),
    )
    return _untiled(attended_TLQD, tiling, like=q_BNDYX)


def reference_local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The same by definition: pad by reflection, copy every neighbour out, softmax over them."""
    k_BNDJYX = _unfolded(k_BNDHW, window, stride, dilation)
    v_BNDJYX = _unfolded(v_BNDHW, window, stride, dilation)
    logits_BNJYX = (q_BNDYX.unsqueeze(3) * k_BNDJYX).sum(2) / math.sqrt(q_BNDYX.shape[2])
    weights_BNJYX = logits_BNJYX.softmax(2)
    return (weights_BNJYX.unsqueeze(2) * v_BNDJYX).sum(3)


@dataclass(frozen=True)
class _Tiling:
    """How a map is cut: tiles down and across, queries down and across a tile, and for each tile its keys."""

    grid: tuple[int, int]
    tile: tuple[int, int]
    halo_TK: Tensor  # noqa: N815  # a shape; positions in the flattened map
    bias_TQK: Tensor  # noqa: N815  # a shape; log of how often the query sees the key; -inf for never


@lru_cache(maxsize=16)  # 2 MB for a 56 x 56 map in float32; a ResNet needs 7 at once
@torch.inference_mode(mode=False)  # a tensor made in inference mode could not be saved for a later backward
def _tiling(
    height: int, width: int, window: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> _Tiling:
    halo = (TILE_SIDE - 1) * stride + dilation * (window - 1) + 1
    dense = height * width <= DENSE_POSITIONS or halo >= max(height, width)
    halo_y_TK, count_y_TQK = _tile_axis(height, window, stride, dilation, dense=dense)
    halo_x_TK, count_x_TQK = _tile_axis(width, window, stride, dilation, dense=dense)
    tiles = len(halo_y_TK) * len(halo_x_TK)
    halo_TK = (halo_y_TK[:, None, :, None] * width + halo_x_TK[None, :, None, :]).reshape(tiles, -1)
    count_TQK = torch.einsum("tqk,url->tuqrkl", count_y_TQK, count_x_TQK).reshape(tiles, -1, halo_TK.shape[1])
    return _Tiling(
        grid=(len(halo_y_TK), len(halo_x_TK)),
        tile=(count_y_TQK.shape[1], count_x_TQK.shape[1]),
        halo_TK=halo_TK.to(device),
        bias_TQK=count_TQK.log().to(device, dtype),
    )


def _tile_axis(side: int, window: int, stride: int, dilation: int, *, dense: bool) -> tuple[Tensor, Tensor]:
    """Keys of each tile along one axis, (T, K), and how often each query sees each of them, (T, Q, K)."""
    queries = -(-side // stride)
    tiles = 1 if dense else -(-queries // TILE_SIDE)
    tile = -(-queries // tiles)
    reach = dilation * (window - 1) // 2
    halo = side if dense else min((tile - 1) * stride + 2 * reach + 1, side)
    # folding never takes a neighbour further than its reach, so a halo clamped into the map still holds them all
    first_T = (torch.arange(tiles, device="cpu") * tile * stride - reach).clamp(0, side - halo)
    halo_TK = first_T[:, None] + torch.arange(halo, device="cpu")
    # the last tile may be filled up with queries that are cropped again; they repeat the last real one
    query_TQ = torch.arange(tiles * tile, device="cpu").clamp(max=queries - 1).view(tiles, tile)
    count_YH = _multiplicity(side, window, stride, dilation)
    return halo_TK, count_YH[query_TQ[:, :, None], halo_TK[:, None, :]]


def _multiplicity(side: int, window: int, stride: int, dilation: int) -> Tensor:
    """How often each query's reflected window holds each real key along one axis, (Y, H)."""
    query_Y1 = torch.arange(0, side, stride, device="cpu")[:, None]
    neighbour_YJ = query_Y1 + dilation * (torch.arange(window, device="cpu") - (window - 1) // 2)
    period = max(2 * (side - 1), 1)
    folded_YJ = side - 1 - (neighbour_YJ % period - (side - 1)).abs()
    count_YH = torch.zeros(len(query_Y1), side, dtype=torch.float64, device="cpu")
    return count_YH.scatter_add_(1, folded_YJ, torch.ones_like(folded_YJ, dtype=torch.float64))


def _query_tiles(q_BNDYX: Tensor, tiling: _Tiling) -> Tensor:
    """(T, L, Q, D), rows of zeros and columns of zeros filling the last tiles."""
    (down, across), (tile_y, tile_x) = tiling.grid, tiling.tile
    filled = F.pad(q_BNDYX, (0, across * tile_x - q_BNDYX.shape[-1], 0, down * tile_y - q_BNDYX.shape[-2]))
    batch, heads, head_channels = q_BNDYX.shape[:3]
    cut = filled.reshape(batch, heads, head_channels, down, tile_y, across, tile_x)
    return cut.permute(3, 5, 0, 1, 4, 6, 2).reshape(down * across, batch * heads, tile_y * tile_x, head_channels)


def _halos(map_BNDHW: Tensor, tiling: _Tiling) -> Tensor:
    """The keys or values of each tile's halo, (T, L, K, D)."""
    map_LPD = map_BNDHW.permute(0, 1, 3, 4, 2).flatten(2, 3).flatten(0, 1)
    lanes, positions, head_channels = map_LPD.shape
    tiles, keys = tiling.halo_TK.shape
    if (tiles, keys) == (1, positions):
        return map_LPD.unsqueeze(0)
    return map_LPD.index_select(1, tiling.halo_TK.flatten()).view(lanes, tiles, keys, head_channels).transpose(0, 1)


def _untiled(attended_TLQD: Tensor, tiling: _Tiling, *, like: Tensor) -> Tensor:
    """The tiles put together and cropped to the shape of `like`, (B, N, D, Y, X)."""
    batch, heads, head_channels, height, width = like.shape
    (down, across), (tile_y, tile_x) = tiling.grid, tiling.tile
    cut = attended_TLQD.reshape(down, across, batch, heads, tile_y, tile_x, head_channels)
    filled = cut.permute(2, 3, 6, 0, 4, 1, 5).reshape(batch, heads, head_channels, down * tile_y, across * tile_x)
    return filled[..., :height, :width]


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
