"""A backbone with a decoder that labels every pixel, and an auxiliary head on a coarser map where one is asked for."""

# Shapes: B batch, O classes, H W image, Y X map

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from acmix.backbones._pyramid import FeaturePyramid
from acmix.heads.semantic_fpn import SemanticFPN
from acmix.heads.upernet import UPerNet

AUXILIARY_LEVEL = 2  # the map before the coarsest
AUXILIARY_CHANNELS = 256
DROPOUT = 0.1


class Segmenter(nn.Module):
    """Logits of every pixel: of the decoder alone when judging, with the auxiliary head's when training."""

    def __init__(self, backbone: FeaturePyramid, decoder: nn.Module, num_classes: int, *, auxiliary: bool) -> None:
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.backbone = backbone
        self.stride = backbone.feature_strides[-1]
        self.decoder = decoder
        channels = backbone.feature_channels[AUXILIARY_LEVEL]
        self.auxiliary = AuxiliaryHead(channels, num_classes) if auxiliary else None

    @property
    def trunk(self) -> nn.Module:
        return self.backbone

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """(B, O, H, W) of the decoder, and of the auxiliary head where there is one and the mode is training.

        Sides are filled up with zeros, the mean colour, to multiples of the coarsest map's stride.
        """
        height, width = images_B3HW.shape[-2:]
        below, right = (-side % self.stride for side in (height, width))
        padded = F.pad(images_B3HW, (0, right, 0, below)) if below or right else images_B3HW
        maps = self.backbone(padded)
        logits = [self.decoder(maps)]
        if self.auxiliary is not None and self.training:
            logits.append(self.auxiliary(maps[AUXILIARY_LEVEL]))
        enlarged = (F.interpolate(each, size=padded.shape[-2:], mode="bilinear") for each in logits)
        return [each[..., :height, :width] for each in enlarged]


def decoder(head: str, in_channels: Sequence[int], num_classes: int, *, channels: int) -> nn.Module:
    """The decoder of that name."""
    kind = {"semantic_fpn": SemanticFPN, "upernet": UPerNet}[head]
    return kind(in_channels, num_classes, channels=channels)


class AuxiliaryHead(nn.Sequential):
    """A convolution and a classifier on one map, to train the backbone by. Source: Zhao et al., CVPR 2017."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        hidden = min(AUXILIARY_CHANNELS, in_channels)
        super().__init__(
            Conv2dNormActivation(in_channels, hidden), nn.Dropout2d(DROPOUT), nn.Conv2d(hidden, num_classes, 1)
        )
