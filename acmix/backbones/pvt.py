"""Pyramid Vision Transformers (version 1), plain until layers are swapped; the authors' parameter names.

Source: "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions", Wang et al.,
ICCV 2021.
Deviation from the authors' code: a map smaller than its reduction is filled up with zeros, where theirs crashes, and
the last stage may reduce its map too: the class token is a key as it stands.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, H W map, P = H*W, L tokens of the map after the class tokens,
#         if there is one, K keys, E = 2*C keys and values, O classes

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones._drop_path import DropPath, DropPathOption, rates
from acmix.backbones._pyramid import halving_strides
from acmix.catalog import SlotPattern, scaled
from acmix.errors import ShapeMismatch

_HEADS = (1, 2, 5, 8)
_CHANNELS = (64, 128, 320, 512)
_MLP_RATIOS = (8, 8, 4, 4)
_STAGES = (1, 2, 3, 4)

PatchPx = Annotated[
    int, Field(ge=1, le=64, description="side of the first patches; the map's is halved by every later stage")
]
Width = Annotated[
    float, Field(ge=1 / 32, le=8, multiple_of=1 / 64, description="multiplies all channels, 64 a head where it is 1")
]
Depths = Annotated[
    Sequence[Annotated[int, Field(ge=1, le=64)]], Field(min_length=4, max_length=4, description="blocks of each stage")
]
Reductions = Annotated[
    Sequence[Annotated[int, Field(ge=1, le=64)]],
    Field(min_length=4, max_length=4, description="of each stage, by how much a side of the map of keys is divided"),
]


def _slot_pattern(depths: Sequence[int], *, depths_option: str | None = None) -> SlotPattern:
    return SlotPattern(
        name="block{stage}.{block}.attn",
        kind="reduced",
        depths=list(depths),
        channels=list(_CHANNELS),
        strides=[1, 1, 1, 1],
        depths_option=depths_option,
        width_option="width",
    )


class PVT(nn.Module):
    """PVT v1 with depths of your own."""

    name = "pvt"
    slot_pattern: ClassVar[SlotPattern] = _slot_pattern((2, 2, 2, 2), depths_option="depths")
    smallest: ClassVar[Mapping[str, Any]] = {"patch_px": 1, "width": 0.0625, "depths": [1, 1, 1, 1]}

    def __init__(
        self,
        num_classes: int | None,
        image_px: int = 224,
        *,
        patch_px: PatchPx = 4,
        width: Width = 1.0,
        depths: Depths = (2, 2, 2, 2),
        reductions: Reductions = (8, 4, 2, 1),
        drop_path: DropPathOption = 0.0,
    ) -> None:
        """`image_px` is the size of the position embeddings; they are interpolated for images of others.

        Without `num_classes` it is a feature pyramid (acmix.backbones._pyramid). That has no class token, but a place
        for it among the embeddings, so that a classifier's fit.
        """
        super().__init__()
        self.sides = _sides(image_px, patch_px)
        widths = [scaled(channels, width) for channels in _CHANNELS]
        for i, stage_rates in enumerate(rates(drop_path, depths)):
            patch = PatchEmbedding(3 if i == 0 else widths[i - 1], widths[i], patch_px if i == 0 else 2)
            blocks = (Block(widths[i], _HEADS[i], _MLP_RATIOS[i], reductions[i], rate) for rate in stage_rates)
            tokens = self.sides[i] ** 2 + (_STAGES[i] == _STAGES[-1])
            self.add_module(f"patch_embed{_STAGES[i]}", patch)
            self.register_parameter(f"pos_embed{_STAGES[i]}", nn.Parameter(torch.zeros(1, tokens, widths[i])))
            self.add_module(f"block{_STAGES[i]}", nn.ModuleList(blocks))
        self.feature_channels, self.feature_strides = widths, halving_strides(patch_px)
        self.is_pyramid = num_classes is None
        if num_classes is not None:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, widths[-1]))
            self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
            self.head = nn.Linear(widths[-1], num_classes)
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """As the authors do: narrow normals; the convolutions keep torch's."""
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        positions = [self.get_parameter(f"pos_embed{stage}") for stage in _STAGES]
        tokens = [] if self.is_pyramid else [self.cls_token]
        for weight in (*tokens, *positions, *(linear.weight for linear in linears)):
            nn.init.trunc_normal_(weight, std=0.02)
        for linear in linears:
            nn.init.zeros_(linear.bias)

    def forward(self, images_B3HW: Tensor) -> Tensor | list[Tensor]:
        """Logits, (B, O); of a pyramid its maps."""
        maps = self._maps(images_B3HW, _STAGES if self.is_pyramid else _STAGES[:-1])
        return maps if self.is_pyramid else self._classified(maps[-1])

    def _maps(self, map_BCHW: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """What every one of the stages makes, (B, C, H, W) each; without a class token."""
        maps = []
        for stage in stages:
            x_BPC, (height, width) = getattr(self, f"patch_embed{stage}")(map_BCHW)
            map_BCHW = map_of(self._blocks(stage, x_BPC, height, width), height, width)
            maps.append(map_BCHW)
        return maps

    def _classified(self, map_BCHW: Tensor) -> Tensor:
        x_BPC, (height, width) = getattr(self, f"patch_embed{_STAGES[-1]}")(map_BCHW)
        x_BLC = torch.cat([self.cls_token.expand(x_BPC.shape[0], -1, -1), x_BPC], dim=1)
        x_BLC = self._blocks(_STAGES[-1], x_BLC, height, width)
        logits_BO: Tensor = self.head(self.norm(x_BLC[:, 0]))
        return logits_BO

    def _blocks(self, stage: int, x_BLC: Tensor, height: int, width: int) -> Tensor:
        x_BLC = x_BLC + self._positions(stage, height, width)[:, -x_BLC.shape[1] :]
        for block in getattr(self, f"block{stage}"):
            x_BLC = block(x_BLC, height, width)
        return x_BLC

    def _positions(self, stage: int, height: int, width: int) -> Tensor:
        """The position embeddings of a stage for a map of that size, (1, L, C)."""
        position_1LC: Tensor = getattr(self, f"pos_embed{stage}")
        side = self.sides[stage - 1]
        if (height, width) == (side, side):
            return position_1LC
        of_class, of_map = position_1LC[:, : -(side**2)], position_1LC[:, -(side**2) :]
        resized_1CHW = F.interpolate(map_of(of_map, side, side), size=(height, width), mode="bilinear")
        return torch.cat([of_class, tokens_of(resized_1CHW)], dim=1)


class _FixedDepths(PVT):
    """The depths are the name's, not an option."""

    smallest: ClassVar[Mapping[str, Any]] = {"patch_px": 1, "width": 0.0625}

    def __init__(
        self,
        num_classes: int | None,
        image_px: int = 224,
        *,
        patch_px: PatchPx = 4,
        width: Width = 1.0,
        reductions: Reductions = (8, 4, 2, 1),
        drop_path: DropPathOption = 0.0,
    ) -> None:
        super().__init__(
            num_classes,
            image_px,
            patch_px=patch_px,
            width=width,
            depths=self.slot_pattern.depths,
            reductions=reductions,
            drop_path=drop_path,
        )


class PVTTiny(_FixedDepths):
    """PVT-Tiny (version 1): blocks 2, 2, 2, 2."""

    name = "pvt_tiny"
    slot_pattern = _slot_pattern((2, 2, 2, 2))


class PVTSmall(_FixedDepths):
    """PVT-Small (version 1): blocks 3, 4, 6, 3."""

    name = "pvt_small"
    slot_pattern = _slot_pattern((3, 4, 6, 3))


class PatchEmbedding(nn.Module):
    """Patches of a map side by side, each made a token; what is left over at the far borders is dropped."""

    def __init__(self, in_channels: int, channels: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_px, stride=patch_px)
        self.norm = nn.LayerNorm(channels)

    def forward(self, map_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens, (B, P, C), and the size (H, W) of their map."""
        embedded_BCHW = self.proj(map_BCHW)
        height, width = embedded_BCHW.shape[-2:]
        return self.norm(tokens_of(embedded_BCHW)), (height, width)


class Block(nn.Module):
    """Attention (the slot) and a two-layer perceptron, each a residual branch behind a norm."""

    def __init__(self, channels: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn: nn.Module = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Perceptron(channels, channels * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BLC: Tensor, height: int, width: int) -> Tensor:
        x_BLC = x_BLC + self.drop_path(self.attn(self.norm1(x_BLC), height, width))
        out_BLC: Tensor = x_BLC + self.drop_path(self.mlp(self.norm2(x_BLC)))
        return out_BLC


class Perceptron(nn.Module):
    """Linear, GELU, Linear, of every token."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x_BLC: Tensor) -> Tensor:
        out_BLC: Tensor = self.fc2(F.gelu(self.fc1(x_BLC)))
        return out_BLC


class ReducedAttention(nn.Module):
    """Attention of every token to a map whose sides are divided by `reduction`; to all tokens where that is 1."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.channels, self.heads, self.reduction = channels, heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x_BLC: Tensor, height: int, width: int) -> Tensor:
        """(B, L, C) of a map of that size; tokens before the map's are class tokens."""
        keys_BKC = x_BLC if self.reduction == 1 else self.norm(reduced(x_BLC, self.sr, height, width))
        (q_BNLD,) = in_heads(self.q(x_BLC), 1, self.heads)
        k_BNKD, v_BNKD = in_heads(self.kv(keys_BKC), 2, self.heads)
        out_BLC: Tensor = self.proj(attended(q_BNLD, k_BNKD, v_BNKD))
        return out_BLC


def reduced(x_BLC: Tensor, sr: nn.Conv2d, height: int, width: int) -> Tensor:
    """The tokens with those of the map reduced by the strided convolution `sr`, (B, K, C).

    As any convolution without padding, it leaves out what its last stride does not cover.
    """
    map_BCHW = map_of(x_BLC[:, -height * width :], height, width)
    least_y, least_x = sr.kernel_size
    if height < least_y or width < least_x:
        map_BCHW = F.pad(map_BCHW, (0, max(least_x - width, 0), 0, max(least_y - height, 0)))
    return torch.cat([x_BLC[:, : -height * width], tokens_of(sr(map_BCHW))], dim=1)


def in_heads(x_BLE: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """The `parts` that a projection holds one after the other, each head-major, as (B, N, L, D)."""
    return torch.unflatten(x_BLE, 2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def attended(q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor) -> Tensor:
    """The values that each query attends to, head-major again, (B, L, C)."""
    return F.scaled_dot_product_attention(q_BNLD, k_BNKD, v_BNKD).transpose(1, 2).flatten(2)


def map_of(x_BPC: Tensor, height: int, width: int) -> Tensor:
    """Tokens, row by row, as the map that they are, (B, C, H, W)."""
    return torch.unflatten(x_BPC.transpose(1, 2), 2, (height, width))


def tokens_of(map_BCHW: Tensor) -> Tensor:
    """A map as tokens, row by row, (B, P, C)."""
    return map_BCHW.flatten(2).transpose(1, 2)


def _sides(image_px: int, patch_px: int) -> list[int]:
    """Of the map of each stage; ShapeMismatch where the last would be empty."""
    last = 2 ** (len(_STAGES) - 1)
    if image_px < patch_px * last:
        would_do = f", or patch_px={image_px // last}" if image_px >= last else ""
        raise ShapeMismatch(
            f"{image_px} px images with patch_px={patch_px} have no map left in the last stage; "
            f"{patch_px * last} px would do{would_do}"
        )
    return [image_px // patch_px // 2**i for i in range(len(_STAGES))]
