"""Local attention on a CPU, one tile of queries after the other: a tile and its halo stay in the cache.

Nothing is gathered for all tiles at once. Kept for the backward pass are queries, keys, values, outputs and the
logarithms of the softmax's sums; halos are cut again there. torch's own fused attention computes each tile.
"""

# Shapes: B batch, N heads, D channels a head, H W map, Y X map of queries, P = Y*X, Q queries of a tile, K its keys,
#         M = 3*N maps of D channels, packed: channel i of all q heads, all k heads, all v heads; then channel i+1

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from acmix.ops._geometry import Axis
from acmix.ops._operators import differentiate, floats_of, operator, tell_shapes

MOST_QUERIES = 64  # of a tile
TILE_COST = 1500  # what a tile costs beside its products, in pairs of a query and a key

_aten = torch.ops.aten
_Area = tuple[slice, slice]  # rows and columns of a map


def supported(q_BNDYX: Tensor) -> bool:
    """Whether this torch has the fused attention that the tiles need."""
    return q_BNDYX.device.type == "cpu" and hasattr(_aten, "_scaled_dot_product_flash_attention_for_cpu_backward")


def cpu_form(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int, dilation: int) -> Tensor:
    """Attended values, (B, N, D, Y, X), with the channels innermost in memory."""
    maps = (each.permute(0, 3, 4, 1, 2).contiguous() for each in (q_BNDYX, k_BNDHW, v_BNDHW))
    out_BYXND: Tensor = _attend_tiles(*maps, window, stride, dilation)[0]
    return out_BYXND.permute(0, 3, 4, 1, 2)


def packed_cpu_form(
    features_BFHW: Tensor, position_DHW: Tensor, *, heads: int, window: int, stride: int, dilation: int
) -> Tensor:
    """The same of packed maps, (B, N, D, Y, X): they are kept as they are, and unpacked again in the backward pass."""
    packed_BHWDM = torch.unflatten(features_BFHW.movedim(1, -1), -1, (-1, 3 * heads)).contiguous()
    position_HWD = position_DHW.movedim(0, -1).to(packed_BHWDM.dtype)
    out_BYXND: Tensor = _attend_packed(packed_BHWDM, position_HWD, window, stride, dilation)[0]
    return out_BYXND.permute(0, 3, 4, 1, 2)


@operator
def _attend_tiles(
    q_BYXND: Tensor, k_BHWND: Tensor, v_BHWND: Tensor, window: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Attended values as q, and the logarithm of each softmax's sum, tile after tile, (B, N, P)."""
    return _tile_after_tile(q_BYXND, k_BHWND, v_BHWND, window, stride, dilation)


@operator
def _attend_tiles_backward(
    grad_BYXND: Tensor,
    q_BYXND: Tensor,
    k_BHWND: Tensor,
    v_BHWND: Tensor,
    out_BYXND: Tensor,
    sums_BNP: Tensor,
    window: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    maps = (q_BYXND, k_BHWND, v_BHWND)
    return _tile_after_tile_backward(grad_BYXND, *maps, out_BYXND, sums_BNP, window, stride, dilation)


@operator
def _attend_packed(
    packed_BHWDM: Tensor, position_HWD: Tensor, window: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    return _tile_after_tile(*_unpacked(packed_BHWDM, position_HWD, stride), window, stride, dilation)


@operator
def _attend_packed_backward(
    grad_BYXND: Tensor,
    packed_BHWDM: Tensor,
    position_HWD: Tensor,
    out_BYXND: Tensor,
    sums_BNP: Tensor,
    window: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the packed maps and of the position."""
    maps = _unpacked(packed_BHWDM, position_HWD, stride)
    grads = _tile_after_tile_backward(grad_BYXND, *maps, out_BYXND, sums_BNP, window, stride, dilation)
    grad_BHWD3N = torch.unflatten((torch.empty_like if stride == 1 else torch.zeros_like)(packed_BHWDM), -1, (3, -1))
    grad_BHWD3N[:, ::stride, ::stride, :, 0] = grads[0].mT
    grad_BHWD3N[..., 1, :], grad_BHWD3N[..., 2, :] = grads[1].mT, grads[2].mT
    return grad_BHWD3N.flatten(-2), grads[1].sum((0, 3)).neg_()


def _unpacked(packed_BHWDM: Tensor, position_HWD: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys less their position, and values, each with D innermost."""
    q_BHWDN, k_BHWDN, v_BHWDN = torch.unflatten(packed_BHWDM, -1, (3, -1)).unbind(-2)
    k_BHWND = k_BHWDN.mT.contiguous().sub_(position_HWD[:, :, None])
    return q_BHWDN[:, ::stride, ::stride].mT.contiguous(), k_BHWND, v_BHWDN.mT.contiguous()


def _tile_after_tile(
    q_BYXND: Tensor, k_BHWND: Tensor, v_BHWND: Tensor, window: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    out_BYXND = torch.empty_like(q_BYXND)
    sums = []
    for tile in _tiles(*k_BHWND.shape[1:3], window, stride, dilation, q_BYXND.dtype):
        out_BNQD, sum_BNQ = _aten._scaled_dot_product_flash_attention_for_cpu(
            _cut(q_BYXND, tile.queries),
            _cut(k_BHWND, tile.keys),
            _cut(v_BHWND, tile.keys),
            attn_mask=tile.bias_11QK,
        )
        out_BYXND[:, *tile.queries] = _uncut(out_BNQD, tile.queries)
        sums.append(sum_BNQ)
    return out_BYXND, torch.cat(sums, dim=2)


def _tile_after_tile_backward(
    grad_BYXND: Tensor,
    q_BYXND: Tensor,
    k_BHWND: Tensor,
    v_BHWND: Tensor,
    out_BYXND: Tensor,
    sums_BNP: Tensor,
    window: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q_BYXND = torch.empty_like(q_BYXND)
    grad_k_BHWND, grad_v_BHWND = torch.zeros_like(k_BHWND), torch.zeros_like(v_BHWND)
    tiles = _tiles(*k_BHWND.shape[1:3], window, stride, dilation, q_BYXND.dtype)
    sums = torch.split(sums_BNP, [tile.bias_11QK.shape[2] for tile in tiles], dim=2)
    for tile, sum_BNQ in zip(tiles, sums, strict=True):
        grad_q_BNQD, grad_k_BNKD, grad_v_BNKD = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _cut(grad_BYXND, tile.queries),
            _cut(q_BYXND, tile.queries),
            _cut(k_BHWND, tile.keys),
            _cut(v_BHWND, tile.keys),
            _cut(out_BYXND, tile.queries),
            sum_BNQ,
            0.0,
            False,
            attn_mask=tile.bias_11QK,
        )
        grad_q_BYXND[:, *tile.queries] = _uncut(grad_q_BNQD, tile.queries)
        grad_k_BHWND[:, *tile.keys] += _uncut(grad_k_BNKD, tile.keys)
        grad_v_BHWND[:, *tile.keys] += _uncut(grad_v_BNKD, tile.keys)
    return grad_q_BYXND, grad_k_BHWND, grad_v_BHWND


def _tiles_fake(q_BYXND: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BYXND), _no_sums(q_BYXND)


def _tiles_backward_fake(_grad: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(map_BHWND) for map_BHWND in tensors[:3])


def _packed_fake(
    packed_BHWDM: Tensor, _position: Tensor, _window: int, stride: int, _dilation: int
) -> tuple[Tensor, Tensor]:
    batch, height, width, head_channels, maps = packed_BHWDM.shape
    queries = (-(-side // stride) for side in (height, width))
    out_BYXND = packed_BHWDM.new_empty(batch, *queries, maps // 3, head_channels)
    return out_BYXND, _no_sums(out_BYXND)


def _packed_backward_fake(_grad: Tensor, packed_BHWDM: Tensor, position_HWD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(packed_BHWDM), position_HWD.new_empty(position_HWD.shape)


def _no_sums(q_BYXND: Tensor) -> Tensor:
    batch, height, width, heads, _ = q_BYXND.shape
    return q_BYXND.new_empty(batch, heads, height * width, dtype=floats_of(q_BYXND))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, window, stride, dilation = inputs
    ctx.geometry = (window, stride, dilation)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _differentiated(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A backward operation in autograd's form; the sums have no gradient."""

    def run(ctx: Any, grad_BYXND: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_BYXND is None:
            return (None,) * len(ctx.needs_input_grad)
        return *backward(grad_BYXND.contiguous(), *ctx.saved_tensors, *ctx.geometry), None, None, None

    return run


tell_shapes(_attend_tiles, _tiles_fake)
tell_shapes(_attend_tiles_backward, _tiles_backward_fake)
tell_shapes(_attend_packed, _packed_fake)
tell_shapes(_attend_packed_backward, _packed_backward_fake)
differentiate(_attend_tiles, _differentiated(_attend_tiles_backward), _keep)
differentiate(_attend_packed, _differentiated(_attend_packed_backward), _keep)


@dataclass(frozen=True)
class _Tile:
    """Queries, all keys that they see, and log of how often each sees each; -inf for never."""

    queries: _Area
    keys: _Area
    bias_11QK: Tensor  # noqa: N815  # a shape


@lru_cache(maxsize=16)  # 2 MB for a 56 x 56 map in float32; a ResNet needs 7 at once
@torch.inference_mode(mode=False)  # a tensor made in inference mode could not be used in a later backward
def _tiles(height: int, width: int, window: int, stride: int, dilation: int, dtype: torch.dtype) -> Sequence[_Tile]:
    rows, columns = (Axis(side, window, stride, dilation) for side in (height, width))
    down, across = _tile_sides(rows, columns)
    return [
        _Tile((queries_y, queries_x), (keys_y, keys_x), _bias(count_y_QK, count_x_QK).to(dtype))
        for queries_y, keys_y, count_y_QK in _cuts(rows, down)
        for queries_x, keys_x, count_x_QK in _cuts(columns, across)
    ]


def _tile_sides(rows: Axis, columns: Axis) -> tuple[int, int]:
    """Queries down and across a tile, for the least work in all."""

    def cost(sides: tuple[int, int]) -> int:
        (down, across), tiles = sides, -(-rows.queries // sides[0]) * -(-columns.queries // sides[1])
        return tiles * (down * across * rows.span(down) * columns.span(across) + TILE_COST)

    most_down, most_across = min(rows.queries, MOST_QUERIES), min(columns.queries, MOST_QUERIES)
    sides = (
        (down, across)
        for down in range(1, most_down + 1)
        for across in range(1, min(most_across, MOST_QUERIES // down) + 1)
    )
    return min(sides, key=cost)


def _cuts(axis: Axis, most: int) -> list[tuple[slice, slice, Tensor]]:
    """An axis in pieces: queries, their keys, and how often each sees each, (Q, K)."""
    count_YH = axis.multiplicity()
    found = []
    for first in range(0, axis.queries, most):
        last = min(first + most, axis.queries)
        queries, keys = slice(first, last), axis.keys(first, last - 1)
        found.append((queries, keys, count_YH[queries, keys]))
    return found


def _bias(count_y_QK: Tensor, count_x_QK: Tensor) -> Tensor:
    """(1, 1, Q, K) of a tile from its two axes."""
    count_QQKK = torch.einsum("qk,rl->qrkl", count_y_QK, count_x_QK)
    return count_QQKK.flatten(2).flatten(0, 1).log()[None, None]


def _cut(map_BHWND: Tensor, area: _Area) -> Tensor:
    """A part of a map, (B, N, K, D)."""
    return map_BHWND[:, *area].flatten(1, 2).transpose(1, 2)


def _uncut(part_BNKD: Tensor, area: _Area) -> Tensor:
    """The same back in the shape of the map's part, (B, h, w, N, D)."""
    sides = [side.stop - side.start for side in area]
    return torch.unflatten(part_BNKD.transpose(1, 2), 1, sides)
