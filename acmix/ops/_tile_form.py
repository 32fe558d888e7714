"""Local attention by tiles of queries, all at once: operations that any device has and any exporter knows.

The map is cut into tiles of queries; each tile attends to the rectangle of keys that its windows touch, its halo.
"""

# Shapes: B batch, N heads, L = B*N, D channels a head, H W map, P = H*W, Y X map of queries,
#         T tiles, Q queries a tile, K keys of a tile's halo

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.ops._geometry import Axis

TILE_SIDE = 7
DENSE_POSITIONS = 200  # maps up to this size attend to all their keys at once: gathering halos would cost more


def tile_form(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int, dilation: int) -> Tensor:
    """Attended values, (B, N, D, Y, X)."""
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
    rows, columns = (Axis(side, window, stride, dilation) for side in (height, width))
    dense = height * width <= DENSE_POSITIONS or max(height, width) <= (TILE_SIDE - 1) * stride + 2 * rows.reach + 1
    halo_y_TK, count_y_TQK = _tile_axis(rows, dense=dense)
    halo_x_TK, count_x_TQK = _tile_axis(columns, dense=dense)
    tiles = len(halo_y_TK) * len(halo_x_TK)
    halo_TK = (halo_y_TK[:, None, :, None] * width + halo_x_TK[None, :, None, :]).reshape(tiles, -1)
    count_TQK = torch.einsum("tqk,url->tuqrkl", count_y_TQK, count_x_TQK).reshape(tiles, -1, halo_TK.shape[1])
    # never log(0), of which an exporter that folds constants warns
    bias_TQK = count_TQK.clamp(min=1).log().masked_fill(count_TQK == 0, -math.inf)
    return _Tiling(
        grid=(len(halo_y_TK), len(halo_x_TK)),
        tile=(count_y_TQK.shape[1], count_x_TQK.shape[1]),
        halo_TK=halo_TK.to(device),
        bias_TQK=bias_TQK.to(device, dtype),
    )


def _tile_axis(axis: Axis, *, dense: bool) -> tuple[Tensor, Tensor]:
    """Keys of each tile along one axis, (T, K), and how often each query sees each of them, (T, Q, K)."""
    tiles = 1 if dense else -(-axis.queries // TILE_SIDE)
    tile = -(-axis.queries // tiles)
    halo = axis.side if dense else axis.span(tile)
    # clamped into the map, a halo still holds all that its queries see
    first_T = (torch.arange(tiles, device="cpu") * tile * axis.stride - axis.reach).clamp(0, axis.side - halo)
    halo_TK = first_T[:, None] + torch.arange(halo, device="cpu")
    # the last tile may be filled up with queries that are cropped again; they repeat the last real one
    query_TQ = torch.arange(tiles * tile, device="cpu").clamp(max=axis.queries - 1).view(tiles, tile)
    return halo_TK, axis.multiplicity()[query_TQ[:, :, None], halo_TK[:, None, :]]


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
