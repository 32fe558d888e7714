"""An ACmix layer that computes as the released code does: pad, copy all 49 neighbours out, softmax over the copies.

The slow peer of the benchmarks, after the paper's equations and the authors' order of operations. It shares its
parameters with the layer it is made of, so that both compute the same function of the same weights;
tests/acmix/test_released_form.py holds it to the golden vectors.
"""

# Shapes: B batch, N heads, L = B*N, D channels a head, C = N*D, M = 3*N maps, T kernel taps,
#         J window positions, H W map, P = H*W, Y X output map

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.mixers import ACmixConv2d


class ReleasedForm(nn.Module):
    """`alpha * attention + beta * convolution` by unfolding; only what the authors' own module can do."""

    def __init__(self, layer: ACmixConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """(B, C, Y, X)."""
        layer, (alpha, beta) = self.layer, self.layer.strengths()
        q_BCHW, k_BCHW, v_BCHW = layer.q_proj(x_BIHW), layer.k_proj(x_BIHW), layer.v_proj(x_BIHW)
        attention_BCYX = self._attention(q_BCHW, k_BCHW, v_BCHW)
        convolution_BCYX = self._convolution(q_BCHW, k_BCHW, v_BCHW)
        return alpha * attention_BCYX + beta * convolution_BCYX

    def _attention(self, q_BCHW: Tensor, k_BCHW: Tensor, v_BCHW: Tensor) -> Tensor:
        layer, (batch, channels, height, width) = self.layer, q_BCHW.shape
        lanes, head_channels = batch * layer.heads, channels // layer.heads
        position_1DHW = layer.position_proj(_grid(height, width, q_BCHW.dtype))
        q_LDHW = q_BCHW.view(lanes, head_channels, height, width) * head_channels**-0.5
        q_LDYX = q_LDHW[..., :: layer.stride, :: layer.stride]
        own_1DYX = position_1DHW[..., :: layer.stride, :: layer.stride]
        k_LDJYX = self._unfolded(k_BCHW.view(lanes, head_channels, height, width))
        position_1DJYX = self._unfolded(position_1DHW)
        logits_LJYX = (q_LDYX.unsqueeze(2) * (k_LDJYX + own_1DYX.unsqueeze(2) - position_1DJYX)).sum(1)
        weights_LJYX = logits_LJYX.softmax(1)
        v_LDJYX = self._unfolded(v_BCHW.view(lanes, head_channels, height, width))
        out_LDYX: Tensor = (weights_LJYX.unsqueeze(1) * v_LDJYX).sum(2)
        return out_LDYX.view(batch, channels, *q_LDYX.shape[-2:])

    def _unfolded(self, map_LDHW: Tensor) -> Tensor:
        """Every neighbour of every query, (L, D, J, Y, X)."""
        window, stride = self.layer.kernel_att, self.layer.stride
        padded = F.pad(map_LDHW, ((window - 1) // 2,) * 4, mode="reflect")
        columns = F.unfold(padded, window, stride=stride)
        height, width = (-(-side // stride) for side in map_LDHW.shape[-2:])
        return columns.view(*map_LDHW.shape[:2], window**2, height, width)

    def _convolution(self, q_BCHW: Tensor, k_BCHW: Tensor, v_BCHW: Tensor) -> Tensor:
        heads, (batch, _, height, width) = self.layer.heads, q_BCHW.shape
        maps = [each.view(batch, heads, -1, height * width) for each in (q_BCHW, k_BCHW, v_BCHW)]
        taps_BTDP = self.layer.fc(torch.cat(maps, dim=1))
        out_BCYX: Tensor = self.layer.dep_conv(taps_BTDP.permute(0, 2, 1, 3).reshape(batch, -1, height, width))
        return out_BCYX


def _grid(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """x over the columns, then y over the rows, both from -1 to 1: (1, 2, H, W)."""
    x_HW = torch.linspace(-1, 1, width, dtype=dtype).expand(height, width)
    y_HW = torch.linspace(-1, 1, height, dtype=dtype)[:, None].expand(height, width)
    return torch.stack([x_HW, y_HW]).unsqueeze(0)


def released(layer: nn.Module) -> nn.Module:
    """The layer's twin on the same parameters."""
    assert isinstance(layer, ACmixConv2d)
    return ReleasedForm(layer)
