"""Patchwise attention row by row against the same by definition."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from acmix.ops import _windows
from acmix.ops.patchwise_attention import (
    copying_patchwise_attention,
    patchwise_attention,
    reference_patchwise_attention,
)


def a_weighing(relation: int, planes: int, window: int) -> nn.Sequential:
    """Every parameter and running figure random."""
    torch.manual_seed(relation * 100 + window)
    copies = relation * (1 + window**2)
    layers = nn.Sequential(
        nn.BatchNorm2d(copies),
        nn.ReLU(),
        nn.Conv2d(copies, planes, 1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes * window**2, 1),
    ).double()
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in layers.named_buffers():
        if name.endswith("mean"):
            nn.init.normal_(buffer)
        elif name.endswith("var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return layers


def a_case(
    images: int, height: int, width: int, *, relation: int = 2, planes: int = 2, shared: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v; their means are far from 0, so that moments must be taken with care."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    q, k, v = (
        torch.randn(images, channels, height, width, generator=generator, dtype=torch.float64) + 5
        for channels in (relation, relation, planes * shared)
    )
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@settings(max_examples=25)
@given(
    images=st.integers(2, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    window=st.sampled_from([1, 3, 5, 7]),
    relation=st.integers(1, 3),
    planes=st.integers(1, 3),
    shared=st.integers(1, 3),
    training=st.booleans(),
)
@example(images=2, height=1, width=1, window=7, relation=2, planes=1, shared=2, training=True)
@example(images=2, height=2, width=1, window=7, relation=1, planes=2, shared=1, training=False)
@example(images=1, height=90, width=101, window=3, relation=1, planes=1, shared=1, training=True)
def test_rows_equal_the_copied_windows_in_values_gradients_and_running_figures(
    images: int, height: int, width: int, window: int, relation: int, planes: int, shared: int, training: bool
):
    inputs = a_case(images, height, width, relation=relation, planes=planes, shared=shared)
    weighing = a_weighing(relation, planes, window).train(training)
    witness = copy.deepcopy(weighing)
    fast = patchwise_attention(*inputs, weighing, window=window)
    slow = reference_patchwise_attention(*inputs, witness, window=window)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    torch.testing.assert_close(dict(weighing.named_buffers()), dict(witness.named_buffers()), rtol=0, atol=1e-12)
    direction = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view(fast.shape)
    ours = torch.autograd.grad((fast * direction).sum(), [*inputs, *weighing.parameters()])
    theirs = torch.autograd.grad((slow * direction).sum(), [*inputs, *witness.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=25)
@given(
    images=st.integers(2, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    window=st.sampled_from([1, 3, 5, 7]),
    relation=st.integers(1, 3),
    planes=st.integers(1, 3),
    shared=st.integers(1, 3),
    training=st.booleans(),
)
@example(images=2, height=1, width=1, window=7, relation=2, planes=1, shared=2, training=True)
@example(images=2, height=2, width=1, window=7, relation=1, planes=2, shared=1, training=False)
@example(images=1, height=3, width=17, window=7, relation=2, planes=3, shared=2, training=False)
def test_windows_copied_for_an_export_equal_rows_in_values_and_running_figures(
    images: int, height: int, width: int, window: int, relation: int, planes: int, shared: int, training: bool
):
    inputs = a_case(images, height, width, relation=relation, planes=planes, shared=shared)
    weighing = a_weighing(relation, planes, window).train(training)
    witness = copy.deepcopy(weighing)
    copied = copying_patchwise_attention(*inputs, weighing, window=window)
    torch.testing.assert_close(copied, patchwise_attention(*inputs, witness, window=window), rtol=0, atol=1e-10)
    torch.testing.assert_close(dict(weighing.named_buffers()), dict(witness.named_buffers()), rtol=0, atol=1e-12)


def test_the_reference_copies_windows_as_torch_does_where_torch_can():
    q, k, v = a_case(2, 9, 11)
    weighing = a_weighing(2, 2, 7).eval()
    k_copies, v_copies = (F.unfold(F.pad(each, (3,) * 4, mode="reflect"), 7).unflatten(2, (9, 11)) for each in (k, v))
    weights = weighing(torch.cat([q, k_copies], 1)).view(2, 2, 49, 9, 11)
    out = torch.zeros_like(v)
    for channel in range(6):
        out[:, channel] = (weights[:, channel % 2] * v_copies[:, channel * 49 : (channel + 1) * 49]).sum(1)
    expected = reference_patchwise_attention(q, k, v, weighing, window=7)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precisions_come_close(dtype: torch.dtype):
    tolerance = {torch.float32: 1e-5}.get(dtype, 0.05)
    weighing, rough = (a_weighing(2, 2, 5) for _ in range(2))
    inputs = [each.detach() - 5 for each in a_case(2, 9, 11)]
    exact = patchwise_attention(*inputs, weighing, window=5)
    out = patchwise_attention(*(each.to(dtype) for each in inputs), rough.to(dtype), window=5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance * exact.std().item())


def operands() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the two operators take."""
    q, k, v = a_case(2, 5, 4)
    sides = {"dtype": torch.float64, "requires_grad": True}
    scale, shift, mixing = torch.rand(2, 3, 3, **sides), torch.rand(2, 3, 3, **sides), torch.rand(2, 2, 3, 3, **sides)
    return (k, scale, shift, mixing), (q, v, torch.rand(2, 3, 3, 2, **sides), torch.rand(2, 3, 3, **sides))


@pytest.mark.parametrize("operator", ["windows_mixed", "windows_summed"])
def test_the_operators_are_what_they_tell_torch(operator: str):
    inputs = dict(zip(("windows_mixed", "windows_summed"), operands(), strict=True))[operator]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(_windows, operator), inputs, test_utils=checks)


def test_autocast_does_not_round_within():
    for operator, doubles in zip((_windows.windows_mixed, _windows.windows_summed), operands(), strict=True):
        inputs = [each.detach().float().requires_grad_() for each in doubles]
        out = operator(*inputs)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = operator(*inputs)
            again = torch.autograd.grad(rounded.square().sum(), inputs)
        assert torch.equal(out, rounded)
        assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


def test_the_backward_pass_repeats_bit_for_bit():
    weighing, inputs = a_weighing(2, 2, 7), a_case(2, 23, 19)
    first, second = (
        torch.autograd.grad(patchwise_attention(*inputs, weighing, window=7).square().sum(), inputs) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_no_copies_of_windows_are_kept_for_the_backward_pass():
    weighing, inputs = a_weighing(4, 2, 7), a_case(2, 28, 28, relation=4, planes=2, shared=8)

    def kept_bytes(attention: Callable[..., Tensor]) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            attention(*inputs, weighing, window=7)
        return sum(kept.values())

    a_copy_of_all = sum(each.nbytes for each in inputs)
    lean, copying = kept_bytes(patchwise_attention), kept_bytes(reference_patchwise_attention)
    assert lean < 3 * a_copy_of_all
    assert copying > 15 * lean


def test_shapes_are_known_without_data():
    inputs = (each.detach().to("meta") for each in a_case(2, 5, 7))
    assert patchwise_attention(*inputs, a_weighing(2, 2, 3).to("meta"), window=3).shape == (2, 6, 5, 7)
