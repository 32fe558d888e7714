"""The feature pyramid network between a backbone and a detector, as torchvision's detectors want it."""

# Shapes: B batch, C channels, H W map

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from acmix.backbones._pyramid import FeaturePyramid
from acmix.datasets._contract import LONGEST_RATIO
from acmix.tasks._contract import floating

ASPECTS = (0.5, 1.0, 2.0)  # height over width


class Neck(nn.Module):
    """A backbone and a feature pyramid network: maps by name, all of `out_channels`, each half of the one before."""

    def __init__(self, body: FeaturePyramid, channels: int, *, first: int, extra: ExtraFPNBlock, extras: int) -> None:
        """`first` of the backbone's maps is the finest used; `extra` adds `extras` coarser ones."""
        super().__init__()
        assert isinstance(body, nn.Module)
        self.body = body
        self.first = first
        self.fpn = FeaturePyramidNetwork(list(body.feature_channels[first:]), channels, extra)
        self.out_channels = channels
        finest = body.feature_strides[first]
        self.strides = [finest * 2**level for level in range(len(body.feature_strides) - first + extras)]

    @property
    def trunk(self) -> nn.Module:
        return self.body

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """The maps, (B, out_channels, H, W) each, finest first."""
        maps = self.body(images_B3HW)[self.first :]
        fused: dict[str, Tensor] = self.fpn({str(level): each for level, each in enumerate(maps)})
        return fused


def neck_of_boxes(body: FeaturePyramid, channels: int) -> Neck:
    """All four maps and a fifth by pooling: strides 4 to 64. Source: Lin et al., CVPR 2017."""
    return Neck(body, channels, first=0, extra=LastLevelMaxPool(), extras=1)


def neck_of_anchors(body: FeaturePyramid, channels: int) -> Neck:
    """Three maps and two more by strided convolutions: strides 8 to 128. Source: Lin et al., ICCV 2017."""
    return Neck(body, channels, first=1, extra=CoarserMaps(body.feature_channels[-1], channels), extras=2)


class CoarserMaps(LastLevelP6P7):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's, in float32 at least.

    In bfloat16, torch 2.14 on a CPU writes only a part of the weight's gradient of a strided convolution of a map of a
    single position, which the coarsest map of a small image comes from; the rest is what was in the memory before.
    """

    def forward(self, fused: list[Tensor], maps: list[Tensor], names: list[str]) -> Any:
        with torch.autocast(fused[-1].device.type, enabled=False):
            coarser, named = super().forward([*map(floating, fused)], [*map(floating, maps)], names)
        return [*fused, *coarser[len(fused) :]], named


class Resize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's: judged images are resized and their detections put back; trained ones come as they shall be."""

    def __init__(self, image_px: int) -> None:
        """`image_px` is the short side; images are normalised before they come here."""
        super().__init__(image_px, round(image_px * LONGEST_RATIO), [0.0] * 3, [1.0] * 3)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        if self.training:
            return image, target
        resized: tuple[Tensor, Any] = super().resize(image, target)
        return resized


def anchors(strides: Sequence[int], of_stride: Sequence[float], scale: float) -> AnchorGenerator:
    """Of three aspects at every position of each map, their sides these multiples of its stride, times `scale`."""
    sides = tuple(tuple(stride * factor * scale for factor in of_stride) for stride in strides)
    return AnchorGenerator(sides, (ASPECTS,) * len(sides))
