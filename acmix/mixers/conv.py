"""ACmix in place of a convolution, as in the authors' ResNet.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4.
Deviation from the authors' code: same function of the same parameters, computed by acmix.ops instead of by unfolding;
any dtype, device, map size, dilation and odd kernel.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D out channels, I in channels, F = 3*C features (channel i*3N+m is
#         channel i of map m: all q heads, all k heads, all v heads), H W map, Y X output map

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers._layer import ACmixLayer, rms
from acmix.ops.local_attention import local_attention
from acmix.ops.shift_conv import composed, shift_conv, shift_kernels
from acmix.registry import OddInt

KernelConv = Literal[1, 3, 5, 7, 9, 11]  # `dep_conv` has kernel_conv^4 weights an output channel


class ACmixConv2d(ACmixLayer):
    """Attention over a window around each position, and a convolution, on shared 1x1 projections."""

    name = "acmix"
    fits = "conv2d"
    divides_channels = "heads"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_att: int = 7,
        heads: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        """`dilation` spreads the attention's window; the convolution stays dense, as in the authors' code."""
        super().__init__()
        _check_divides(heads, out_channels)
        _check_odd(kernel_att=kernel_att, kernel_conv=kernel_conv)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.kernel_att, self.kernel_conv, self.stride, self.dilation = kernel_att, kernel_conv, stride, dilation
        head_channels, taps = out_channels // heads, kernel_conv**2
        self.q_proj = nn.Conv2d(in_channels, out_channels, 1)
        self.k_proj = nn.Conv2d(in_channels, out_channels, 1)
        self.v_proj = nn.Conv2d(in_channels, out_channels, 1)
        # quirk: its bias shifts all logits of a query alike and cancels; kept, or authors' checkpoints would not load
        self.position_proj = nn.Conv2d(2, head_channels, 1)
        self.fc = nn.Conv2d(3 * heads, taps, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            taps * head_channels,
            out_channels,
            kernel_conv,
            stride,
            padding=kernel_conv // 2,
            groups=head_channels,
            bias=False,
        )
        self.reset_shifts()

    @classmethod
    def replacing(
        cls,
        layer: nn.Conv2d,
        *,
        heads: Annotated[int, Field(ge=1, le=1024, description="must divide the layer's output channels")] = 4,
        kernel_att: Annotated[OddInt, Field(description="side of the attention's window")] = 7,
        kernel_conv: Annotated[KernelConv, Field(description="side of the convolution's kernel")] = 3,
        combine: Literal["alpha_beta"] = "alpha_beta",  # noqa: ARG003  # the only choice so far
        shift: Literal["full_group"] = "full_group",  # noqa: ARG003  # the only choice so far
    ) -> Self:
        """A fresh layer with the channels, stride and dilation of `layer`."""
        return cls(
            layer.in_channels,
            layer.out_channels,
            kernel_att=kernel_att,
            heads=heads,
            kernel_conv=kernel_conv,
            stride=layer.stride[0],
            dilation=layer.dilation[0],
        )

    @torch.no_grad()
    def reset_shifts(self) -> None:
        """Make `dep_conv` shift and sum again, as at the start of training."""
        self.dep_conv.weight.copy_(shift_kernels(self.out_channels, self.kernel_conv))

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """(B, C, Y, X) with Y = ceil(H / stride)."""
        features_BFHW = F.conv2d(x_BIHW, self._packed("weight"), self._packed("bias"))
        attention_BCYX = self._attention(features_BFHW)
        kernel_CMUV = composed(self.fc.weight, self.dep_conv.weight)
        convolution_BCYX = shift_conv(features_BFHW, self.beta * kernel_CMUV, stride=self.stride)
        if self.tracing:
            self._trace(features_BFHW.detach(), attention_BCYX, kernel_CMUV.detach())
        return torch.addcmul(convolution_BCYX, attention_BCYX, self.alpha.to(attention_BCYX.dtype))

    def _packed(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of the three projections as of one, its rows in the order of F."""
        parts = [getattr(projection, parameter) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        rows_3ND = torch.unflatten(torch.stack(parts), 1, (self.heads, -1))
        return rows_3ND.movedim(2, 0).flatten(0, 2)

    def _attention(self, features_BFHW: Tensor) -> Tensor:
        """(B, C, Y, X), head-major: channel n*D+i."""
        maps_BD3NHW = torch.unflatten(features_BFHW, 1, (-1, 3, self.heads))
        q_BNDHW, k_BNDHW, v_BNDHW = maps_BD3NHW.permute(2, 0, 3, 1, 4, 5).unbind()
        position_DHW = self._position(*features_BFHW.shape[-2:])
        return local_attention(
            q_BNDHW[..., :: self.stride, :: self.stride],
            k_BNDHW - position_DHW.to(k_BNDHW.dtype),
            v_BNDHW,
            window=self.kernel_att,
            stride=self.stride,
            dilation=self.dilation,
        ).flatten(1, 2)

    def _position(self, height: int, width: int) -> Tensor:
        """What each key's place subtracts from it, (D, H, W). A query's own place adds the same to all its logits."""
        weight_D211, bias_D = self.position_proj.weight, self.position_proj.bias
        assert bias_D is not None
        x_W = torch.linspace(-1, 1, width, dtype=weight_D211.dtype, device=weight_D211.device)
        y_H1 = torch.linspace(-1, 1, height, dtype=weight_D211.dtype, device=weight_D211.device)[:, None]
        x_weight_D11, y_weight_D11 = weight_D211.unbind(1)
        # quirk: times 0, so that the gradient is exactly 0: rounding errors would grow in Adam, and DDP refuses None
        return x_weight_D11 * x_W + y_weight_D11 * y_H1 + 0 * bias_D[:, None, None]

    @torch.no_grad()
    def _trace(self, features_BFHW: Tensor, attention_BCYX: Tensor, kernel_CMUV: Tensor) -> None:
        """Beta is folded into the kernel, so the convolution before it takes another pass."""
        self.attention_rms = rms(attention_BCYX)
        self.convolution_rms = rms(shift_conv(features_BFHW, kernel_CMUV, stride=self.stride))

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_att", "heads", "kernel_conv", "stride", "dilation")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _check_divides(heads: int, channels: int) -> None:
    if heads < 1 or channels % heads:
        *others, last = (str(divisor) for divisor in range(1, channels + 1) if channels % divisor == 0)
        would_do = f"{', '.join(others)} and {last} do" if others else f"{last} does"
        raise ShapeMismatch(f"heads={heads} does not divide {channels} channels; {would_do}")


def _check_odd(**kernels: int) -> None:
    for name, side in kernels.items():
        if side < 1 or side % 2 == 0:
            raise OptionInvalid(f"{name}={side} has no centre; odd sides do: 1, 3, 5, 7, ...")
