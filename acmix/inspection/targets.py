"""Which classes a target is of, by task."""

# Shapes: H W image

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from acmix.datasets._contract import IGNORED, Target


def labels_of(target: Target) -> Iterable[int]:
    """The class of an image; of each of its objects that is no crowd; those its label map has."""
    if isinstance(target, int):
        return [target]
    if isinstance(target, Mapping):
        crowd = target.get("crowd")
        labels = target["labels"] if crowd is None else target["labels"][~crowd]
        return [int(label) for label in labels]
    return [label for label in labels_in_map(target) if label != IGNORED]


def labels_in_map(map_HW: Tensor) -> list[int]:
    """Values of a label map, the most frequent first."""
    counts = torch.bincount(map_HW.flatten(), minlength=IGNORED + 1)
    order = counts.argsort(descending=True, stable=True)
    return [int(label) for label in order[: int((counts > 0).sum())]]
