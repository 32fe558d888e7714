"""What a backbone is without a classifier: a pyramid of feature maps, for detection and segmentation.

Built with num_classes=None, a backbone gives four maps in place of logits, each of half the side of the one before it
(strides 4, 8, 16 and 32 unless its options say otherwise), and says how many channels and which strides they have.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

LEVELS = 4
PRETRAINED_PX = 224  # position embeddings and windows are as a classifier's of that size; larger images interpolate


class FeaturePyramid(Protocol):
    """A backbone without a classifier; a module as well."""

    feature_channels: Sequence[int]  # of each map, finest first
    feature_strides: Sequence[int]  # pixels of the image a position of each map, finest first

    def __call__(self, images_B3HW: Tensor) -> list[Tensor]:
        """The maps, (B, C, H, W) each, finest first."""
        ...


def halving_strides(finest: int) -> list[int]:
    """Of four maps, each half of the one before."""
    return [finest * 2**level for level in range(LEVELS)]
