"""SANs: networks of patchwise self-attention without a spatial convolution, plain until layers are swapped.

Source: "Exploring Self-attention for Image Recognition", Zhao et al., CVPR 2020, sections 3.2, 4 and 5.1.
Deviation from the authors' code: same function of the same parameters; a map of an odd side is pooled to half a
position more, so that any image will do; and each block starts as the identity, its last 1x1 at 0 ("Accurate, Large
Minibatch SGD", Goyal et al., 2017, section 5.1, on the norms of a ResNet). Attention multiplies what it makes of its
input by its input, ten times over: from torch's initial values, a SAN-10 of an eighth of the width, swapped, had a
training loss of 1.9 in its fourth epoch on digits; as it is, of 0.4.
"""

# Shapes: B batch, C channels, H W map, R = C/16 channels of q and of k, V = C/4 channels of v, P = V/8 planes of
#         weights, T taps of a window, O classes

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Size, Tensor, nn

from acmix.backbones._pyramid import LEVELS, halving_strides
from acmix.catalog import SlotPattern, scaled
from acmix.ops.patchwise_attention import patchwise_attention

EXPANSION = 4  # a block's channels over those of its attention
SHARED = 8  # channels of v that one plane of weights serves
_ATTENTION_CHANNELS = (16, 64, 128, 256, 512)
_WINDOWS = (3, 7, 7, 7, 7)

Stem = Annotated[
    Literal["imagenet", "small"],
    Field(description="imagenet halves the map before every stage; small, for tiny images, not before the first"),
]
Width = Annotated[
    float, Field(ge=0.05, le=8, description="multiplies all channels; those of a stage stay multiples of 32")
]


def _slot_pattern(depths: Sequence[int]) -> SlotPattern:
    return SlotPattern(
        name="stages.{stage}.{block}.attention",
        kind="patchwise",
        depths=list(depths),
        channels=list(_ATTENTION_CHANNELS),
        strides=[1] * len(depths),
        first_stage=0,
        width_option="width",
        multiple=SHARED,
    )


class SAN(nn.Module):
    """Stages of attention blocks; in between the map is halved and the channels grow."""

    slot_pattern: ClassVar[SlotPattern]
    smallest: ClassVar[Mapping[str, Any]] = {"stem": "small", "width": 0.05}

    def __init__(self, num_classes: int | None, *, stem: Stem = "imagenet", width: Width = 1.0) -> None:
        """Without `num_classes` it is a feature pyramid (acmix.backbones._pyramid), with a norm for every map."""
        super().__init__()
        widths = [EXPANSION * scaled(channels, width, SHARED) for channels in _ATTENTION_CHANNELS]
        inputs = [widths[0], *widths[:-1]]
        self.conv = nn.Conv2d(3, inputs[0], 1, bias=False)
        self.transitions = nn.ModuleList(
            _transition(before, channels, halves=stage > 0 or stem == "imagenet")
            for stage, (before, channels) in enumerate(zip(inputs, widths, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(channels, window) for _ in range(depth)))
            for depth, channels, window in zip(self.slot_pattern.depths, widths, _WINDOWS, strict=True)
        )
        self.is_pyramid = num_classes is None
        if num_classes is None:
            self.feature_channels = widths[-LEVELS:]
            self.feature_strides = halving_strides(4 if stem == "imagenet" else 2)
            self.map_norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in self.feature_channels)
        else:
            self.bn = nn.BatchNorm2d(widths[-1])
            self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """Logits, (B, O); of a pyramid its maps, those of all stages but the first."""
        map_BCHW = self.conv(images_B3HW)
        maps = []
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            map_BCHW = stage(transition(map_BCHW))
            maps.append(map_BCHW)
        if self.is_pyramid:
            return [F.relu(norm(each)) for norm, each in zip(self.map_norms, maps[-LEVELS:], strict=True)]
        logits_BO: Tensor = self.fc(F.relu(self.bn(map_BCHW)).mean((2, 3)))
        return logits_BO


class SAN10(SAN):
    """SAN-10 with patchwise self-attention: blocks 2, 1, 2, 4, 1."""

    name = "san10"
    slot_pattern = _slot_pattern((2, 1, 2, 4, 1))


class SAN15(SAN):
    """SAN-15 with patchwise self-attention: blocks 3, 2, 3, 5, 2."""

    name = "san15"
    slot_pattern = _slot_pattern((3, 2, 3, 5, 2))


class SAN19(SAN):
    """SAN-19 with patchwise self-attention: blocks 3, 3, 4, 6, 3."""

    name = "san19"
    slot_pattern = _slot_pattern((3, 3, 4, 6, 3))


class Block(nn.Module):
    """Norm, ReLU, attention (the slot) to a quarter of the channels, norm, ReLU, 1x1 back, added to the input."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.attention = PatchwiseAttention(channels, window)
        self.bn2 = nn.BatchNorm2d(channels // EXPANSION)
        self.conv = nn.Conv2d(channels // EXPANSION, channels, 1)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.attention(F.relu(self.bn1(x_BCHW)))
        out_BCHW: Tensor = x_BCHW + self.conv(F.relu(self.bn2(inner)))
        return out_BCHW


class PatchwiseAttention(nn.Module):
    """Values summed over a window with weights made of the whole window."""

    def __init__(self, in_channels: int, window: int) -> None:
        """`in_channels` is a multiple of 32; a quarter as many come out."""
        super().__init__()
        self.in_channels, self.out_channels, self.window = in_channels, in_channels // EXPANSION, window
        self.q_proj, self.k_proj, self.v_proj = projections(in_channels)
        self.weighing = weighing(in_channels, window)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, V, H, W)."""
        q_BRHW, k_BRHW, v_BVHW = self.q_proj(x_BCHW), self.k_proj(x_BCHW), self.v_proj(x_BCHW)
        return patchwise_attention(q_BRHW, k_BRHW, v_BVHW, self.weighing, window=self.window)

    def macs(self, x_shape: Size) -> int:
        """Multiply-adds of the definition for an input of that shape."""
        batch, _, height, width = x_shape
        a_position = projection_macs(self.in_channels) + attention_macs(self.in_channels, self.window)
        return batch * height * width * a_position

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, window={self.window}"


def projections(channels: int) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    """The 1x1 convolutions to q, k and v."""
    relation, values = channels // (4 * EXPANSION), channels // EXPANSION
    return nn.Conv2d(channels, relation, 1), nn.Conv2d(channels, relation, 1), nn.Conv2d(channels, values, 1)


def weighing(channels: int, window: int) -> nn.Sequential:
    """What makes q and all copies of k into a weight a tap and plane, (B, R*(1+T), H, W) to (B, P*T, H, W)."""
    copies, planes, taps = _sizes(channels, window)
    return nn.Sequential(
        nn.BatchNorm2d(copies),
        nn.ReLU(),
        nn.Conv2d(copies, planes, 1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes * taps, 1),
    )


def projection_macs(channels: int) -> int:
    """Multiply-adds a position of the 1x1 convolutions to q, k and v."""
    return channels * (2 * channels // (4 * EXPANSION) + channels // EXPANSION)


def attention_macs(channels: int, window: int) -> int:
    """Multiply-adds a position of the weighing, its norms at 2 an element, and of the sum over the window.

    The sum counts 2 * taps * channels, as attention does everywhere here. Where it counts once, a whole SAN-10 has
    1.83G in place of 1.86G; 1.9G were published.
    """
    copies, planes, taps = _sizes(channels, window)
    made = 2 * copies + copies * planes + 2 * planes + planes * planes * taps
    return made + 2 * taps * (channels // EXPANSION)


def _sizes(channels: int, window: int) -> tuple[int, int, int]:
    """Channels that are weighed, planes of weights, taps."""
    taps = window**2
    return channels // (4 * EXPANSION) * (1 + taps), channels // (EXPANSION * SHARED), taps


def _transition(in_channels: int, out_channels: int, *, halves: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True) if halves else nn.Identity(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )
