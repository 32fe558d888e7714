"""Semantic FPN: a feature pyramid network's maps, each brought to the finest in steps of two, summed and classified.

Source: "Panoptic Feature Pyramid Networks", Kirillov et al., CVPR 2019, section 3.1.
"""

# Shapes: B batch, C channels, O classes, H W image, Y X map

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

NAMES = ("0", "1", "2", "3")
DROPOUT = 0.1


class SemanticFPN(nn.Module):
    """Logits at the finest map of a pyramid of four."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int) -> None:
        """`channels` of the pyramid network; half as many of the sum. The published sizes have 256."""
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels)
        self.scale_heads = nn.ModuleList(_scale_head(channels, channels // 2, level) for level in range(len(NAMES)))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels // 2, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, O, Y, X)."""
        fused = self.fpn(dict(zip(NAMES, maps, strict=True)))
        size = maps[0].shape[-2:]
        heads = zip(self.scale_heads, fused.values(), strict=True)
        summed = sum(_fitted(head(each), size) for head, each in heads)
        logits_BOYX: Tensor = self.classifier(self.dropout(summed))
        return logits_BOYX


def _scale_head(in_channels: int, channels: int, level: int) -> nn.Sequential:
    """A convolution and an enlargement for every step to the finest map; a convolution alone where it is that."""
    layers: list[nn.Module] = []
    for number in range(max(1, level)):
        layers.append(Conv2dNormActivation(in_channels if number == 0 else channels, channels))
        if level:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    return nn.Sequential(*layers)


def _fitted(map_BCYX: Tensor, size: Sequence[int]) -> Tensor:
    """An odd map's enlargement is a position off."""
    if map_BCYX.shape[-2:] == size:
        return map_BCYX
    return F.interpolate(map_BCYX, size=list(size), mode="bilinear")
