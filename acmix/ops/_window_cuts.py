"""Windows cut out of a projected map, as an operator: its gradient goes back in one pass for each of q, k and v.

Autograd would stack the three gradients, put the windows together, and then reorder channels: three passes over all
of them, and the last an uneven one. On one CPU thread that took 50 ms where this takes 9 (96 channels, 56 px).
"""

# Shapes: B batch, S projections (q, k and v, or some of them), N heads, D channels a head, F = S*N*D channels,
#         H W map, P windows, T positions of a window, Y X windows down and across, w side of a window

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acmix.ops._operators import differentiate, operator, tell_shapes


def windows_of(map_BHWF: Tensor, *, parts: int, heads: int, window: int, packed: bool, grid: bool) -> Sequence[Tensor]:
    """Each projection in windows, (B, P, N, T, D), of a map that the windows divide.

    F is ordered S, N, D, or `packed`: D, S, N. Windows are neighbourhoods, or of a `grid`: spread over the whole map.
    """
    if map_BHWF.device.type != "cpu" or torch.compiler.is_exporting():
        view = _in_windows(map_BHWF, parts, heads, window, packed=packed, grid=grid)
        return view.flatten(5, 6).flatten(2, 3).unbind()
    windows: Sequence[Tensor] = _cut_windows(map_BHWF, parts, heads, window, packed, grid)
    return windows


@operator
def _cut_windows(map_BHWF: Tensor, parts: int, heads: int, window: int, packed: bool, grid: bool) -> list[Tensor]:
    view = _in_windows(map_BHWF, parts, heads, window, packed=packed, grid=grid)
    return [part.contiguous().flatten(4, 5).flatten(1, 2) for part in view]


@operator
def _cut_windows_backward(
    grads_BPNTD: Sequence[Tensor],
    height: int,
    width: int,
    window: int,
    packed: bool,
    grid: bool,
) -> Tensor:
    like, parts = grads_BPNTD[0], len(grads_BPNTD)
    grad_BHWF = like.new_empty(_map_shape(grads_BPNTD, height, width))
    view = _in_windows(grad_BHWF, parts, like.shape[2], window, packed=packed, grid=grid)
    for part, grad_BPNTD in zip(view, grads_BPNTD, strict=True):
        part.copy_(torch.unflatten(torch.unflatten(grad_BPNTD, 3, (window, window)), 1, part.shape[1:3]))
    return grad_BHWF


def _in_windows(map_BHWF: Tensor, parts: int, heads: int, window: int, *, packed: bool, grid: bool) -> Tensor:
    """The same elements as (S, B, Y, X, N, w, w, D)."""
    sides = (window, -1) if grid else (-1, window)
    orders = (-1, parts, heads) if packed else (parts, heads, -1)
    view = torch.unflatten(torch.unflatten(torch.unflatten(map_BHWF, 3, orders), 2, sides), 1, sides)
    down, row, across, column = (2, 1, 4, 3) if grid else (1, 2, 3, 4)
    channel, part, head = (5, 6, 7) if packed else (7, 5, 6)
    return view.permute(part, 0, down, across, head, row, column, channel)


def _map_shape(windows_BPNTD: Sequence[Tensor], height: int, width: int) -> tuple[int, int, int, int]:
    batch, _, heads, _, head_channels = windows_BPNTD[0].shape
    return batch, height, width, len(windows_BPNTD) * heads * head_channels


def _fake(map_BHWF: Tensor, parts: int, heads: int, window: int, *_: Any) -> list[Tensor]:
    batch, height, width, channels = map_BHWF.shape
    positions = window**2
    shape = (batch, height * width // positions, heads, positions, channels // (parts * heads))
    return [map_BHWF.new_empty(shape) for _ in range(parts)]


def _backward_fake(grads_BPNTD: Sequence[Tensor], height: int, width: int, *_: Any) -> Tensor:
    return grads_BPNTD[0].new_empty(_map_shape(grads_BPNTD, height, width))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001  # torch's signature
    map_BHWF, _, _, *ctx.cut = inputs
    ctx.sides = map_BHWF.shape[1:3]


def _backward(ctx: Any, grads_BPNTD: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return _cut_windows_backward(grads_BPNTD, *ctx.sides, *ctx.cut), None, None, None, None, None


tell_shapes(_cut_windows, _fake)
tell_shapes(_cut_windows_backward, _backward_fake)
differentiate(_cut_windows, _backward, _keep)
