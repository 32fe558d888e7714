"""ACmix in place of the attention within windows, as in the authors' Swin Transformer.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4.
Deviation from the authors' code: same function of the same parameters, computed by acmix.ops; any map size; the
convolution can run on the map as it is in the image, where theirs mixes opposite edges of a rolled one.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, H W map, F = 3*C features (channel i*3N+m is channel i of map m:
#         all q heads, all k heads, all v heads; no q where queries are given), P windows, T positions of a window,
#         O offsets within a window, I in channels, Y X map and V channels coming out (H W and C but for variants),
#         L = B*Y*X positions

from copy import deepcopy
from typing import Annotated, Literal, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones._windows import SWINS, Windows, WindowVariant
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers._layer import (
    ACmixLayer,
    AlphaOption,
    BetaOption,
    Combine,
    CombineOption,
    KernelConv,
    ShiftOption,
    check_divides,
    packed,
    rms,
)
from acmix.ops.pointwise import pointwise
from acmix.ops.shift_conv import Shift
from acmix.ops.window_attention import by_offset, roll, rolled_by, window_attention


@runtime_checkable
class WindowLayer(Protocol):
    """A window attention of any backbone whose block hands an ACmixWindow in its place the whole map."""

    slot: tuple[int, int]  # channels and stride

    def windows(self) -> Windows:
        """Its sizes and its weights."""


class ACmixWindow(ACmixLayer):
    """Attention within windows of a map, and a convolution over all of it, on one shared projection."""

    name = "acmix"
    fits = "window"
    divides_channels = "heads"

    def __init__(
        self,
        dim: int,
        window: int,
        heads: int,
        *,
        shift: int = 0,
        roll_convolution: bool = True,
        kernel_conv: int = 3,
        combine: Combine = "alpha_beta",
        conv_shift: Shift = "full_group",
        alpha: float | None = None,
        beta: float | None = None,
        dropout: float = 0.0,
        variant: WindowVariant = SWINS,
    ) -> None:
        """`shift` is by how much the block rolls its maps, `conv_shift` how the convolution shifts its taps.

        With `roll_convolution` the convolution runs on the rolled map, as in the authors' code; without, on the map
        unrolled. `dropout` is that of the sum of both paths. A `variant` with a stride gives a smaller map, on which
        both paths have their places; one with out_channels as many, the convolution from as many heads as they fill.

        Raises:
            ShapeMismatch: heads do not divide the channels, or the channels of a head not those coming out.
            OptionInvalid: `shift` is no part of a window, or the combination learns no such alpha or beta.
        """
        super().__init__(combine, alpha, beta)
        check_divides(heads, dim)
        out_channels = dim if variant.out_channels is None else variant.out_channels
        if out_channels % (dim // heads):
            raise ShapeMismatch(f"heads={heads} have {dim // heads} channels each, which do not divide {out_channels}")
        if not 0 <= shift < window:
            raise OptionInvalid(f"shift={shift} is no part of a window of {window}; 0 to {window - 1} are")
        self.dim, self.window, self.shift, self.roll_convolution = dim, window, shift, roll_convolution
        self.grid, self.parts = variant.grid, 2 if variant.given_queries else 3
        self.norm = nn.Identity() if variant.norm is None else variant.norm
        self.qkv = nn.Linear(dim if variant.in_channels is None else variant.in_channels, self.parts * dim)
        if self.has_attention:
            self.proj = nn.Linear(dim, out_channels)
            self.scoring = variant.scoring
            if self.scoring is None:
                self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
                nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._build_convolution(
            dim,
            heads,
            maps=self.parts * heads,
            kernel_conv=kernel_conv,
            shift=conv_shift,
            stride=variant.stride,
            out_channels=out_channels,
            bias=True,
        )
        self.proj_drop = nn.Dropout(dropout)

    @classmethod
    def slot_of(cls, layer: nn.Module) -> tuple[int, int] | None:
        """(channels, stride) of a Swin's attention or of one like it."""
        return layer.slot if isinstance(layer, WindowLayer) else None

    @classmethod
    def replacing(
        cls,
        layer: WindowLayer,
        *,
        heads: Annotated[
            int | None,
            Field(
                ge=1,
                le=1024,
                description="must divide the layer's channels; null: as many as it has. With others its position bias "
                "has no place and is drawn anew",
            ),
        ] = None,
        kernel_conv: KernelConv = 3,
        combine: CombineOption = "alpha_beta",
        shift: ShiftOption = "full_group",
        roll_convolution: Annotated[
            bool,
            Field(
                description="true, as released: in blocks that roll their maps the convolution sees opposite edges of "
                "the image side by side; false: it runs on the map unrolled"
            ),
        ] = True,
        alpha: AlphaOption = None,
        beta: BetaOption = None,
    ) -> Self:
        """A layer with the windows of `layer`, and all of its weights that have a place."""
        own = layer.windows()
        if own.variant.scoring is not None and heads not in {None, own.heads}:
            raise ShapeMismatch(f"heads={heads} where the attention scores {own.heads} of them; null keeps those")
        replacement = cls(
            own.dim,
            own.window,
            own.heads if heads is None else heads,
            shift=own.shift,
            roll_convolution=roll_convolution,
            kernel_conv=kernel_conv,
            combine=combine,
            conv_shift=shift,
            alpha=alpha,
            beta=beta,
            dropout=own.dropout,
            variant=deepcopy(own.variant),
        ).to(own.weights["qkv.weight"].dtype)
        places = replacement.state_dict()
        kept = {key: value for key, value in own.weights.items() if key in places}
        if replacement.heads != own.heads:
            kept.pop("relative_position_bias_table", None)
        replacement.load_state_dict(kept, strict=False)
        return replacement

    def forward(self, x_BHWI: Tensor, mask_PTT: Tensor | None = None, queries_BHWC: Tensor | None = None) -> Tensor:
        """(B, Y, X, V) of a map that is already rolled.

        `mask_PTT` is added to the logits of each window, all row by row; without, it is made from `shift`. A map
        with a side no larger than the window counts as not rolled. `queries_BHWC`, head by head, are wanted where the
        variant has its queries given.
        """
        x_BHWI = self.norm(x_BHWI)
        if not self.has_attention:
            out_BYXV = self._convolution_alone(x_BHWI)
        elif not self.has_convolution:
            attended_BYXC = self._attended(self.qkv(x_BHWI), mask_PTT, queries_BHWC, packed=False)
            out_BYXV = F.linear(attended_BYXC, *self._scaled_proj())
        else:
            features_BHWF = pointwise(x_BHWI, self._projection("weight"), self._projection("bias"))
            attended_BYXC = self._attended(features_BHWF, mask_PTT, queries_BHWC, packed=True)
            out_BYXV = self._sum(attended_BYXC, *self._convolution_of_map(features_BHWF))
        dropped_BYXV: Tensor = self.proj_drop(out_BYXV)
        return dropped_BYXV

    def macs(self, x_shape: torch.Size) -> int:
        batch, height, width, in_channels = x_shape
        attended = -(-height // self.stride) * -(-width // self.stride)
        norm = 0 if isinstance(self.norm, nn.Identity) else 2 * in_channels  # as norms count everywhere
        projection = norm + self.parts * in_channels * self.dim
        attention = (2 * self.window**2 * self.dim + self.dim * self.copies * self.groups) * self.has_attention
        convolution = self._convolution_macs(height, width, maps=self.parts * self.heads)
        return batch * (projection * height * width + attention * attended + convolution)

    def _projection(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of `qkv`, its rows in the order of F."""
        return packed(getattr(self.qkv, parameter), heads=self.heads, head_channels=self.groups)

    def _attended(
        self, map_BHWF: Tensor, mask_PTT: Tensor | None, queries_BHWC: Tensor | None, *, packed: bool
    ) -> Tensor:
        """What `proj` is to project, (B, Y, X, C), head-major."""
        attended_BYXC = window_attention(
            map_BHWF,
            by_offset(self.relative_position_bias_table, self.window) if self.scoring is None else self.scoring,
            mask_PTT,
            heads=self.heads,
            window=self.window,
            shift=self.shift,
            packed=packed,
            grid=self.grid,
            queries_BHWC=queries_BHWC,
        )
        if self.tracing:
            with torch.no_grad():  # alpha is folded into `proj`, so the attention before it takes another pass
                self.attention_rms = rms(self.proj(attended_BYXC))
        return attended_BYXC

    def _scaled_proj(self) -> tuple[Tensor, Tensor]:
        """alpha * weight and alpha * bias of `proj`."""
        alpha = self.strengths()[0]
        if isinstance(alpha, Tensor):
            return alpha * self.proj.weight, alpha * self.proj.bias
        return self.proj.weight, self.proj.bias

    def _sum(self, attended_BYXC: Tensor, convolution_BYXV: Tensor, bias_1YXV: Tensor | None) -> Tensor:
        """alpha * attention + beta * convolution, (B, Y, X, V), added in place: a new tensor is a pass over memory."""
        weight_VC, bias = self._scaled_proj()
        if bias_1YXV is not None:
            bias = bias + bias_1YXV
        attended_LC, convolution_LV = attended_BYXC.flatten(0, 2), convolution_BYXV.flatten(0, 2)
        out_LV = (
            bias.to(attended_LC.dtype)
            .expand(convolution_BYXV.shape)
            .clone(memory_format=torch.contiguous_format)
            .view(-1, bias.shape[-1])
        )
        out_LV.addmm_(attended_LC, weight_VC.mT.to(attended_LC.dtype)).add_(convolution_LV)
        return out_LV.view(convolution_BYXV.shape)

    def _convolution_of_map(self, features_BHWF: Tensor) -> tuple[Tensor, Tensor | None]:
        """beta * convolution in two parts, (B, Y, X, V) and (1, Y, X, V); it skips `proj`."""
        by = self._unrolled_by(features_BHWF)
        out_BVYX, bias_1VYX = self._convolution_and_bias(roll(features_BHWF, -by).movedim(-1, 1))
        bias_1YXV = None if bias_1VYX is None else roll(bias_1VYX.movedim(1, -1), by)
        return roll(out_BVYX.movedim(1, -1), by), bias_1YXV

    def _convolution_alone(self, x_BHWI: Tensor) -> Tensor:
        if self.parts * self.heads < self.kernel_conv**2:  # fewer maps than taps: projecting costs less than its fold
            features_BHWF = pointwise(x_BHWI, self._projection("weight"), self._projection("bias"))
            out_BYXV, bias_1YXV = self._convolution_of_map(features_BHWF)
            return out_BYXV if bias_1YXV is None else out_BYXV + bias_1YXV
        by = self._unrolled_by(x_BHWI)
        map_BIHW = roll(x_BHWI, -by).movedim(-1, 1)
        out_BVYX = self._convolution_of(map_BIHW, self._projection("weight"), self._projection("bias"))
        return roll(out_BVYX.movedim(1, -1), by)

    def _unrolled_by(self, map_BHWC: Tensor) -> int:
        """By how much the convolution's map is to be unrolled."""
        height, width = map_BHWC.shape[1:3]
        return 0 if self.roll_convolution else rolled_by(height, width, window=self.window, shift=self.shift)

    def extra_repr(self) -> str:
        names = ("dim", "window", "heads", "shift", "roll_convolution", "kernel_conv", "combine")
        return ", ".join([f"{name}={getattr(self, name)}" for name in names] + [f"conv_shift={self.shift_form}"])
