"""ACmix in place of the attention within windows, as in the authors' Swin Transformer.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4.
Deviation from the authors' code: same function of the same parameters, computed by acmix.ops; any map size; the
convolution can run on the map as it is in the image, where theirs mixes opposite edges of a rolled one.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, H W map, F = 3*C features (channel i*3N+m is channel i of map m:
#         all q heads, all k heads, all v heads), P windows, T positions of a window, O offsets within a window

from typing import Annotated, Literal, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones.swin import WindowAttention
from acmix.errors import OptionInvalid
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
from acmix.ops.shift_conv import Shift
from acmix.ops.window_attention import roll, rolled_by, window_attention


@runtime_checkable
class WindowLayer(Protocol):
    """A window attention of any backbone whose block hands an ACmixWindow in its place the whole map."""

    qkv: nn.Linear

    def as_window_attention(self) -> WindowAttention:
        """The same attention as ours, with the same weights."""


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
    ) -> None:
        """`shift` is by how much the block rolls its maps, `conv_shift` how the convolution shifts its taps.

        With `roll_convolution` the convolution runs on the rolled map, as in the authors' code; without, on the map
        unrolled. `dropout` is that of the sum of both paths.
        """
        super().__init__(combine, alpha, beta)
        check_divides(heads, dim)
        if not 0 <= shift < window:
            raise OptionInvalid(f"shift={shift} is no part of a window of {window}; 0 to {window - 1} are")
        self.dim, self.window, self.shift, self.roll_convolution = dim, window, shift, roll_convolution
        self.qkv = nn.Linear(dim, 3 * dim)
        if self.has_attention:
            self.proj = nn.Linear(dim, dim)
            self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._build_convolution(dim, heads, maps=3 * heads, kernel_conv=kernel_conv, shift=conv_shift, bias=True)
        self.proj_drop = nn.Dropout(dropout)

    @classmethod
    def slot_of(cls, layer: nn.Module) -> tuple[int, int] | None:
        """(channels, stride) of a Swin's attention or of one like it; it keeps the map's size."""
        return (layer.qkv.in_features, 1) if isinstance(layer, WindowLayer) else None

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
        own = layer.as_window_attention()
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
            dropout=own.proj_drop.p,
        ).to(own.qkv.weight.dtype)
        places = replacement.state_dict()
        kept = {key: value for key, value in own.state_dict().items() if key in places}
        if replacement.heads != own.heads:
            kept.pop("relative_position_bias_table", None)
        replacement.load_state_dict(kept, strict=False)
        return replacement

    def forward(self, x_BHWC: Tensor, mask_PTT: Tensor | None = None) -> Tensor:
        """(B, H, W, C) of a map that is already rolled.

        `mask_PTT` is added to the logits of each window, all row by row; without, it is made from `shift`. A map
        with a side no larger than the window counts as not rolled.
        """
        if not self.has_attention:
            out_BHWC = self._convolution_alone(x_BHWC)
        elif not self.has_convolution:
            maps_3BHWND = torch.unflatten(self.qkv(x_BHWC), 3, (3, self.heads, -1)).permute(3, 0, 1, 2, 4, 5)
            out_BHWC = self._attention(maps_3BHWND, mask_PTT)
        else:
            features_BHWF = F.linear(x_BHWC, self._projection("weight"), self._projection("bias"))
            maps_3BHWND = torch.unflatten(features_BHWF, 3, (-1, 3, self.heads)).permute(4, 0, 1, 2, 5, 3)
            out_BHWC = self._attention(maps_3BHWND, mask_PTT) + self._convolution_of_map(features_BHWF)
        dropped_BHWC: Tensor = self.proj_drop(out_BHWC)
        return dropped_BHWC

    def macs(self, x_shape: torch.Size) -> int:
        batch, height, width, dim = x_shape
        attention = (2 * self.window**2 * dim + dim * dim) * self.has_attention
        convolution = self._convolution_macs(height, width, maps=3 * self.heads)
        return batch * ((3 * dim * dim + attention) * height * width + convolution)

    def _projection(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of `qkv`, its rows in the order of F."""
        return packed(getattr(self.qkv, parameter), self.heads)

    def _attention(self, maps_3BHWND: Tensor, mask_PTT: Tensor | None) -> Tensor:
        """alpha * attention, (B, H, W, C), head-major."""
        table_ON = self.relative_position_bias_table
        attended_BHWC = window_attention(maps_3BHWND, table_ON, mask_PTT, window=self.window, shift=self.shift)
        if self.tracing:
            with torch.no_grad():  # alpha is folded into `proj`, so the attention before it takes another pass
                self.attention_rms = rms(self.proj(attended_BHWC))
        alpha = self.strengths()[0]
        if isinstance(alpha, Tensor):
            return F.linear(attended_BHWC, alpha * self.proj.weight, alpha * self.proj.bias)
        projected_BHWC: Tensor = self.proj(attended_BHWC)
        return projected_BHWC

    def _convolution_of_map(self, features_BHWF: Tensor) -> Tensor:
        """beta * convolution, (B, H, W, C); it skips `proj`."""
        by = self._unrolled_by(features_BHWF)
        map_BFHW = roll(features_BHWF, -by).movedim(-1, 1)
        return roll(self._convolution(map_BFHW).movedim(1, -1), by)

    def _convolution_alone(self, x_BHWC: Tensor) -> Tensor:
        if 3 * self.heads < self.kernel_conv**2:  # fewer maps than taps: the projection costs less than its fold
            return self._convolution_of_map(F.linear(x_BHWC, self._projection("weight"), self._projection("bias")))
        by = self._unrolled_by(x_BHWC)
        map_BCHW = roll(x_BHWC, -by).movedim(-1, 1)
        out_BCHW = self._convolution_of(map_BCHW, self._projection("weight"), self._projection("bias"))
        return roll(out_BCHW.movedim(1, -1), by)

    def _unrolled_by(self, map_BHWC: Tensor) -> int:
        """By how much the convolution's map is to be unrolled."""
        height, width = map_BHWC.shape[1:3]
        return 0 if self.roll_convolution else rolled_by(height, width, window=self.window, shift=self.shift)

    def extra_repr(self) -> str:
        names = ("dim", "window", "heads", "shift", "roll_convolution", "kernel_conv", "combine")
        return ", ".join([f"{name}={getattr(self, name)}" for name in names] + [f"conv_shift={self.shift_form}"])
