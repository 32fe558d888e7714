"""alpha, beta and the root mean square of both paths' outputs, read from every ACmix layer at traced steps."""

# Shapes: L layers, F figures

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from acmix.events import Event, trace
from acmix.mixers import ACmixLayer
from acmix.training.ranks import ALONE, Ranks

FIGURES = ("alpha", "beta", "attention_rms", "convolution_rms")
FIRST_RMS = 2


@contextmanager
def tracing(layers: Mapping[str, ACmixLayer], *, on: bool) -> Iterator[None]:
    """Within, a forward pass leaves both paths' root mean squares on each layer, if `on`."""
    for layer in layers.values():
        layer.tracing = on
    try:
        yield
    finally:
        for layer in layers.values():
            layer.tracing = False


def read(step: int, layers: Mapping[str, ACmixLayer], ranks: Ranks = ALONE, share: float = 1.0) -> Event:
    """The trace event of a step: alpha and beta as they are now, the rest from the last traced forward pass.

    All figures cross from the device in one copy. A figure that is not finite becomes null. Where several ranks train
    together, the root mean squares are over the samples of all, of which this one had that `share`.
    """
    table_LF = torch.stack([layer.figures() for layer in layers.values()])
    if ranks.size > 1:
        mean_squares_LF = ranks.total(share * table_LF[:, FIRST_RMS:].square())
        table_LF = torch.cat([table_LF[:, :FIRST_RMS].cpu(), mean_squares_LF.sqrt()], dim=1)
    table = table_LF.tolist()
    finite = [[value if math.isfinite(value) else None for value in row] for row in table]
    return trace(step, {name: dict(zip(FIGURES, row, strict=True)) for name, row in zip(layers, finite, strict=True)})


def is_due(step: int, every_steps: int, last_step: int) -> bool:
    """Step 0, every so many steps, and the last."""
    return step % every_steps == 0 or step == last_step
