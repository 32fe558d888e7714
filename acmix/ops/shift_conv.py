"""The convolution path of ACmix: mix all heads' maps into one map a kernel tap, then shift and sum the taps.

Source: paper, sections 3.1 and 3.3, and its ablation of shifts (tensor, depthwise, grouped; fixed or learned).
Deviation from the authors' code: `fc` and the shifts are linear with nothing in between, so they are composed into
one grouped convolution; the map with kernel_conv^2 maps a channel never exists. The three fixed shifts are one
function, so they are one composition; the witnesses below keep them apart.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, M maps of D channels (3*N), F = D*M features (channel i*M+m is
#         channel i of map m), H W map, Y X output map, T kernel taps, U V kernel, O = C, D or 1 output channels:
#         one a channel, one for all heads, one for all heads and channels

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Shift = Literal["tensor", "depthwise_fixed", "grouped_fixed", "grouped_learned", "full_group"]


def shift_conv(features_BFHW: Tensor, kernel_OMUV: Tensor, *, groups: int, stride: int = 1) -> Tensor:
    """The convolution path of a kernel that `composed` made, (B, O, Y, X), or (B, D, Y, X) where O is 1."""
    padding = kernel_OMUV.shape[-1] // 2
    if kernel_OMUV.shape[0] > 1 or groups == 1:
        return F.conv2d(features_BFHW, kernel_OMUV, stride=stride, padding=padding, groups=groups)
    # one kernel for all channels: they are a batch to it
    map_LMHW = torch.unflatten(features_BFHW, 1, (groups, -1)).flatten(0, 1)
    shifted_L1YX = F.conv2d(map_LMHW, kernel_OMUV, stride=stride, padding=padding)
    return torch.unflatten(shifted_L1YX.squeeze(1), 0, (-1, groups))


def composed(mixing_TM: Tensor, kernel_OTUV: Tensor) -> Tensor:
    """What mixes maps into taps, and what shifts and sums the taps, as the weights of one convolution, (O, M, U, V)."""
    device_type = (
        mixing_TM.device.type if torch.amp.is_autocast_available(mixing_TM.device.type) else "cpu"
    )  # meta has none
    with torch.autocast(device_type, enabled=False):  # small, and rounded once afterwards instead of twice
        return torch.einsum("otuv,tm->omuv", kernel_OTUV, mixing_TM)


def shift_kernels(channels: int, kernel_conv: int) -> Tensor:
    """Kernels (C, T, U, V) that shift and sum: the kernel of tap t is 1 at its own place, else 0."""
    taps = kernel_conv**2
    return torch.eye(taps).view(taps, kernel_conv, kernel_conv).repeat(channels, 1, 1, 1)


def reference_shift_conv(
    features_BFHW: Tensor, fc_TM11: Tensor, dep_conv_OTUV: Tensor, *, groups: int, stride: int = 1
) -> Tensor:
    """Learned kernels by definition: `fc` on every channel, then each tap's kernel walks over its zero-padded map."""
    channels, taps, side, _ = dep_conv_OTUV.shape
    height, width = features_BFHW.shape[-2:]
    tap_BDTHW = _taps(features_BFHW, fc_TM11, groups)
    padded = F.pad(tap_BDTHW, (side // 2,) * 4)
    outputs_BYX = []
    for channel in range(channels):
        own_BTHW = padded[:, channel // (channels // groups)]
        outputs_BYX.append(
            sum(
                dep_conv_OTUV[channel, t, u, v] * own_BTHW[:, t, u : u + height : stride, v : v + width : stride]
                for t in range(taps)
                for u in range(side)
                for v in range(side)
            )
        )
    return torch.stack(outputs_BYX, dim=1)  # type: ignore[arg-type]  # sum() may be 0 only where there are no taps


def _tensor_shifts(features_BFHW: Tensor, fc_TM11: Tensor, *, groups: int, stride: int = 1) -> Tensor:
    """Every tap's map is moved, zeros coming in; the sum is taken; then the stride."""
    tap_BDTHW = _taps(features_BFHW, fc_TM11, groups)
    side = round(tap_BDTHW.shape[2] ** 0.5)
    height, width = features_BFHW.shape[-2:]
    moved = []
    for tap, map_BDHW in enumerate(tap_BDTHW.unbind(2)):
        down, right = side // 2 - tap // side, side // 2 - tap % side
        padded = F.pad(map_BDHW, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
        moved.append(padded[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width])
    return torch.stack(moved).sum(0)[..., ::stride, ::stride]


def _depthwise_fixed(features_BFHW: Tensor, fc_TM11: Tensor, *, groups: int, stride: int = 1) -> Tensor:
    """A depthwise convolution moves each tap's map, then the sum over taps."""
    tap_BDTHW = _taps(features_BFHW, fc_TM11, groups)
    taps = tap_BDTHW.shape[2]
    side = round(taps**0.5)
    kernel = torch.eye(taps, dtype=fc_TM11.dtype).view(taps, 1, side, side).repeat(groups, 1, 1, 1)
    moved = F.conv2d(tap_BDTHW.flatten(1, 2), kernel, stride=stride, padding=side // 2, groups=groups * taps)
    return torch.unflatten(moved, 1, (groups, taps)).sum(2)


def _grouped_fixed(features_BFHW: Tensor, fc_TM11: Tensor, *, groups: int, stride: int = 1) -> Tensor:
    """One grouped convolution with frozen kernels moves and sums."""
    tap_BDTHW = _taps(features_BFHW, fc_TM11, groups)
    side = round(tap_BDTHW.shape[2] ** 0.5)
    kernel = shift_kernels(groups, side).to(fc_TM11.dtype)
    return F.conv2d(tap_BDTHW.flatten(1, 2), kernel, stride=stride, padding=side // 2, groups=groups)


# the fixed shifts by definition, (B, D, Y, X)
REFERENCES: Mapping[Shift, Callable[..., Tensor]] = MappingProxyType(
    {"tensor": _tensor_shifts, "depthwise_fixed": _depthwise_fixed, "grouped_fixed": _grouped_fixed}
)


def _taps(features_BFHW: Tensor, fc_TM11: Tensor, groups: int) -> Tensor:
    """Every channel's map a tap, (B, D, T, H, W)."""
    return torch.einsum("tm,bdmhw->bdthw", fc_TM11.flatten(1), torch.unflatten(features_BFHW, 1, (groups, -1)))
