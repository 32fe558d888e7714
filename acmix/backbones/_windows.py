"""What a window attention is, whoever's: what ACmixWindow needs to stand in for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class WindowVariant:
    """How an attention within windows differs from Swin's, which is the default.

    Its windows may be of a `grid`: positions spread over the whole map. Its logits may come from a `scoring` with
    parameters of its own, an acmix.ops.window_attention.Scoring, in place of a bias for every offset. It may normalize
    what it reads (`norm`), read maps of `in_channels`, give only a map `stride` times smaller, of `out_channels`, and
    have its queries given (`given_queries`) instead of projecting them.
    """

    grid: bool = False
    scoring: nn.Module | None = None
    norm: nn.Module | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    stride: int = 1
    given_queries: bool = False


SWINS = WindowVariant()


@dataclass(frozen=True)
class Windows:
    """A window attention: its sizes, and its weights by the names that they have in Swin's, rows ordered q, k, v."""

    dim: int
    window: int
    heads: int
    weights: Mapping[str, Tensor]
    shift: int = 0
    dropout: float = 0.0
    variant: WindowVariant = SWINS
