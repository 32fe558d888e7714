"""ACmix in place of an attention over a reduced map, as in PVT.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, sections 3 and 4.
Deviation from the authors' code: theirs for PVT was never released; this form is ours. The layer's own q and kv are
stage I. On the whole map they make the 3N maps of the convolution, and q is the attention's too; its keys and values
are the same kv of the map that the layer's own sr and norm have reduced. So the attention stays what it was, to the
last weight, and stage I grows by kv at full resolution, nothing where nothing is reduced. Reducing k and v behind kv
instead costs either a second pass of sr or, by pooling, sr itself and with it 2 million parameters of PVT-Tiny that
the published size has. The convolution joins as in the authors' Swin: it skips proj. `fc` has no bias: those of q and
kv reach it.
"""

# Shapes: B batch, N heads, D channels a head, C = N*D, H W map, P = H*W, L tokens of the map after the class tokens, if
#         there is one, K keys, E = 2*C keys and values, F = 3*C features (channel i*3N+m is channel i of map m: all q
#         heads, all k heads, all v heads)

from math import isqrt
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.backbones.pvt import ReducedAttention, attended, in_heads, map_of, reduced, tokens_of
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
)
from acmix.ops.shift_conv import Shift


class ACmixReduced(ACmixLayer):
    """Attention of every token to a reduced map, and a convolution of the whole map, on shared projections.

    A class token takes part in the attention. It has no place on the map, so the convolution adds nothing to it; where
    the convolution is alone, it gets the mean of the convolution's map, or it would never hear of the image.
    """

    name = "acmix"
    fits = "reduced"
    divides_channels = "heads"

    def __init__(
        self,
        channels: int,
        heads: int,
        reduction: int,
        *,
        kernel_conv: int = 3,
        combine: Combine = "alpha_beta",
        shift: Shift = "full_group",
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(combine, alpha, beta)
        check_divides(heads, channels)
        self.channels, self.reduction = channels, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        if self.has_attention:
            self.proj = nn.Linear(channels, channels)
            if reduction > 1:
                self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
                self.norm = nn.LayerNorm(channels)
        self._build_convolution(channels, heads, maps=3 * heads, kernel_conv=kernel_conv, shift=shift, bias=False)

    @classmethod
    def slot_of(cls, layer: nn.Module) -> tuple[int, int] | None:
        """(channels, stride) of a PVT's attention; it keeps the map's size."""
        return (layer.channels, 1) if isinstance(layer, ReducedAttention) else None

    @classmethod
    def replacing(
        cls,
        layer: ReducedAttention,
        *,
        heads: Annotated[
            int | None, Field(ge=1, le=1024, description="must divide the layer's channels; null: as many as it has")
        ] = None,
        kernel_conv: KernelConv = 3,
        combine: CombineOption = "alpha_beta",
        shift: ShiftOption = "full_group",
        alpha: AlphaOption = None,
        beta: BetaOption = None,
    ) -> Self:
        """A layer with the channels and the reduction of `layer`, and all of its weights that have a place."""
        replacement = cls(
            layer.channels,
            layer.heads if heads is None else heads,
            layer.reduction,
            kernel_conv=kernel_conv,
            combine=combine,
            shift=shift,
            alpha=alpha,
            beta=beta,
        ).to(layer.q.weight.dtype)
        for name, kept in layer.named_children():
            if hasattr(replacement, name):
                replacement.get_submodule(name).load_state_dict(kept.state_dict())
        return replacement

    def forward(self, x_BLC: Tensor, height: int, width: int) -> Tensor:
        """(B, L, C) of a map of that size; tokens before the map's are class tokens."""
        if not self.has_attention:
            return self._convolution_alone(x_BLC, height, width)
        if not self.has_convolution:
            (q_BNLD,) = in_heads(self.q(x_BLC), 1, self.heads)
            attention_BLC = self._attention(q_BNLD, *self._keys_and_values(x_BLC, height, width))
            self._traced(attention_BLC)
            return attention_BLC
        features_BLF = F.linear(x_BLC, self._projection("weight"), self._projection("bias"))
        attention_BLC = self._shared_attention(features_BLF, x_BLC, height, width)
        class_tokens = x_BLC.shape[1] - height * width
        convolution_BCHW = self._convolution(map_of(features_BLF[:, class_tokens:], height, width))
        return self._mixed(attention_BLC, F.pad(tokens_of(convolution_BCHW), (0, 0, class_tokens, 0)))

    def macs(self, x_shape: torch.Size) -> int:
        """Of a square map, with or without a class token; NotImplementedError for other numbers of tokens."""
        batch, tokens, channels = x_shape
        side = isqrt(tokens)
        positions, class_tokens = side**2, tokens - side**2
        if class_tokens > 1:
            raise NotImplementedError(f"{tokens} tokens are no square map, and the sides of others are not known here")
        keys = class_tokens + max(1, side // self.reduction) ** 2
        total = self._attention_macs(tokens, keys) if self.has_attention else channels**2 * positions
        if self.has_convolution:
            shared = self.has_attention and self.reduction == 1
            total += 0 if shared else 2 * channels**2 * positions
            total += self._convolution_macs(side, side, maps=3 * self.heads)
        return batch * total

    def _attention_macs(self, tokens: int, keys: int) -> int:
        """Of one image: q, kv, the attention itself, proj, and what the reduction and its norm cost."""
        channels = self.channels
        reduction = (channels * self.reduction**2 + 2) * channels * keys if self.reduction > 1 else 0
        return 2 * channels**2 * (tokens + keys) + 2 * channels * tokens * keys + reduction

    def _projection(self, parameter: Literal["weight", "bias"]) -> Tensor:
        """Weight or bias of q and kv as of one, its rows in the order of F."""
        rows = (getattr(self.q, parameter), getattr(self.kv, parameter))
        return packed(*rows, heads=self.heads, head_channels=self.groups)

    def _keys_and_values(self, x_BLC: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Of the reduced map, (B, N, K, D)."""
        keys_BKC = x_BLC if self.reduction == 1 else self.norm(reduced(x_BLC, self.sr, height, width))
        k_BNKD, v_BNKD = in_heads(self.kv(keys_BKC), 2, self.heads)
        return k_BNKD, v_BNKD

    def _shared_attention(self, features_BLF: Tensor, x_BLC: Tensor, height: int, width: int) -> Tensor:
        maps_BLD3N = torch.unflatten(features_BLF, 2, (-1, 3, self.heads))
        q_BNLD, k_BNKD, v_BNKD = maps_BLD3N.permute(3, 0, 4, 1, 2).unbind()
        if self.reduction > 1:
            k_BNKD, v_BNKD = self._keys_and_values(x_BLC, height, width)
        # the fast kernels of attention want the channels of a head side by side
        return self._attention(q_BNLD.contiguous(), k_BNKD.contiguous(), v_BNKD.contiguous())

    def _attention(self, q_BNLD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor) -> Tensor:
        """(B, L, C), head-major: channel n*D+i."""
        attention_BLC: Tensor = self.proj(attended(q_BNLD, k_BNKD, v_BNKD))
        return attention_BLC

    def _convolution_alone(self, x_BLC: Tensor, height: int, width: int) -> Tensor:
        class_tokens = x_BLC.shape[1] - height * width
        map_BCHW = map_of(x_BLC[:, class_tokens:], height, width)
        projection_FC, bias_F = self._projection("weight"), self._projection("bias")
        if 3 * self.heads < self.kernel_conv**2:  # fewer maps than taps: the projection costs less than its fold
            out_BCHW = self._convolution(F.conv2d(map_BCHW, projection_FC[:, :, None, None], bias_F))
        else:
            out_BCHW = self._convolution_of(map_BCHW, projection_FC, bias_F)
        mean_B1C = out_BCHW.mean((2, 3)).unsqueeze(1)
        return torch.cat([mean_B1C.expand(-1, class_tokens, -1), tokens_of(out_BCHW)], dim=1)

    def extra_repr(self) -> str:
        names = ("channels", "heads", "reduction", "kernel_conv", "combine")
        return ", ".join([f"{name}={getattr(self, name)}" for name in names] + [f"shift={self.shift_form}"])
