"""Swin Transformers, plain until layers are swapped; the authors' parameter names.

Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., ICCV 2021.
Deviation from the authors' code: any image size. What a patch or a merging leaves over is dropped or filled up with
zeros, windows as in acmix.ops.window_attention; masks and position indices are made when needed and never saved.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, H W map, Y X merged map, O classes

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones._drop_path import DropPath, DropPathOption, rates
from acmix.backbones._pyramid import LEVELS, halving_strides
from acmix.backbones._windows import Windows
from acmix.catalog import SlotPattern
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.ops.window_attention import by_offset, roll, rolled_by, window_attention

MLP_RATIO = 4
MOST_STAGES = 6
_HEADS = (3, 6, 12, 24)
_EMBED_DIM = 96

PatchPx = Annotated[
    int, Field(ge=1, le=64, description="side of the first patches; the map's is halved by every later stage")
]
Window = Annotated[
    int, Field(ge=1, le=64, description="side of the attention's windows, or the map's side where that is smaller")
]
EmbedDim = Annotated[
    int, Field(ge=1, le=4096, description="channels of the first stage, twice as many in every later one")
]
ScaledEmbedDim = Annotated[
    int,
    Field(
        ge=3,
        le=4096,
        multiple_of=3,
        description="channels of the first stage, twice as many in every later one; heads stay 3, 6, 12 and 24",
    ),
]
Depths = Annotated[
    Sequence[Annotated[int, Field(ge=1, le=64)]],
    Field(min_length=1, max_length=MOST_STAGES, description="blocks of each stage"),
]
Heads = Annotated[
    Sequence[Annotated[int, Field(ge=1, le=1024)]],
    Field(min_length=1, max_length=MOST_STAGES, description="heads of each stage; must divide its channels"),
]


def _slot_pattern(depths: Sequence[int], *, depths_option: str | None = None) -> SlotPattern:
    stages = len(depths) if depths_option is None else MOST_STAGES
    return SlotPattern(
        name="layers.{stage}.blocks.{block}.attn",
        kind="window",
        depths=list(depths),
        channels=[_EMBED_DIM * 2**stage for stage in range(stages)],
        strides=[1] * stages,
        first_stage=0,
        depths_option=depths_option,
        channels_option="embed_dim",
        stages_vary=depths_option is not None,
    )


class Swin(nn.Module):
    """Swin Transformer with depths, heads and channels of your own."""

    name = "swin"
    slot_pattern: ClassVar[SlotPattern] = _slot_pattern((2, 2, 6, 2), depths_option="depths")
    smallest: ClassVar[Mapping[str, Any]] = {
        "embed_dim": 4,
        "depths": [2, 1],
        "heads": [1, 2],
        "window": 3,
        "patch_px": 1,
    }

    def __init__(
        self,
        num_classes: int | None,
        image_px: int = 224,
        *,
        embed_dim: EmbedDim = _EMBED_DIM,
        depths: Depths = (2, 2, 6, 2),
        heads: Heads = _HEADS,
        window: Window = 7,
        patch_px: PatchPx = 4,
        drop_path: DropPathOption = 0.0,
    ) -> None:
        """`image_px` tells where a map is smaller than the window, which is then the map's; other images do too.

        Without `num_classes` it is a feature pyramid (acmix.backbones._pyramid), with a norm for every map.
        """
        super().__init__()
        channels = [embed_dim * 2**stage for stage in range(len(depths))]
        _check_heads(heads, channels)
        sides = _sides(image_px, patch_px, len(depths))
        self.patch_embed = PatchEmbedding(embed_dim, patch_px)
        self.layers = nn.ModuleList(
            Stage(
                channels[stage],
                heads[stage],
                min(window, sides[stage]),
                drop_paths,
                merges=stage + 1 < len(depths),
            )
            for stage, drop_paths in enumerate(rates(drop_path, depths))
        )
        self.is_pyramid = num_classes is None
        if num_classes is None:
            _check_levels(depths)
            self.feature_channels, self.feature_strides = channels, halving_strides(patch_px)
            self.map_norms = nn.ModuleList(nn.LayerNorm(each) for each in channels)
        else:
            self.norm = nn.LayerNorm(channels[-1])
            self.head = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw(module)

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """Logits, (B, O); of a pyramid its maps."""
        map_BHWC = self.patch_embed(images_B3HW)
        if self.is_pyramid:
            return self._maps(map_BHWC)
        for stage in self.layers:
            map_BHWC = stage(map_BHWC)
        logits_BO: Tensor = self.head(self.norm(map_BHWC).mean((1, 2)))
        return logits_BO

    def _maps(self, map_BHWC: Tensor) -> list[Tensor]:
        """What every stage makes before its merging, normed, (B, C, H, W) each."""
        maps = []
        for stage, norm in zip(self.layers, self.map_norms, strict=True):
            assert isinstance(stage, Stage)
            map_BHWC = stage.attended(map_BHWC)
            maps.append(norm(map_BHWC).movedim(-1, 1).contiguous())
            map_BHWC = stage.downsample(map_BHWC)
        return maps

    @staticmethod
    def name_of_timm(key: str) -> str:
        """Our name of a parameter that timm's Swin Transformers call `key`: there a stage begins with its merging."""
        if key.startswith("head.fc."):
            return key.replace("head.fc.", "head.")
        return re.sub(r"(?<=^layers\.)\d+(?=\.downsample)", lambda found: str(int(found[0]) - 1), key)


class _FixedDepths(Swin):
    """Depths and heads are the name's, not options."""

    smallest: ClassVar[Mapping[str, Any]] = {"embed_dim": 12, "window": 2, "patch_px": 2}

    def __init__(
        self,
        num_classes: int | None,
        image_px: int = 224,
        *,
        embed_dim: ScaledEmbedDim = _EMBED_DIM,
        window: Window = 7,
        patch_px: PatchPx = 4,
        drop_path: DropPathOption = 0.0,
    ) -> None:
        super().__init__(
            num_classes,
            image_px,
            embed_dim=embed_dim,
            depths=self.slot_pattern.depths,
            heads=_HEADS,
            window=window,
            patch_px=patch_px,
            drop_path=drop_path,
        )


class SwinTiny(_FixedDepths):
    """Swin-T: blocks 2, 2, 6, 2."""

    name = "swin_tiny"
    slot_pattern = _slot_pattern((2, 2, 6, 2))
    timm_counterpart = "swin_tiny_patch4_window7_224"


class SwinSmall(_FixedDepths):
    """Swin-S: blocks 2, 2, 18, 2."""

    name = "swin_small"
    slot_pattern = _slot_pattern((2, 2, 18, 2))
    timm_counterpart = "swin_small_patch4_window7_224"


class PatchEmbedding(nn.Module):
    """Patches of the image side by side, each a position of the map; what is left over at the far edges is dropped."""

    def __init__(self, channels: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch_px, stride=patch_px)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """(B, H, W, C)."""
        map_BHWC: Tensor = self.norm(self.proj(images_B3HW).movedim(1, -1))
        return map_BHWC


class Stage(nn.Module):
    """Blocks, every second one with shifted windows, and a merging behind them where `merges`."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: Sequence[float], *, merges: bool) -> None:
        super().__init__()
        shifts = (0, window // 2)
        self.blocks = nn.ModuleList(
            Block(channels, heads, window, shifts[block % 2], rate) for block, rate in enumerate(drop_paths)
        )
        self.downsample: nn.Module = PatchMerging(channels) if merges else nn.Identity()

    def forward(self, map_BHWC: Tensor) -> Tensor:
        merged_BYXC: Tensor = self.downsample(self.attended(map_BHWC))
        return merged_BYXC

    def attended(self, map_BHWC: Tensor) -> Tensor:
        """What the blocks make of the map, not merged."""
        for block in self.blocks:
            map_BHWC = block(map_BHWC)
        return map_BHWC


class Block(nn.Module):
    """Attention within windows (the slot) and a two-layer perceptron, each a residual branch behind a norm."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        """`shift` is by how much maps are rolled before the attention, and back behind it."""
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn: nn.Module = WindowAttention(channels, window, heads, shift=shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Perceptron(channels, MLP_RATIO * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        by = rolled_by(*x_BHWC.shape[1:3], window=self.window, shift=self.shift)
        attended_BHWC = roll(self.attn(roll(self.norm1(x_BHWC), by)), -by)
        x_BHWC = x_BHWC + self.drop_path(attended_BHWC)
        out_BHWC: Tensor = x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))
        return out_BHWC


class WindowAttention(nn.Module):
    """Attention of every position to those of its window, with a learned bias for every offset.

    Called with a map that is already rolled, and a mask of its windows where it shall not make that itself.
    """

    def __init__(self, dim: int, window: int, heads: int, *, shift: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.window, self.heads, self.shift = dim, window, heads, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.proj_drop = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x_BHWC: Tensor, mask_PTT: Tensor | None = None) -> Tensor:
        """(B, H, W, C)."""
        scoring = by_offset(self.relative_position_bias_table, self.window)
        attended_BHWC = window_attention(
            self.qkv(x_BHWC), scoring, mask_PTT, heads=self.heads, window=self.window, shift=self.shift
        )
        out_BHWC: Tensor = self.proj_drop(self.proj(attended_BHWC))
        return out_BHWC

    @property
    def slot(self) -> tuple[int, int]:
        """Channels and stride."""
        return self.dim, 1

    def windows(self) -> Windows:
        """What ACmixWindow needs to stand in for it."""
        return Windows(self.dim, self.window, self.heads, self.state_dict(), shift=self.shift, dropout=self.proj_drop.p)

    def macs(self, x_shape: torch.Size) -> int:
        """Multiply-adds of the definition for a map of that shape: projections, and the positions of a window twice."""
        batch, height, width, dim = x_shape
        return batch * height * width * (4 * dim * dim + 2 * self.window**2 * dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window={self.window}, heads={self.heads}, shift={self.shift}"


class Perceptron(nn.Module):
    """Linear, GELU, Linear, of every position."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        out_BHWC: Tensor = self.fc2(F.gelu(self.fc1(x_BHWC)))
        return out_BHWC


class PatchMerging(nn.Module):
    """Each 2x2 of positions becomes one of twice the channels; an odd side is filled up with zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, map_BHWC: Tensor) -> Tensor:
        """(B, Y, X, 2C) with Y = ceil(H / 2)."""
        height, width = map_BHWC.shape[1:3]
        if height % 2 or width % 2:
            map_BHWC = F.pad(map_BHWC, (0, 0, 0, width % 2, 0, height % 2))
        square = torch.unflatten(torch.unflatten(map_BHWC, 2, (-1, 2)), 1, (-1, 2))
        merged_BYXC: Tensor = self.reduction(self.norm(square.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return merged_BYXC


def draw(linear: nn.Linear) -> None:
    """Weights from a narrow normal, as the authors do; no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _check_levels(depths: Sequence[int]) -> None:
    if len(depths) != LEVELS:
        raise OptionInvalid(f"depths has {len(depths)} stages; a feature pyramid takes {LEVELS}")


def _check_heads(heads: Sequence[int], channels: Sequence[int]) -> None:
    if len(heads) != len(channels):
        raise OptionInvalid(f"heads has {len(heads)} numbers where depths has {len(channels)}; one a stage would do")
    for stage, (parts, whole) in enumerate(zip(heads, channels, strict=True)):
        if whole % parts:
            raise OptionInvalid(f"heads[{stage}]={parts} does not divide the {whole} channels of its stage")


def _sides(image_px: int, patch_px: int, stages: int) -> list[int]:
    """Of the map of each stage; ShapeMismatch where there is none."""
    if image_px < patch_px:
        raise ShapeMismatch(f"patch_px={patch_px} leaves nothing of {image_px} px images; {image_px} or less would do")
    sides = [image_px // patch_px]
    while len(sides) < stages:
        sides.append(-(-sides[-1] // 2))
    return sides
