"""What patchwise attention does with windows, as operators that never hold all copies of a window at once.

A row of the window's taps after the other is gone through, and again in the backward pass, which is written out here:
between the two only the operators' inputs are kept. The batch comes last in memory, so that a tap is a plain slice and
the arithmetic runs over the innermost places.
"""

# Shapes: B batch, R channels of k, P planes of weights, S channels that share one, C = S*P channels of v (channel s*P+p
#         has plane p), H W map, K K window, Y X padded map, h rows of a chunk, N = h*W*B positions of a chunk,
#         L channels of any map

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from acmix.ops._operators import differentiate, floats_of, operator, tell_shapes

Position = TypeVar("Position", int, Tensor)

CHUNK_POSITIONS = 4096  # on a CPU: what a chunk's maps need should stay in the cache over all taps


@operator
def windows_mixed(k_BRHW: Tensor, scale_RKK: Tensor, shift_RKK: Tensor, weight_PRKK: Tensor) -> Tensor:
    """relu(scale * k + shift) of every tap, mixed by `weight`, summed over taps: (B, P, H, W)."""
    side, width = scale_RKK.shape[-1], k_BRHW.shape[3]
    k_RYXB = _padded(k_BRHW, side)
    scale_RKK, shift_RKK, weight_PRKK = map(widened, (scale_RKK, shift_RKK, weight_PRKK))
    mixed_PHWB = k_RYXB.new_zeros(len(weight_PRKK), *k_BRHW.shape[2:], len(k_BRHW))
    for rows, tap in product(_chunks(mixed_PHWB), range(side)):
        seen_RKhWB = _taps_of_a_row(k_RYXB, rows, tap, width)
        lit_RKhWB = _affine(seen_RKhWB, scale_RKK[:, tap], shift_RKK[:, tap]).relu_()
        mixed_PN = mixed_PHWB[:, rows].flatten(1)  # a view
        mixed_PN.addmm_(weight_PRKK[:, :, tap].flatten(1), lit_RKhWB.view(-1, mixed_PN.shape[1]))
    return _batch_first(mixed_PHWB, k_BRHW)


@operator
def windows_mixed_backward(
    grad_BPHW: Tensor, k_BRHW: Tensor, scale_RKK: Tensor, shift_RKK: Tensor, weight_PRKK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four inputs of `windows_mixed`."""
    side, width = scale_RKK.shape[-1], k_BRHW.shape[3]
    k_RYXB, grad_PHWB = _padded(k_BRHW, side), _batch_last(grad_BPHW)
    wide = [widened(each) for each in (scale_RKK, shift_RKK, weight_PRKK)]
    grad_k_RYXB = torch.zeros_like(k_RYXB)
    grad_scale_RKK, grad_shift_RKK, grad_weight_PRKK = grads = [torch.zeros_like(each) for each in wide]
    for rows, tap in product(_chunks(grad_PHWB), range(side)):
        scale_RK, shift_RK, weight_PRK = wide[0][:, tap], wide[1][:, tap], wide[2][:, :, tap]
        grad_PN = grad_PHWB[:, rows].flatten(1)
        seen_RKhWB = _taps_of_a_row(k_RYXB, rows, tap, width)
        lit_RKhWB = _affine(seen_RKhWB, scale_RK, shift_RK).relu_()
        grad_weight_PRKK[:, :, tap] += (grad_PN @ lit_RKhWB.view(-1, grad_PN.shape[1]).mT).view_as(weight_PRK)
        grad_RKhWB = (weight_PRK.flatten(1).mT @ grad_PN).view_as(lit_RKhWB).masked_fill_(lit_RKhWB <= 0, 0)
        grad_shift_RKK[:, tap] += grad_RKhWB.sum((2, 3, 4))
        grad_scale_RKK[:, tap] += torch.mul(grad_RKhWB, seen_RKhWB, out=lit_RKhWB).sum((2, 3, 4))
        grad_RKhWB.mul_(scale_RK[:, :, None, None, None])
        for column in range(side):
            grad_k_RYXB[:, rows.start + tap : rows.stop + tap, column : column + width] += grad_RKhWB[:, column]
    grad_scale_RKK, grad_shift_RKK, grad_weight_PRKK = _narrowed(grads, (scale_RKK, shift_RKK, weight_PRKK))
    return _batch_first(_folded(grad_k_RYXB, side), k_BRHW), grad_scale_RKK, grad_shift_RKK, grad_weight_PRKK


@operator
def windows_summed(hidden_BPHW: Tensor, v_BCHW: Tensor, weight_PKKP: Tensor, bias_PKK: Tensor) -> Tensor:
    """v summed over each window with weights that `weight` and `bias` make of `hidden`: (B, C, H, W)."""
    side, width = bias_PKK.shape[-1], v_BCHW.shape[3]
    hidden_PHWB = _batch_last(hidden_BPHW)
    v_SPYXB = torch.unflatten(_padded(v_BCHW, side), 0, (-1, len(hidden_PHWB)))
    wide = widened(weight_PKKP), widened(bias_PKK)
    out_SPHWB = hidden_PHWB.new_zeros(len(v_SPYXB), *hidden_PHWB.shape)
    for rows, tap in product(_chunks(hidden_PHWB), range(side)):
        weights_KPhWB = _weights_of_a_row(hidden_PHWB[:, rows], *wide, tap)
        for column in range(side):
            seen_SPhWB = v_SPYXB[:, :, rows.start + tap : rows.stop + tap, column : column + width]
            out_SPHWB[:, :, rows].addcmul_(weights_KPhWB[column], seen_SPhWB)
    return _batch_first(out_SPHWB.flatten(0, 1), v_BCHW)


@operator
def windows_summed_backward(
    grad_BCHW: Tensor, hidden_BPHW: Tensor, v_BCHW: Tensor, weight_PKKP: Tensor, bias_PKK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four inputs of `windows_summed`."""
    side, width = bias_PKK.shape[-1], v_BCHW.shape[3]
    hidden_PHWB = _batch_last(hidden_BPHW)
    v_SPYXB, grad_SPHWB = (
        torch.unflatten(map_LYXB, 0, (-1, len(hidden_PHWB)))
        for map_LYXB in (_padded(v_BCHW, side), _batch_last(grad_BCHW))
    )
    wide = widened(weight_PKKP), widened(bias_PKK)
    grad_v_SPYXB, grad_hidden_PHWB = torch.zeros_like(v_SPYXB), torch.zeros_like(hidden_PHWB)
    grad_weight_PKKP, grad_bias_PKK = grads = [torch.zeros_like(each) for each in wide]
    for rows, tap in product(_chunks(hidden_PHWB), range(side)):
        hidden_PhWB, grad_SPhWB = hidden_PHWB[:, rows], grad_SPHWB[:, :, rows]
        weights_KPhWB = _weights_of_a_row(hidden_PhWB, *wide, tap)
        for column in range(side):
            place = (slice(None), slice(None), slice(rows.start + tap, rows.stop + tap), slice(column, column + width))
            grad_v_SPYXB[place].addcmul_(weights_KPhWB[column], grad_SPhWB)
            weights_KPhWB[column] = (grad_SPhWB * v_SPYXB[place]).sum(0)  # from here on the weights' gradient
        grad_PKN = weights_KPhWB.transpose(0, 1).flatten(2)
        grad_bias_PKK[:, tap] += grad_PKN.sum(2)
        grad_weight_PKKP[:, tap] += grad_PKN @ hidden_PhWB.flatten(1).mT
        weight_KPP = wide[0][:, tap].transpose(0, 1).flatten(0, 1)
        grad_hidden_PHWB[:, rows] += (weight_KPP.mT @ weights_KPhWB.flatten(0, 1).flatten(1)).view_as(hidden_PhWB)
    grad_weight_PKKP, grad_bias_PKK = _narrowed(grads, (weight_PKKP, bias_PKK))
    grad_v_BCHW = _batch_first(_folded(grad_v_SPYXB.flatten(0, 1), side), v_BCHW)
    return _batch_first(grad_hidden_PHWB, hidden_BPHW), grad_v_BCHW, grad_weight_PKKP, grad_bias_PKK


def _mixed_fake(k_BRHW: Tensor, *weights: Tensor) -> Tensor:
    # not len(k_BRHW): that would fix the batch of what is exported
    return k_BRHW.new_empty(k_BRHW.shape[0], weights[-1].shape[0], *k_BRHW.shape[2:])


def _summed_fake(_hidden_BPHW: Tensor, v_BCHW: Tensor, *_weights: Tensor) -> Tensor:
    return _like(v_BCHW)


def _backward_fake(_grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_like(each) for each in inputs)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001  # torch's signature
    ctx.save_for_backward(*inputs)


for _forward, _backward, _fake in (
    (windows_mixed, windows_mixed_backward, _mixed_fake),
    (windows_summed, windows_summed_backward, _summed_fake),
):
    tell_shapes(_forward, _fake)
    tell_shapes(_backward, _backward_fake)
    differentiate(_forward, lambda ctx, grad, backward=_backward: backward(grad, *ctx.saved_tensors), _keep)


def widened(tensor: Tensor) -> Tensor:
    """In the precision that sums are taken in: float32 for the halves."""
    return tensor.to(floats_of(tensor))


def reflected(position: Position, side: int) -> Position:
    """Positions along an axis, those outside folded back into the map until they lie inside."""
    period = max(2 * (side - 1), 1)
    return side - 1 - abs(position % period - (side - 1))


def _narrowed(grads: list[Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [grad.to(each.dtype) for grad, each in zip(grads, inputs, strict=True)]


def _batch_last(map_BLHW: Tensor) -> Tensor:
    return widened(map_BLHW).permute(1, 2, 3, 0).contiguous()


def _batch_first(map_LHWB: Tensor, like: Tensor) -> Tensor:
    return map_LHWB.permute(3, 0, 1, 2).to(like.dtype).contiguous()


def _padded(map_BLHW: Tensor, window: int) -> Tensor:
    """The map with what its windows see around it, (L, Y, X, B)."""
    padded = _batch_last(map_BLHW)
    for axis in (1, 2):
        side, reach = padded.shape[axis], window // 2
        around = torch.arange(-reach, side + reach, device=padded.device)
        padded = padded.index_select(axis, reflected(around, side))
    return padded


def _folded(padded_LYXB: Tensor, window: int) -> Tensor:
    """The transpose of padding, (L, H, W, B): what lies outside is added where it was reflected from."""
    reach = window // 2
    for axis in (1, 2):
        side = padded_LYXB.shape[axis] - 2 * reach
        for outside in (*range(-reach, 0), *range(side, side + reach)):
            inside = padded_LYXB.select(axis, reflected(outside, side) + reach)
            inside += padded_LYXB.select(axis, outside + reach)
        padded_LYXB = padded_LYXB.narrow(axis, reach, side)
    return padded_LYXB


def _chunks(map_LHWB: Tensor) -> Iterator[slice]:
    """Rows of the map to go through together: on a CPU few, elsewhere all."""
    _, height, width, batch = map_LHWB.shape
    rows = max(1, CHUNK_POSITIONS // (width * batch)) if map_LHWB.device.type == "cpu" else height
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _taps_of_a_row(map_RYXB: Tensor, rows: slice, tap: int, width: int) -> Tensor:
    """What one row of the window sees from the map's rows, (R, K, h, W, B), a view."""
    return map_RYXB[:, rows.start + tap : rows.stop + tap].unfold(2, width, 1).permute(0, 2, 1, 4, 3)


def _affine(seen_RKhWB: Tensor, scale_RK: Tensor, shift_RK: Tensor) -> Tensor:
    """scale * seen + shift, laid out as its shape says: of a view that overlaps itself, torch would not."""
    scale_RK111, shift_RK111 = scale_RK[:, :, None, None, None], shift_RK[:, :, None, None, None]
    return torch.addcmul(shift_RK111, seen_RKhWB, scale_RK111, out=seen_RKhWB.new_empty(seen_RKhWB.shape))


def _weights_of_a_row(hidden_PhWB: Tensor, weight_PKKP: Tensor, bias_PKK: Tensor, tap: int) -> Tensor:
    """Weights of the taps of one row of the window, (K, P, h, W, B)."""
    weight_KPP, bias_KP = weight_PKKP[:, tap].transpose(0, 1), bias_PKK[:, tap].mT
    weights = torch.addmm(bias_KP.flatten()[:, None], weight_KPP.flatten(0, 1), hidden_PhWB.flatten(1))
    return weights.view(*bias_KP.shape, *hidden_PhWB.shape[1:])
