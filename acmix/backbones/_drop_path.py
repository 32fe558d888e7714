"""Stochastic depth: a residual branch that is left out of some samples while training.

Source: "Deep Networks with Stochastic Depth", Huang et al., ECCV 2016, as transformers use it: sample by sample, the
branch of those that keep it scaled up.
"""

# Shapes: B batch

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

# What the backbones take.
DropPathOption = Annotated[
    float,
    Field(ge=0, lt=1, description="how often the last residual branch is left out of a sample; from 0 in the first"),
]


class DropPath(nn.Module):
    """Zeros for a share `rate` of the samples, the others times 1 / (1 - rate); nothing at evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Of the shape of `branch`, whose first axis is B."""
        if not self.training or self.rate == 0:
            return branch
        kept_B = branch.new_empty(branch.shape[:1]).bernoulli_(1 - self.rate) / (1 - self.rate)
        return branch * kept_B.view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """The rate of every block, by stage: 0 in the first block of the model, `drop_path` in the last, linear between."""
    linear = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
    return [[next(linear) for _ in range(depth)] for depth in depths]
