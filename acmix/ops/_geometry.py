"""Which real keys a reflected window holds, and how often: the geometry that every form of local attention shares."""

# Shapes: H keys along an axis, Y queries along it, J window positions

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a map under a window: query y stands at key `stride * y`, its neighbours are `dilation` apart."""

    side: int
    window: int
    stride: int
    dilation: int

    @property
    def queries(self) -> int:
        return -(-self.side // self.stride)

    @property
    def reach(self) -> int:
        """How far the window goes to each side; folding never takes a neighbour further."""
        return self.dilation * (self.window - 1) // 2

    def span(self, queries: int) -> int:
        """Keys that so many neighbouring queries see at most."""
        return min((queries - 1) * self.stride + 2 * self.reach + 1, self.side)

    def keys(self, first: int, last: int) -> slice:
        """All keys that queries `first` to `last`, the latter included, can see."""
        return slice(max(first * self.stride - self.reach, 0), min(last * self.stride + self.reach + 1, self.side))

    def multiplicity(self) -> Tensor:
        """How often each query's reflected window holds each real key, float64 (Y, H), on the CPU."""
        query_Y1 = torch.arange(0, self.side, self.stride, device="cpu")[:, None]
        offset_J = self.dilation * (torch.arange(self.window, device="cpu") - (self.window - 1) // 2)
        period = max(2 * (self.side - 1), 1)
        folded_YJ = self.side - 1 - ((query_Y1 + offset_J) % period - (self.side - 1)).abs()
        count_YH = torch.zeros(self.queries, self.side, dtype=torch.float64, device="cpu")
        return count_YH.scatter_add_(1, folded_YJ, torch.ones_like(folded_YJ, dtype=torch.float64))
