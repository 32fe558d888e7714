"""Windows cut out of a map: one operator, the same as views and their gradients."""

from itertools import product

import pytest
import torch
from torch import Tensor

from acmix.ops import _window_cuts
from acmix.ops._window_cuts import windows_of


def by_definition(map_BHWF: Tensor, *, parts: int, heads: int, window: int, packed: bool, grid: bool) -> list[Tensor]:
    """Element by element."""
    batch, height, width, channels = map_BHWF.shape
    head_channels = channels // (parts * heads)
    down, across = height // window, width // window
    shape = (batch, down * across, heads, window**2, head_channels)
    found = [map_BHWF.new_empty(shape) for _ in range(parts)]
    for part, head, i, y, x in product(*map(range, (parts, heads, head_channels, height, width))):
        channel = i * parts * heads + part * heads + head if packed else (part * heads + head) * head_channels + i
        if grid:
            place, position = (y % down) * across + x % across, (y // down) * window + x // across
        else:
            place, position = (y // window) * across + x // window, (y % window) * window + x % window
        found[part][:, place, head, position, i] = map_BHWF[:, y, x, channel]
    return found


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("parts", "heads"), [(3, 2), (2, 1), (1, 3)])
def test_it_is_its_definition_and_so_are_its_gradients(parts: int, heads: int, packed: bool, grid: bool):
    geometry = {"parts": parts, "heads": heads, "window": 2, "packed": packed, "grid": grid}
    map_BHWF = torch.randn(2, 4, 6, parts * heads * 3, dtype=torch.float64, requires_grad=True)
    ours, witness = windows_of(map_BHWF, **geometry), by_definition(map_BHWF, **geometry)
    assert len(ours) == parts
    weights = [torch.randn_like(each) for each in witness]
    gradients = []
    for cut in (ours, witness):
        total = sum((weight * each).sum() for weight, each in zip(weights, cut, strict=True))
        gradients.append(torch.autograd.grad(total, map_BHWF))
    for one, other in zip(ours, witness, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(*[gradient for (gradient,) in gradients])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own, on copies that it makes
def test_torch_finds_no_fault_with_the_operator():
    """Its schema, its fake and its gradient, in torch's own checks."""
    map_BHWF = torch.randn(1, 4, 4, 12, requires_grad=True)
    torch.library.opcheck(_window_cuts._cut_windows, (map_BHWF, 3, 2, 2, True, False))
