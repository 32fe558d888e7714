"""ACmix in place of a convolution, as in the authors' ResNet.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4.
Deviation from the authors' code: same function of the same parameters, computed by acmix.ops instead of by unfolding;
any dtype, device, map size, dilation and odd kernel.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D out channels, I in channels, F = 3*C features (channel i*3N+m is
#         channel i of map m: all q heads, all k heads, all v heads), H W map, Y X output map

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

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
    packed,
)
from acmix.ops.local_attention import packed_attention
from acmix.ops.pointwise import pointwise
from acmix.ops.shift_conv import Shift
from acmix.registry import OddInt


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
        cropped: int = 0,
        combine: Combine = "alpha_beta",
        shift: Shift = "full_group",
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        """`dilation` spreads the attention's window; the convolution stays dense, as in the authors' code.

        `cropped` positions of the map at each edge give no output, as many as an unpadded convolution would lose.
        """
        super().__init__(combine, alpha, beta)
        check_divides(heads, out_channels)
        check_odd(kernel_att=kernel_att)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_att, self.dilation, self.cropped = kernel_att, dilation, cropped
        self.q_proj = nn.Conv2d(in_channels, out_channels, 1)
        self.k_proj = nn.Conv2d(in_channels, out_channels, 1)
        self.v_proj = nn.Conv2d(in_channels, out_channels, 1)
        if self.has_attention:
            # quirk: its bias shifts a query's logits alike and cancels; kept, or authors' checkpoints would not load
            self.position_proj = nn.Conv2d(2, out_channels // heads, 1)
        self._build_convolution(
            out_channels, heads, maps=3 * heads, kernel_conv=kernel_conv, shift=shift, stride=stride, bias=False
        )

    @classmethod
    def slot_of(cls, layer: nn.Module) -> tuple[int, int] | None:
        """(channels, stride) of a 3x3 convolution of one group, padded so that it keeps the map's size or not at all.

        A layer with an attribute `pads_itself` keeps the size whatever its `padding` says.
        """
        if not isinstance(layer, nn.Conv2d):
            return None
        stands_in = (
            layer.kernel_size == (3, 3)
            and layer.groups == 1
            and layer.padding in {"same", "valid", (0, 0), layer.dilation}
            and layer.stride[0] == layer.stride[1]
            and layer.dilation[0] == layer.dilation[1]
        )
        return (layer.out_channels, layer.stride[0]) if stands_in else None

    @classmethod
    def replacing(
        cls,
        layer: nn.Conv2d,
        *,
        heads: Annotated[int, Field(ge=1, le=1024, description="must divide the layer's output channels")] = 4,
        kernel_att: Annotated[OddInt, Field(description="side of the attention's window")] = 7,
        kernel_conv: KernelConv = 3,
        combine: CombineOption = "alpha_beta",
        shift: ShiftOption = "full_group",
        alpha: AlphaOption = None,
        beta: BetaOption = None,
    ) -> Self:
        """A fresh layer with the channels, stride, dilation and output size of `layer`."""
        padded = layer.padding in {"same", layer.dilation} or hasattr(layer, "pads_itself")
        return cls(
            layer.in_channels,
            layer.out_channels,
            kernel_att=kernel_att,
            heads=heads,
            kernel_conv=kernel_conv,
            stride=layer.stride[0],
            dilation=layer.dilation[0],
            cropped=0 if padded else layer.dilation[0],
            combine=combine,
            shift=shift,
            alpha=alpha,
            beta=beta,
        )

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """(B, C, Y, X) with Y = ceil(H / stride), or ceil((H - 2 * cropped) / stride)."""
        projection_FI11, bias_F = self._projection("weight"), self._projection("bias")
        if not self.has_attention:
            return self._cropped(self._convolution_of(x_BIHW, projection_FI11.flatten(1), bias_F), x_BIHW)
        # channels innermost: what the grouped convolution is fastest on
        features_BFHW = pointwise(x_BIHW.movedim(1, -1), projection_FI11.flatten(1), bias_F).movedim(-1, 1)
        attention_BCYX = self._attention(features_BFHW)
        if not self.has_convolution:
            self._traced(attention_BCYX)
            return self._cropped(attention_BCYX, x_BIHW)
        return self._cropped(self._mixed(attention_BCYX, self._convolution(features_BFHW)), x_BIHW)

    def macs(self, x_shape: torch.Size) -> int:
        batch, _, height, width = x_shape
        attended = -(-height // self.stride) * -(-width // self.stride)
        head_channels = self.out_channels // self.heads
        projections = 3 * self.in_channels * self.out_channels * height * width
        attention = 2 * self.kernel_att**2 * self.out_channels * attended + 2 * head_channels * height * width
        convolution = self._convolution_macs(height, width, maps=3 * self.heads)
        return batch * (projections + attention * self.has_attention + convolution)

    def _projection(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of the three projections as of one, its rows in the order of F."""
        parts = [getattr(projection, parameter) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        return packed(*parts, heads=self.heads, head_channels=self.groups)

    def _attention(self, features_BFHW: Tensor) -> Tensor:
        """(B, C, Y, X), head-major: channel n*D+i."""
        return packed_attention(
            features_BFHW,
            self._position(*features_BFHW.shape[-2:]),
            heads=self.heads,
            window=self.kernel_att,
            stride=self.stride,
            dilation=self.dilation,
        ).flatten(1, 2)

    def _cropped(self, out_BCYX: Tensor, x_BIHW: Tensor) -> Tensor:
        """Outputs at the places of an unpadded convolution; with a stride they may be off by less than that."""
        if not self.cropped:
            return out_BCYX
        first = self.cropped // self.stride
        rows, columns = (-(-(side - 2 * self.cropped) // self.stride) for side in x_BIHW.shape[-2:])
        return out_BCYX[..., first : first + rows, first : first + columns]

    def _position(self, height: int, width: int) -> Tensor:
        """What each key's place subtracts from it, (D, H, W). A query's own place adds the same to all its logits."""
        weight_D211, bias_D = self.position_proj.weight, self.position_proj.bias
        assert bias_D is not None
        x_W = torch.linspace(-1, 1, width, dtype=weight_D211.dtype, device=weight_D211.device)
        y_H1 = torch.linspace(-1, 1, height, dtype=weight_D211.dtype, device=weight_D211.device)[:, None]
        x_weight_D11, y_weight_D11 = weight_D211.unbind(1)
        # quirk: times 0, so that the gradient is exactly 0: rounding errors would grow in Adam, and DDP refuses None
        return x_weight_D11 * x_W + y_weight_D11 * y_H1 + 0 * bias_D[:, None, None]

    def extra_repr(self) -> str:
        names = (
            "in_channels",
            "out_channels",
            "kernel_att",
            "heads",
            "kernel_conv",
            "stride",
            "dilation",
            "cropped",
            "combine",
        )
        return ", ".join([f"{name}={getattr(self, name)}" for name in names] + [f"shift={self.shift_form}"])
