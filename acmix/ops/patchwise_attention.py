"""Patchwise self-attention: the weights of a position's window are computed from the whole window at once.

Source: "Exploring Self-attention for Image Recognition", Zhao et al., CVPR 2020, section 3.2 (concatenation).
Deviation from the authors' code: same function, any map size. Theirs copies the window out, K*K times k, and keeps that
before and after its ReLU, and K*K weights a plane, for the backward pass: about 8 C maps where the input has 4 C. Here
one row of the window after the other is gone through, in the backward pass again, and kept are k, v and the P maps
that the weights are made of; the normalization of the copies needs no copies, only what each tap sees on average.
"""

# Shapes: B batch, R channels of q and of k, P planes of weights, S channels that share one, C = S*P channels of v
#         (channel s*P+p has plane p), H W map, K side of the window, T = K*K taps, L channels of any map,
#         G = R*(1+T) channels that are normalized

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.ops._windows import reflected, widened, windows_mixed, windows_summed


def patchwise_attention(
    q_BRHW: Tensor, k_BRHW: Tensor, v_BCHW: Tensor, weighing: nn.Sequential, *, window: int
) -> Tensor:
    """Values summed over each window with the weights that `weighing` makes of q and the window of k, (B, C, H, W).

    `weighing` is norm, ReLU, 1x1 (G to P), norm, ReLU, 1x1 (P to P*T); its first input channels are q's, then come
    k's, channel r*T+t for tap t. Nothing sums to 1: there is no softmax. Windows are reflected into the map, again
    and again where it is smaller than they are.
    """
    if torch.compiler.is_exporting():  # an exported program holds torch's own operations alone
        return copying_patchwise_attention(q_BRHW, k_BRHW, v_BCHW, weighing, window=window)
    norm, _, mixing, *between, spreading = weighing
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(mixing, nn.Conv2d)
    assert isinstance(spreading, nn.Conv2d)
    assert spreading.bias is not None
    relation, sides = q_BRHW.shape[1], (window, window)
    scale_G, shift_G = _normalization(norm, q_BRHW, k_BRHW, window)
    own_BRHW = F.relu(q_BRHW * scale_G[:relation, None, None] + shift_G[:relation, None, None])
    mixed_BPHW = windows_mixed(
        k_BRHW,
        scale_G[relation:].view(relation, *sides),
        shift_G[relation:].view(relation, *sides),
        mixing.weight[:, relation:].view(-1, relation, *sides),
    )
    hidden_BPHW = mixed_BPHW + F.conv2d(own_BRHW.to(q_BRHW.dtype), mixing.weight[:, :relation])
    for layer in between:
        hidden_BPHW = layer(hidden_BPHW)
    planes = hidden_BPHW.shape[1]
    weight_PKKP, bias_PKK = spreading.weight.view(planes, *sides, planes), spreading.bias.view(planes, *sides)
    summed_BCHW: Tensor = windows_summed(hidden_BPHW, v_BCHW, weight_PKKP, bias_PKK)
    return summed_BCHW


def copying_patchwise_attention(
    q_BRHW: Tensor, k_BRHW: Tensor, v_BCHW: Tensor, weighing: nn.Sequential, *, window: int
) -> Tensor:
    """The same in few operations that any exporter knows, for programs that only infer.

    All windows are copied out at once, T times k and T times v: what the operators of our own are there to avoid.
    """
    copies = _gathered(torch.cat([k_BRHW, v_BCHW], dim=1), window)
    k_BRTHW, v_BCTHW = torch.split(copies, [k_BRHW.shape[1], v_BCHW.shape[1]], dim=1)
    return _weighed(q_BRHW, k_BRTHW, v_BCTHW, weighing)


def reference_patchwise_attention(
    q_BRHW: Tensor, k_BRHW: Tensor, v_BCHW: Tensor, weighing: nn.Sequential, *, window: int
) -> Tensor:
    """The same by definition: copy every window out, weigh, sum."""
    return _weighed(q_BRHW, _unfolded(k_BRHW, window), _unfolded(v_BCHW, window), weighing)


def _normalization(norm: nn.BatchNorm2d, q_BRHW: Tensor, k_BRHW: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """What the batch norm of q and all copies of k multiplies by and adds, each (G,); its running figures move on."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    assert norm.num_batches_tracked is not None
    if norm.training:
        mean_G, variance_G = _moments(q_BRHW, k_BRHW, window)
        with torch.no_grad():
            count = q_BRHW.numel() // q_BRHW.shape[1]
            unbiased_G = variance_G * (count / max(count - 1, 1))
            norm.running_mean.lerp_(mean_G.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased_G.to(norm.running_var.dtype), norm.momentum)
            norm.num_batches_tracked += 1
    else:
        mean_G, variance_G = norm.running_mean, norm.running_var
    scale_G = norm.weight * (variance_G + norm.eps).rsqrt()
    return scale_G, norm.bias - mean_G * scale_G


def _moments(q_BRHW: Tensor, k_BRHW: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over batch and map, (G,), of q and of every copy of k that a tap sees."""
    q_variance_R, q_mean_R = torch.var_mean(widened(q_BRHW), (0, 2, 3), correction=0)
    k_BRHW = widened(k_BRHW)
    centre_R11 = k_BRHW.detach().mean((0, 2, 3), keepdim=True)[0]  # any would do; this one costs no digits
    centred_BRHW = k_BRHW - centre_R11
    seen_KH, seen_KW = _seen(k_BRHW, 2, window), _seen(k_BRHW, 3, window)
    first_RT, second_RT = (
        (seen_KH @ map_RHW @ seen_KW.mT).flatten(1) for map_RHW in (centred_BRHW.mean(0), centred_BRHW.square().mean(0))
    )
    mean_RT = first_RT + centre_R11.flatten(1)
    return torch.cat([q_mean_R, mean_RT.flatten()]), torch.cat([q_variance_R, (second_RT - first_RT**2).flatten()])


def _seen(map_BRHW: Tensor, dim: int, window: int) -> Tensor:
    """Share of each row (of each column, for dim 3) of the map among those that a tap sees along it, (K, H)."""
    row_H = torch.arange(map_BRHW.shape[dim], device=map_BRHW.device)
    return (_sights(map_BRHW, dim, window)[..., None] == row_H).to(map_BRHW.dtype).mean(1)


def _sights(map_BLHW: Tensor, dim: int, window: int) -> Tensor:
    """The row (the column, for dim 3) that a tap sees from each of the map's, (K, H)."""
    side, device = map_BLHW.shape[dim], map_BLHW.device
    outset_K1 = torch.arange(window, device=device)[:, None] - window // 2
    return reflected(outset_K1 + torch.arange(side, device=device), side)


def _weighed(q_BRHW: Tensor, k_BRTHW: Tensor, v_BCTHW: Tensor, weighing: nn.Sequential) -> Tensor:
    """The values of windows that are copied out, summed with their weights, (B, C, H, W)."""
    windows_BGHW = torch.cat([q_BRHW, k_BRTHW.flatten(1, 2)], dim=1)
    weights_BPTHW = torch.unflatten(weighing(windows_BGHW), 1, (-1, k_BRTHW.shape[2]))
    values_BSPTHW = torch.unflatten(v_BCTHW, 1, (-1, weights_BPTHW.shape[1]))
    return (weights_BPTHW.unsqueeze(1) * values_BSPTHW).sum(3).flatten(1, 2)


def _gathered(map_BLHW: Tensor, window: int) -> Tensor:
    """Every neighbour of every position, (B, L, T, H, W): rows for all taps, and of these the columns for all taps."""
    row_KH, column_KW = (_sights(map_BLHW, dim, window) for dim in (2, 3))
    seen = map_BLHW.index_select(2, row_KH.flatten()).index_select(3, column_KW.flatten())
    seen_BLKHKW = torch.unflatten(torch.unflatten(seen, 3, column_KW.shape), 2, row_KH.shape)
    return seen_BLKHKW.transpose(3, 4).flatten(2, 3)


def _unfolded(map_BLHW: Tensor, window: int) -> Tensor:
    """Every neighbour of every position, (B, L, T, H, W)."""
    (height, width), reach = map_BLHW.shape[-2:], window // 2
    rows, columns = ([_bounced(i, side) for i in range(-reach, side + reach)] for side in (height, width))
    padded = map_BLHW[:, :, rows][..., columns]
    taps = [padded[..., y : y + height, x : x + width] for y in range(window) for x in range(window)]
    return torch.stack(taps, dim=2)


def _bounced(position: int, side: int) -> int:
    """A position outside the map, reflected at its borders until it lies inside."""
    while side > 1 and not 0 <= position < side:
        position = -position if position < 0 else 2 * (side - 1) - position
    return position if side > 1 else 0
