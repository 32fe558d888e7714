"""The convolution path of ACmix: mix all heads' maps into one map a kernel tap, then shift and sum the taps.

Source: paper, sections 3.1 and 3.3 (learnable kernels initialised as shifts).
Deviation from the authors' code: `fc` and `dep_conv` are linear with nothing in between, so their weights are
composed into one grouped convolution; the map with kernel_conv^2 maps a channel never exists.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, M = 3*N maps of D channels, F = D*M features (channel i*M+m is
#         channel i of map m), H W map, Y X output map, T kernel taps, U V kernel

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_conv(features_BFHW: Tensor, kernel_CMUV: Tensor, *, stride: int = 1) -> Tensor:
    """The convolution path, (B, C, Y, X), of a kernel that `composed` made. Output channel i*N+n reads channel i."""
    groups = features_BFHW.shape[1] // kernel_CMUV.shape[1]
    return F.conv2d(features_BFHW, kernel_CMUV, stride=stride, padding=kernel_CMUV.shape[-1] // 2, groups=groups)


def composed(fc_TM11: Tensor, dep_conv_CTUV: Tensor) -> Tensor:
    """The weights of `fc` and `dep_conv` as those of one grouped convolution, (C, M, U, V)."""
    device_type = (
        fc_TM11.device.type if torch.amp.is_autocast_available(fc_TM11.device.type) else "cpu"
    )  # meta has none
    with torch.autocast(device_type, enabled=False):  # small, and rounded once afterwards instead of twice
        return torch.einsum("ctuv,tm->cmuv", dep_conv_CTUV, fc_TM11.flatten(1))


def shift_kernels(channels: int, kernel_conv: int) -> Tensor:
    """Kernels (C, T, U, V) that make `dep_conv` shift and sum: the kernel of tap t is 1 at its own place, else 0."""
    taps = kernel_conv**2
    return torch.eye(taps).view(taps, kernel_conv, kernel_conv).repeat(channels, 1, 1, 1)


def reference_shift_conv(
    features_BFHW: Tensor, fc_TM11: Tensor, dep_conv_CTUV: Tensor, *, groups: int, stride: int = 1
) -> Tensor:
    """The same by definition: `fc` on every channel, then each tap's kernel walks over its zero-padded map."""
    channels, taps, side, _ = dep_conv_CTUV.shape
    height, width = features_BFHW.shape[-2:]
    map_BDMHW = torch.unflatten(features_BFHW, 1, (groups, -1))
    tap_BDTHW = torch.einsum("tm,bdmhw->bdthw", fc_TM11.flatten(1), map_BDMHW)
    padded = F.pad(tap_BDTHW, (side // 2,) * 4)
    outputs_BYX = []
    for channel in range(channels):
        own_BTHW = padded[:, channel // (channels // groups)]
        outputs_BYX.append(
            sum(
                dep_conv_CTUV[channel, t, u, v] * own_BTHW[:, t, u : u + height : stride, v : v + width : stride]
                for t in range(taps)
                for u in range(side)
                for v in range(side)
            )
        )
    return torch.stack(outputs_BYX, dim=1)  # type: ignore[arg-type]  # sum() may be 0 only where there are no taps
