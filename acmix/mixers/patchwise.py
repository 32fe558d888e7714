"""ACmix in place of SAN's patchwise self-attention.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4; its SAN rows
were published without code, so how maps line up is designed here. The attention has C/16 channels of q and of k and
C/4 of v, so that heads of one width D = C/4/N cut q and k into N/4 maps each and v into N: `fc` mixes these 3N/2 maps.
Weighed were, for SAN-10, SAN-15 and SAN-19 with 12.1, 16.6 and 21.2M parameters and 1.9, 2.7 and 3.4G multiply-adds
published (benchmarks/sizes.py prints those of the form taken):

- these 3N/2 maps: 12.0, 16.4 and 20.8M, 1.96, 2.74 and 3.46G. Taken: nothing is made that attention does not need;
- q and k repeated to the width of v, 3N maps: the same parameters, 1.98, 2.76 and 3.49G, for no new map;
- q and k of C/4 channels for the convolution alone: 16.5, 23.7 and 30.9M, 2.85, 4.07 and 5.21G, and not shared;
- v alone, N maps: 12.0, 16.4 and 20.8M, 1.96, 2.73 and 3.45G, but the convolution sees neither q nor k.
"""

# Shapes: B batch, C in channels, R = C/16 channels of q and of k, V = C/4 channels of v and out, N heads, D = V/N
#         channels a map, M = 3N/2 maps (N/4 of q, N/4 of k, N of v), F = D*M features (channel i*M+m is channel i of
#         map m), H W map

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones.san import PatchwiseAttention, attention_macs, projection_macs, projections, weighing
from acmix.errors import ShapeMismatch
from acmix.mixers._layer import (
    ACmixLayer,
    AlphaOption,
    BetaOption,
    Combine,
    CombineOption,
    KernelConv,
    ShiftOption,
    check_divides,
    check_odd,
)
from acmix.ops.patchwise_attention import patchwise_attention
from acmix.ops.shift_conv import Shift


class ACmixPatchwise(ACmixLayer):
    """Patchwise attention over a window around each position, and a convolution, on shared 1x1 projections."""

    name = "acmix"
    fits = "patchwise"
    divides_channels = "heads"

    def __init__(
        self,
        in_channels: int,
        *,
        window: int = 7,
        heads: int = 4,
        kernel_conv: int = 3,
        combine: Combine = "alpha_beta",
        shift: Shift = "full_group",
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        """`in_channels` is a multiple of 32; a quarter as many come out."""
        super().__init__(combine, alpha, beta)
        self.in_channels, self.out_channels, self.window = in_channels, in_channels // 4, window
        check_divides(heads, self.out_channels)
        if heads % 4:
            raise ShapeMismatch(f"heads={heads} is no multiple of 4, and q and k have heads / 4 maps each; 4 does")
        check_odd(window=window)
        self.q_proj, self.k_proj, self.v_proj = projections(in_channels)
        if self.has_attention:
            self.weighing = weighing(in_channels, window)
        self._build_convolution(
            self.out_channels, heads, maps=3 * heads // 2, kernel_conv=kernel_conv, shift=shift, bias=False
        )

    @classmethod
    def slot_of(cls, layer: nn.Module) -> tuple[int, int] | None:
        """(channels, stride) of SAN's patchwise attention."""
        return (layer.out_channels, 1) if isinstance(layer, PatchwiseAttention) else None

    @classmethod
    def replacing(
        cls,
        layer: PatchwiseAttention,
        *,
        heads: Annotated[
            int, Field(ge=4, le=1024, multiple_of=4, description="must divide the layer's output channels")
        ] = 4,
        kernel_conv: KernelConv = 3,
        combine: CombineOption = "alpha_beta",
        shift: ShiftOption = "full_group",
        alpha: AlphaOption = None,
        beta: BetaOption = None,
    ) -> Self:
        """A layer with the channels, the window and the weights of `layer`."""
        made = cls(
            layer.in_channels,
            window=layer.window,
            heads=heads,
            kernel_conv=kernel_conv,
            combine=combine,
            shift=shift,
            alpha=alpha,
            beta=beta,
        )
        made.load_state_dict(layer.state_dict(), strict=False)  # without attention nothing is weighed
        return made

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, V, H, W)."""
        projection_FC11, bias_F = self._projection("weight"), self._projection("bias")
        if not self.has_attention:
            return self._convolution_of(x_BCHW, projection_FC11.flatten(1), bias_F)
        features_BFHW = F.conv2d(x_BCHW, projection_FC11, bias_F)
        attention_BVHW = self._attention(features_BFHW)
        if not self.has_convolution:
            self._traced(attention_BVHW)
            return attention_BVHW
        return self._mixed(attention_BVHW, self._convolution(features_BFHW))

    def macs(self, x_shape: torch.Size) -> int:
        batch, _, height, width = x_shape
        attention = attention_macs(self.in_channels, self.window) * self.has_attention
        a_position = projection_macs(self.in_channels) + attention
        convolution = self._convolution_macs(height, width, maps=3 * self.heads // 2)
        return batch * (a_position * height * width + convolution)

    def _projection(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of the three projections as of one, its rows in the order of F."""
        parts = [getattr(projection, parameter) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.unflatten(torch.cat(parts), 0, (-1, self.groups)).transpose(0, 1).flatten(0, 1)

    def _attention(self, features_BFHW: Tensor) -> Tensor:
        """(B, V, H, W), head-major: channel n*D+i."""
        maps_BMDHW = torch.unflatten(features_BFHW, 1, (self.groups, -1)).transpose(1, 2)
        quarter = self.heads // 4
        parts = torch.split(maps_BMDHW, [quarter, quarter, self.heads], dim=1)
        q_BRHW, k_BRHW, v_BVHW = (part.flatten(1, 2) for part in parts)
        return patchwise_attention(q_BRHW, k_BRHW, v_BVHW, self.weighing, window=self.window)

    def extra_repr(self) -> str:
        names = ("in_channels", "window", "heads", "kernel_conv", "combine")
        return ", ".join([f"{name}={getattr(self, name)}" for name in names] + [f"shift={self.shift_form}"])
