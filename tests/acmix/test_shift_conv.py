"""The composed convolution path against the same by definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acmix.ops.shift_conv import REFERENCES, Shift, composed, reference_shift_conv, shift_conv, shift_kernels


def a_case(heads: int, head_channels: int, kernel_conv: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of 2 images, `fc` and `dep_conv` weights."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    shapes = (
        (2, 3 * heads * head_channels, height, width),
        (kernel_conv**2, 3 * heads, 1, 1),
        (heads * head_channels, kernel_conv**2, kernel_conv, kernel_conv),
    )
    features, fc, dep_conv = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    return features, fc, dep_conv


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_channels=st.integers(1, 3),
    kernel_conv=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.integers(1, 3),
)
def test_one_grouped_convolution_equals_fc_then_dep_conv(
    heads: int, head_channels: int, kernel_conv: int, height: int, width: int, stride: int
):
    inputs = a_case(heads, head_channels, kernel_conv, height, width)
    features, fc, dep_conv = inputs
    fast = shift_conv(features, composed(fc.flatten(1), dep_conv), groups=head_channels, stride=stride)
    slow = reference_shift_conv(features, fc, dep_conv, groups=head_channels, stride=stride)
    assert fast.shape == (2, heads * head_channels, -(-height // stride), -(-width // stride))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view(fast.shape)
    for ours, witness in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_conv", [1, 3, 5])
def test_kernels_start_as_shifts(kernel_conv: int, stride: int):
    heads, head_channels, height, width = 2, 3, 7, 6
    features, fc, _ = a_case(heads, head_channels, kernel_conv, height, width)
    dep_conv = shift_kernels(heads * head_channels, kernel_conv).double()
    out = shift_conv(features, composed(fc.flatten(1), dep_conv), groups=head_channels, stride=stride)
    taps = torch.einsum("tm,bdmhw->bdthw", fc[:, :, 0, 0], features.view(2, head_channels, 3 * heads, height, width))
    centre = kernel_conv // 2
    padded = F.pad(taps, (centre,) * 4)
    expected = torch.stack(
        [
            padded[:, :, t, t // kernel_conv :, t % kernel_conv :][..., :height:stride, :width:stride]
            for t in range(kernel_conv**2)
        ]
    ).sum(0)
    torch.testing.assert_close(out, expected.repeat_interleave(heads, dim=1), rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    shift=st.sampled_from(list(REFERENCES)),
    heads=st.integers(1, 3),
    head_channels=st.integers(1, 3),
    kernel_conv=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.integers(1, 3),
)
def test_fixed_shifts_are_one_kernel_for_all_channels(
    shift: Shift, heads: int, head_channels: int, kernel_conv: int, height: int, width: int, stride: int
):
    features, fc, _ = a_case(heads, head_channels, kernel_conv, height, width)
    kernel = composed(fc.flatten(1), shift_kernels(1, kernel_conv).double())
    fast = shift_conv(features, kernel, groups=head_channels, stride=stride)
    slow = REFERENCES[shift](features, fc, groups=head_channels, stride=stride)
    assert fast.shape == (2, head_channels, -(-height // stride), -(-width // stride))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view(fast.shape)
    for ours, witness in zip(
        torch.autograd.grad((fast * weight).sum(), (features, fc)),
        torch.autograd.grad((slow * weight).sum(), (features, fc)),
        strict=True,
    ):
        torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)
