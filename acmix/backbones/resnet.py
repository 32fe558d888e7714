"""ResNets of bottlenecks, plain until layers are swapped; torchvision's parameter names.

Source: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016; depths 26 and 38 from the ACmix paper.
Deviation from the authors' code: their class builds ACmix in and then initialises every convolution anew, which wipes
the shift kernels; here swaps come after the initialisation.
"""

# Shapes: B batch, C channels, H W map, O classes

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones._pyramid import halving_strides
from acmix.catalog import SlotPattern, scaled

EXPANSION = 4
_CHANNELS = (64, 128, 256, 512)
_STRIDES = (1, 2, 2, 2)

Stem = Annotated[
    Literal["imagenet", "small"], Field(description="imagenet divides the map by 4; small, for tiny images, keeps it")
]
Width = Annotated[float, Field(ge=0.05, le=8, description="multiplies all channels")]
Depths = Annotated[
    Sequence[Annotated[int, Field(ge=1, le=64)]],
    Field(min_length=4, max_length=4, description="bottlenecks of each stage"),
]


def _slot_pattern(depths: Sequence[int], *, depths_option: str | None = None) -> SlotPattern:
    return SlotPattern(
        name="layer{stage}.{block}.conv2",
        kind="conv2d",
        depths=list(depths),
        channels=list(_CHANNELS),
        strides=list(_STRIDES),
        depths_option=depths_option,
        width_option="width",
    )


class ResNet(nn.Module):
    """ResNet of bottlenecks with depths of your own."""

    name = "resnet"
    slot_pattern: ClassVar[SlotPattern] = _slot_pattern((3, 4, 6, 3), depths_option="depths")
    smallest: ClassVar[Mapping[str, Any]] = {"stem": "small", "width": 0.0625, "depths": [1, 1, 1, 1]}
    unswappable = ("conv1",)  # the stem sees pixels; small stems are 3x3 too

    def __init__(
        self, num_classes: int | None, *, stem: Stem = "imagenet", width: Width = 1.0, depths: Depths = (3, 4, 6, 3)
    ) -> None:
        """Without `num_classes` it is a feature pyramid (acmix.backbones._pyramid)."""
        super().__init__()
        stem_channels = scaled(_CHANNELS[0], width)
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, stem_channels, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(stem_channels)
        widths = [scaled(channels, width) for channels in _CHANNELS]
        inputs = [stem_channels, *(EXPANSION * channels for channels in widths)]
        self.layer1 = _stage(inputs[0], widths[0], depths[0], _STRIDES[0])
        self.layer2 = _stage(inputs[1], widths[1], depths[1], _STRIDES[1])
        self.layer3 = _stage(inputs[2], widths[2], depths[2], _STRIDES[2])
        self.layer4 = _stage(inputs[3], widths[3], depths[3], _STRIDES[3])
        self.feature_channels = inputs[1:]
        self.feature_strides = halving_strides(4 if stem == "imagenet" else 1)
        if num_classes is not None:
            self.fc = nn.Linear(inputs[4], num_classes)
        self.is_pyramid = num_classes is None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """Logits, (B, O); of a pyramid its maps."""
        map_BCHW = self.maxpool(F.relu(self.bn1(self.conv1(images_B3HW))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            map_BCHW = stage(map_BCHW)
            maps.append(map_BCHW)
        if self.is_pyramid:
            return maps
        logits_BO: Tensor = self.fc(map_BCHW.mean((2, 3)))
        return logits_BO


class _FixedDepths(ResNet):
    """The depths are the name's, not an option."""

    smallest: ClassVar[Mapping[str, Any]] = {"stem": "small", "width": 0.0625}

    def __init__(self, num_classes: int | None, *, stem: Stem = "imagenet", width: Width = 1.0) -> None:
        super().__init__(num_classes, stem=stem, width=width, depths=self.slot_pattern.depths)


class ResNet26(_FixedDepths):
    """ResNet-26: bottlenecks 1, 2, 4, 1."""

    name = "resnet26"
    slot_pattern = _slot_pattern((1, 2, 4, 1))


class ResNet38(_FixedDepths):
    """ResNet-38: bottlenecks 2, 3, 5, 2."""

    name = "resnet38"
    slot_pattern = _slot_pattern((2, 3, 5, 2))


class ResNet50(_FixedDepths):
    """ResNet-50: bottlenecks 3, 4, 6, 3."""

    name = "resnet50"
    timm_counterpart = "resnet50"
    slot_pattern = _slot_pattern((3, 4, 6, 3))


class Bottleneck(nn.Module):
    """1x1, 3x3 (the slot, with the stride), 1x1 to four times the channels, added to the shortcut."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, first: bool) -> None:
        """`first` of a stage: its shortcut is a strided 1x1; else the input itself."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, EXPANSION * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * channels)
        self.downsample: nn.Module = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, EXPANSION * channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(EXPANSION * channels),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x_BCHW)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(x_BCHW))


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride=stride, first=True)
    others = (Bottleneck(EXPANSION * channels, channels, stride=1, first=False) for _ in range(depth - 1))
    return nn.Sequential(first, *others)
