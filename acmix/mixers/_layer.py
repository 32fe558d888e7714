"""What every form of ACmix has in common: how its two paths are combined, the convolution path, and the trace."""

# Shapes: B batch, N heads, D channels a head, C = N*D, I in channels, M maps of D channels (all q heads, all k heads,
#         all v heads), F = D*M features (channel i*M+m is channel i of map m), H W map, Y X output map, T kernel taps,
#         U V kernel, O = C, D or 1 output channels (see acmix.ops.shift_conv)

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.ops.pointwise import pointwise
from acmix.ops.shift_conv import Shift, composed, shift_conv, shift_kernels

Combine = Literal["convolution", "attention", "sum", "complement", "alpha_beta"]

LEARNED: dict[Combine, tuple[str, ...]] = {"alpha_beta": ("alpha", "beta"), "complement": ("alpha",)}
FIXED: dict[Combine, tuple[float, float]] = {"convolution": (0.0, 1.0), "attention": (1.0, 0.0), "sum": (1.0, 1.0)}

# What the forms' `replacing` take.
CombineOption = Annotated[
    Combine,
    Field(
        description="one path alone, the sum of both, alpha and 1 - alpha, or alpha and beta; a path left out holds no "
        "parameters"
    ),
]
ShiftOption = Annotated[
    Shift,
    Field(
        description="how taps are shifted and summed: full_group learns kernels for every head, grouped_learned some "
        "that all heads share; the other three compute the same fixed shifts"
    ),
]
KernelConv = Annotated[
    Literal[1, 3, 5, 7, 9, 11],  # `dep_conv` has kernel_conv^4 weights an output channel
    Field(description="side of the convolution's kernel"),
]
AlphaOption = Annotated[
    float | None,
    Field(
        ge=-10,
        le=10,
        description="initial alpha, 0.5 when null",
        json_schema_extra={"onlyWith": {"combine": ["complement", "alpha_beta"]}},
    ),
]
BetaOption = Annotated[
    float | None,
    Field(
        ge=-10,
        le=10,
        description="initial beta, 0.5 when null",
        json_schema_extra={"onlyWith": {"combine": ["alpha_beta"]}},
    ),
]


class ACmixLayer(nn.Module):
    """`alpha * attention + beta * convolution`, or what `combine` makes of the two.

    While `tracing`, a forward leaves the root mean square of both paths' outputs over the batch, before alpha and
    beta, in `attention_rms` and `convolution_rms`; it changes nothing else.
    """

    def __init__(self, combine: Combine, alpha: float | None, beta: float | None) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if name in LEARNED.get(combine, ()):
                self.register_parameter(name, nn.Parameter(torch.full((1,), 0.5 if value is None else value)))
            elif value is not None:
                learning = " or ".join(way for way, names in LEARNED.items() if name in names)
                raise OptionInvalid(f"{name}={value} has no place with combine={combine!r}; {learning} learns it")
        self.combine = combine
        self.has_attention = combine != "convolution"
        self.has_convolution = combine != "attention"
        self.tracing = False
        self.attention_rms: Tensor | None = None
        self.convolution_rms: Tensor | None = None

    def strengths(self) -> tuple[Tensor | float, Tensor | float]:
        """alpha and beta as they count: parameters of shape (1,), 1 - alpha, or numbers that `combine` fixes."""
        if self.combine in FIXED:
            return FIXED[self.combine]
        alpha: Tensor = self.get_parameter("alpha")
        return alpha, 1 - alpha if self.combine == "complement" else self.get_parameter("beta")

    @torch.no_grad()
    def figures(self) -> Tensor:
        """alpha, beta, attention_rms and convolution_rms, float32 (4,); a path left out has none of either: 0."""
        like = next(self.parameters())
        columns = (*self.strengths(), self.attention_rms, self.convolution_rms)
        return torch.stack(
            [torch.as_tensor(0.0 if each is None else each, device=like.device).float().reshape(()) for each in columns]
        )

    def macs(self, x_shape: torch.Size) -> int:
        """Multiply-adds of the definition for an input of that shape, whatever form computes it."""
        raise NotImplementedError

    def _build_convolution(
        self,
        channels: int,
        heads: int,
        *,
        maps: int,
        kernel_conv: int,
        shift: Shift,
        stride: int = 1,
        out_channels: int | None = None,
        bias: bool,
    ) -> None:
        """Make `fc` and, where kernels are learned, `dep_conv`; nothing where the convolution is left out.

        As many channels come out as go in, or `out_channels`, a multiple of those of a head.
        """
        check_odd(kernel_conv=kernel_conv)
        self.heads, self.kernel_conv, self.shift_form, self.stride = heads, kernel_conv, shift, stride
        self.groups, taps = channels // heads, kernel_conv**2
        self.copies = (channels if out_channels is None else out_channels) // self.groups  # channels out of a group
        self.learns_shifts = self.has_convolution and shift in ("grouped_learned", "full_group")
        if self.has_convolution:
            self.fc = nn.Conv2d(maps, taps, 1, bias=bias)
        if self.learns_shifts:
            outputs = self.groups * self.copies if shift == "full_group" else self.groups
            self.dep_conv = nn.Conv2d(
                taps * self.groups,
                outputs,
                kernel_conv,
                stride,
                padding=kernel_conv // 2,
                groups=self.groups,
                bias=False,
            )
            self.reset_shifts()

    @torch.no_grad()
    def reset_shifts(self) -> None:
        """Make `dep_conv` shift and sum again, as at the start of training."""
        if self.learns_shifts:
            self.dep_conv.weight.copy_(shift_kernels(self.dep_conv.out_channels, self.kernel_conv))

    def _convolution(self, features_BFHW: Tensor) -> Tensor:
        """beta * convolution, (B, C, Y, X); output channel i*N+n reads channel i of all maps."""
        out_BCYX, bias_1CYX = self._convolution_and_bias(features_BFHW)
        return out_BCYX if bias_1CYX is None else out_BCYX + bias_1CYX

    def _convolution_and_bias(self, features_BFHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same in two parts: without the bias of `fc`, and the map that the bias adds, the same for all images.

        The bias lies before the zero padding, so that less of it arrives at the borders.
        """
        return self._shifted(features_BFHW, self.fc.weight.flatten(1), self.fc.bias)

    def _convolution_of(self, x_BIHW: Tensor, projection_FI: Tensor, bias_F: Tensor) -> Tensor:
        """The same of a projection that nothing else reads: with `fc` it is one 1x1, before the zero padding."""
        mixing_TM = self.fc.weight.flatten(1)
        folded_DTI = torch.einsum("tm,dmi->dti", mixing_TM, torch.unflatten(projection_FI, 0, (self.groups, -1)))
        bias_DT = F.linear(torch.unflatten(bias_F, 0, (self.groups, -1)), mixing_TM, self.fc.bias)
        taps_BHWF = pointwise(x_BIHW.movedim(1, -1), folded_DTI.flatten(0, 1), bias_DT.flatten())
        return self._shifted(taps_BHWF.movedim(-1, 1), None, None)[0]

    def _shifted(
        self, features_BFHW: Tensor, mixing_TM: Tensor | None, bias_T: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        kernel_OTUV = self._shift_kernel()
        kernel_OMUV = kernel_OTUV if mixing_TM is None else composed(mixing_TM, kernel_OTUV)
        border_O1UV = None if bias_T is None else composed(bias_T[:, None], kernel_OTUV)
        if self.tracing:
            with torch.no_grad():  # beta is folded into the kernel, so the convolution before it takes another pass
                out, bias = self._spread(features_BFHW, kernel_OMUV, border_O1UV)
                self.convolution_rms = rms(out if bias is None else out + bias)
        beta = self.strengths()[1]
        if isinstance(beta, Tensor):
            kernel_OMUV, border_O1UV = beta * kernel_OMUV, None if border_O1UV is None else beta * border_O1UV
        return self._spread(features_BFHW, kernel_OMUV, border_O1UV)

    def _shift_kernel(self) -> Tensor:
        if self.learns_shifts:
            return self.dep_conv.weight
        return shift_kernels(1, self.kernel_conv).to(self.fc.weight)

    def _spread(
        self, features_BFHW: Tensor, kernel_OMUV: Tensor, border_O1UV: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C, Y, X) and (1, C, Y, X)."""
        out_BCYX = self._to_all_heads(shift_conv(features_BFHW, kernel_OMUV, groups=self.groups, stride=self.stride))
        if border_O1UV is None:
            return out_BCYX, None
        ones_11HW = torch.ones_like(features_BFHW[:1, :1])
        kernel_O1UV = border_O1UV.expand(max(len(border_O1UV), self.groups), -1, -1, -1).to(ones_11HW.dtype)
        bias_1OYX = F.conv2d(ones_11HW, kernel_O1UV, stride=self.stride, padding=self.kernel_conv // 2)
        return out_BCYX, self._to_all_heads(bias_1OYX)

    def _to_all_heads(self, map_BOYX: Tensor) -> Tensor:
        """(B, C, Y, X): kernels that all heads share give their map to each of them."""
        if map_BOYX.shape[1] == self.groups and self.copies > 1:
            return map_BOYX.unsqueeze(2).expand(-1, -1, self.copies, -1, -1).flatten(1, 2)
        return map_BOYX

    def _mixed(self, attention: Tensor, convolution: Tensor) -> Tensor:
        """alpha * attention + what `_convolution` gave, of one shape."""
        alpha = self._traced(attention)
        if isinstance(alpha, Tensor):
            return torch.addcmul(convolution, attention, alpha.to(attention.dtype))
        return attention + convolution

    def _traced(self, attention: Tensor) -> Tensor | float:
        """alpha; and the attention's root mean square is left where a trace is taken."""
        if self.tracing:
            self.attention_rms = rms(attention)
        return self.strengths()[0]

    def _convolution_macs(self, height: int, width: int, *, maps: int) -> int:
        """Of one image: `fc` on the map, and what the shifts cost in the form that `shift` names."""
        if not self.has_convolution:
            return 0
        taps, positions = self.kernel_conv**2, -(-height // self.stride) * -(-width // self.stride)
        a_position = {
            "tensor": 0,
            "depthwise_fixed": taps * taps * self.groups,
            "grouped_fixed": taps * taps * self.groups,
            "grouped_learned": taps * taps * self.groups,
            "full_group": taps * taps * self.groups * self.copies,
        }
        return maps * taps * self.groups * height * width + a_position[self.shift_form] * positions


def packed(*rows: Tensor, heads: int, head_channels: int) -> Tensor:
    """Rows of projections one after the other, each head-major, in the order of F: channel i of all maps."""
    maps_DSN = [torch.unflatten(each, 0, (-1, heads, head_channels)).movedim(2, 0) for each in rows]
    return torch.cat(maps_DSN, dim=1).flatten(0, 2)


def rms(path: Tensor) -> Tensor:
    """Root mean square of all elements, a detached scalar."""
    return path.detach().float().square().mean().sqrt()


def check_divides(heads: int, channels: int) -> None:
    """ShapeMismatch, naming what would do, unless `heads` divides `channels`."""
    if heads < 1 or channels % heads:
        *others, last = (str(divisor) for divisor in range(1, channels + 1) if channels % divisor == 0)
        would_do = f"{', '.join(others)} and {last} do" if others else f"{last} does"
        raise ShapeMismatch(f"heads={heads} does not divide {channels} channels; {would_do}")


def check_odd(**kernels: int) -> None:
    """OptionInvalid for a kernel side without a centre."""
    for name, side in kernels.items():
        if side < 1 or side % 2 == 0:
            raise OptionInvalid(f"{name}={side} has no centre; odd sides do: 1, 3, 5, 7, ...")
