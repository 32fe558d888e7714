"""How window attentions of timm make logits, where that is not by a bias for every offset: timm's own parameters.

Each is an acmix.ops.window_attention.Scoring. Logits are scaled by D^-1/2 afterwards; where timm does not scale them,
queries are multiplied by D^1/2 here.
"""

# Shapes: B batch, P windows, N heads, T positions of a window, Q those that query, D channels a head,
#         A offsets, R what a network reads of an offset

import math
from math import isqrt

import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor, nn

_Scored = tuple[Tensor, Tensor, Tensor | None]
_HIGHEST_SCALE = math.log(100)


class BiasScoring(nn.Module):
    """Products, and the bias that a module of timm makes: from a table laid out otherwise, or by a network."""

    def __init__(self, bias: nn.Module) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, q_BPNTD: Tensor, k_BPNTD: Tensor) -> _Scored:
        bias: Tensor = self.bias.get_bias()  # type: ignore[operator]  # timm's modules have it
        return q_BPNTD, k_BPNTD, bias.view(-1, *bias.shape[-2:])


class MirroredScoring(nn.Module):
    """Products, and a bias that is the same for an offset and its mirror images, as in TinyViT."""

    offset: Tensor

    def __init__(self, attention_biases: nn.Parameter, offset_TT: Tensor) -> None:
        super().__init__()
        self.attention_biases = attention_biases
        self.register_buffer("offset", offset_TT, persistent=False)

    def forward(self, q_BPNTD: Tensor, k_BPNTD: Tensor) -> _Scored:
        return q_BPNTD, k_BPNTD, self.attention_biases[:, self.offset]


class CosineScoring(nn.Module):
    """Cosines of queries and keys with a learned scale a head, and a bias that a network makes of each offset."""

    def __init__(self, logit_scale: nn.Parameter) -> None:
        super().__init__()
        self.logit_scale = logit_scale

    def forward(self, q_BPNTD: Tensor, k_BPNTD: Tensor) -> _Scored:
        scale_N11 = self.logit_scale.clamp(max=_HIGHEST_SCALE).exp().view(-1, 1, 1) * q_BPNTD.shape[-1] ** 0.5
        return F.normalize(q_BPNTD, dim=-1) * scale_N11, F.normalize(k_BPNTD, dim=-1), self.bias()

    def bias(self) -> Tensor:
        """(N, T, T)."""
        raise NotImplementedError


class SwinV2Scoring(CosineScoring):
    """That of Swin V2: the network sees each offset once, and its sigmoid is the bias, 0 to 16."""

    index: Tensor

    def __init__(self, logit_scale: nn.Parameter, network: nn.Module, offset_AR: Tensor, index_TT: Tensor) -> None:
        super().__init__(logit_scale)
        self.cpb_mlp = network
        self.register_buffer("offset", offset_AR, persistent=False)
        self.register_buffer("index", index_TT, persistent=False)

    def bias(self) -> Tensor:
        bias_AN = 16 * torch.sigmoid(self.cpb_mlp(self.offset))
        return bias_AN[self.index].permute(2, 0, 1)


class SwinV2CrScoring(CosineScoring):
    """That of timm's other Swin V2: the network sees the offset of every pair."""

    def __init__(self, logit_scale: nn.Parameter, network: nn.Module, offset_TTR: Tensor) -> None:
        super().__init__(logit_scale)
        self.meta_mlp = network
        self.register_buffer("offset", offset_TTR, persistent=False)

    def bias(self) -> Tensor:
        bias_TTN: Tensor = self.meta_mlp(self.offset)
        return bias_TTN.permute(2, 0, 1)


class DecomposedScoring(nn.Module):
    """Products of normalized queries and keys, and of queries with learned rows and columns of offsets, as in SAM."""

    def __init__(self, q_norm: nn.Module, k_norm: nn.Module, rows: nn.Parameter, columns: nn.Parameter) -> None:
        super().__init__()
        self.q_norm, self.k_norm = q_norm, k_norm
        self.rel_pos_h, self.rel_pos_w = rows, columns

    def forward(self, q_BPNTD: Tensor, k_BPNTD: Tensor) -> _Scored:
        q_BPNTD, k_BPNTD = self.q_norm(q_BPNTD), self.k_norm(k_BPNTD)
        sides = (isqrt(q_BPNTD.shape[3]),) * 2
        bias: Tensor = get_decomposed_rel_pos_bias(q_BPNTD.flatten(0, 2), self.rel_pos_h, self.rel_pos_w, sides, sides)
        return q_BPNTD, k_BPNTD, bias.view(*q_BPNTD.shape[:4], -1)


class PooledScoring(nn.Module):
    """Products of keys with the largest of every square of queries, as in Hiera."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, q_BPNTD: Tensor, k_BPNTD: Tensor) -> _Scored:
        parts = (isqrt(q_BPNTD.shape[3]) // self.stride, self.stride)
        q_BPNQD = torch.unflatten(q_BPNTD, 3, parts * 2).amax((4, 6)).flatten(3, 4)
        return q_BPNQD, k_BPNTD, None
