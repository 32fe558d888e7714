"""The kernels against the reference, on a GPU where there is one, else in Triton's interpreter on the CPU.

Interpreting is chosen before Triton is first imported and holds for the whole process, so test_triton_local_attention
runs these in a process of their own, without the databases of conftest; pytest does not collect them by their name.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

from acmix.ops.local_attention import reference_local_attention
from acmix.ops.triton_local_attention import supported, triton_local_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES = st.integers(1, 9)

# half of the interpreter's time goes to sums that overflow, which without `debug` it looks for and tells nobody of
interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)


def a_case(
    height: int,
    width: int,
    *,
    stride: int = 1,
    lanes: tuple[int, int] = (1, 1),
    channels: int = 3,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Queries, keys and values; `lanes` are images and heads."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    maps = torch.randn((3, *lanes, channels, height, width), generator=generator, dtype=torch.float64)
    q, k, v = maps.to(DEVICE, dtype)
    return [q[..., ::stride, ::stride].requires_grad_(), k.requires_grad_(), v.requires_grad_()]


def with_gradients(attend: Callable[..., Tensor], inputs: list[Tensor], **geometry: int) -> list[Tensor]:
    """Output and the three gradients under a fixed weighting of the output."""
    out = attend(*inputs, **geometry)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=DEVICE).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_close(ours: list[Tensor], witnesses: list[Tensor], atol: float) -> None:
    for one, witness in zip(ours, witnesses, strict=True):
        torch.testing.assert_close(one.double(), witness.double(), rtol=0, atol=atol)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    height=SIDES,
    width=SIDES,
    window=st.sampled_from([3, 5, 7, 9, 11, 13]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    channels=st.integers(1, 5),
)
@example(height=9, width=11, window=7, stride=1, dilation=1, channels=16)
@example(height=1, width=17, window=7, stride=1, dilation=1, channels=17)
@example(height=2, width=1, window=13, stride=1, dilation=2, channels=3)
@example(height=17, width=4, window=5, stride=2, dilation=2, channels=3)
@example(height=2, width=35, window=13, stride=2, dilation=2, channels=3)  # lines in two pieces
@example(height=1, width=1, window=7, stride=2, dilation=1, channels=3)
def test_the_kernels_equal_the_padded_windows_in_values_and_gradients(
    height: int, width: int, window: int, stride: int, dilation: int, channels: int
):
    inputs = a_case(height, width, stride=stride, channels=channels)
    geometry = {"window": window, "stride": stride, "dilation": dilation}
    ours = with_gradients(triton_local_attention, inputs, **geometry)
    assert_close(ours, with_gradients(reference_local_attention, inputs, **geometry), atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_views_of_packed_projections_are_read_where_they_are(memory_format: torch.memory_format):
    features = torch.randn(2, 5 * 3 * 2, 4, 9, dtype=torch.float64).to(DEVICE).to(memory_format=memory_format)
    inputs = list(features.unflatten(1, (5, 3, 2)).permute(2, 0, 3, 1, 4, 5).unbind())
    inputs[0] = inputs[0][..., ::2, ::2]
    inputs = [each.requires_grad_() for each in inputs]
    ours = with_gradients(triton_local_attention, inputs, window=3, stride=2)
    assert_close(ours, with_gradients(reference_local_attention, inputs, window=3, stride=2), atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_lower_precisions_come_close(dtype: torch.dtype, tolerance: float):
    exact = with_gradients(reference_local_attention, a_case(5, 9), window=7)
    rough = with_gradients(triton_local_attention, a_case(5, 9, dtype=dtype), window=7)
    assert {each.dtype for each in rough} == {dtype}
    assert_close(rough, exact, atol=tolerance)


def test_large_logits_neither_overflow_nor_vanish():
    q, k, v = a_case(3, 9, dtype=torch.float32)
    inputs = [each.detach().requires_grad_() for each in (q * 100, k * 100, v)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    out = triton_local_attention(*inputs, window=5)
    torch.testing.assert_close(out.double(), reference_local_attention(*exact, window=5), rtol=0, atol=1e-2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))


def test_the_backward_pass_repeats_bit_for_bit():
    inputs = a_case(4, 10, dtype=torch.float32)
    first, second = (with_gradients(triton_local_attention, inputs, window=5) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_compiled_model_holds_the_kernels_in_one_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return triton_local_attention(2 * q, k, v, window=3) + 1 if supported(q, k, v) else q

    inputs = a_case(3, 4)
    ours = with_gradients(attend, inputs)
    expected = with_gradients(lambda q, k, v: reference_local_attention(2 * q, k, v, window=3) + 1, inputs)
    assert_close(ours, expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks for it where there is none
def test_the_operators_keep_torchs_contract():
    inputs = a_case(2, 3)
    torch.library.opcheck(torch.ops.acmix.local_attention.default, (*inputs, 3, 1, 1))
    out, log_total = torch.ops.acmix.local_attention(*(each.detach() for each in inputs), 3, 1, 1)
    saved = (*(each.detach() for each in inputs), out, log_total)
    torch.library.opcheck(torch.ops.acmix.local_attention_backward.default, (torch.ones_like(out), *saved, 3, 1, 1))


def test_a_second_derivative_is_refused():
    q, k, v = a_case(2, 3)
    (first,) = torch.autograd.grad(triton_local_attention(q, k, v, window=3).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first.sum(), q)


def test_mixed_precisions_are_refused():
    q, k, v = a_case(2, 3)
    assert supported(q, k, v)
    assert not supported(q, k.float(), v)
    with pytest.raises(ValueError, match="one floating dtype"):
        triton_local_attention(q, k.float(), v, window=3)
