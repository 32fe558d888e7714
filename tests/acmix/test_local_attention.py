"""Local attention in its forms against the same by definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from acmix.errors import OptionInvalid
from acmix.ops.local_attention import Form, local_attention, packed_attention, reference_local_attention, using

SIDES = st.integers(1, 31)
FORMS = pytest.mark.parametrize("form", ["cpu", "tile"])


def a_case(
    height: int, width: int, *, stride: int = 1, head_channels: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 2 images and 2 heads."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    shape = (2, 2, head_channels, height, width)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return q[..., ::stride, ::stride].requires_grad_(), k.requires_grad_(), v.requires_grad_()


@FORMS
@settings(max_examples=60, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    window=st.sampled_from([1, 3, 5, 7, 9, 11, 13]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
@example(height=56, width=56, window=7, stride=1, dilation=1)
@example(height=21, width=21, window=1, stride=3, dilation=1)
@example(height=29, width=8, window=13, stride=2, dilation=1)
@example(height=1, width=400, window=7, stride=1, dilation=1)
@example(height=2, width=1, window=13, stride=1, dilation=3)
def test_it_equals_the_padded_windows_in_values_and_gradients(
    form: Form, height: int, width: int, window: int, stride: int, dilation: int
):
    inputs = a_case(height, width, stride=stride)
    geometry = {"window": window, "stride": stride, "dilation": dilation}
    with using(form):
        fast = local_attention(*inputs, **geometry)
    slow = reference_local_attention(*inputs, **geometry)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view(fast.shape)
    for ours, witness in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("height", "width", "reach"), [(9, 11, 3), (4, 5, 3), (16, 16, 6)])
def test_the_reference_pads_as_torch_does_where_torch_can(height: int, width: int, reach: int):
    q, k, v = a_case(height, width)
    window = 2 * reach + 1
    padded = F.pad(k.flatten(0, 1), (reach,) * 4, mode="reflect")
    k_columns = F.unfold(padded, window).view(2, 2, 3, window**2, height, width)
    v_columns = F.unfold(F.pad(v.flatten(0, 1), (reach,) * 4, mode="reflect"), window).view_as(k_columns)
    weights = (q.unsqueeze(3) * k_columns).sum(2).div(3**0.5).softmax(2)
    expected = (weights.unsqueeze(2) * v_columns).sum(3)
    torch.testing.assert_close(reference_local_attention(q, k, v, window=window), expected, rtol=0, atol=1e-12)


def test_a_single_position_attends_to_itself():
    q, k, v = a_case(1, 1)
    torch.testing.assert_close(local_attention(q, k, v, window=7), v)


@FORMS
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_maps_equal_the_three_of_them(form: Form, stride: int):
    generator = torch.Generator().manual_seed(stride)
    features = torch.randn(2, 5 * 3 * 2, 13, 18, generator=generator, dtype=torch.float64, requires_grad=True)
    position = torch.randn(5, 13, 18, generator=generator, dtype=torch.float64, requires_grad=True)
    q, k, v = (features.unflatten(1, (5, 3, 2))[:, :, kind].transpose(1, 2) for kind in range(3))
    slow = reference_local_attention(q[..., ::stride, ::stride], k - position, v, window=7, stride=stride)
    with using(form):
        fast = packed_attention(features, position, heads=2, window=7, stride=stride)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, slow.numel(), dtype=slow.dtype).view(slow.shape)
    ours, witness = (torch.autograd.grad((each * weight).sum(), (features, position)) for each in (fast, slow))
    torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


def test_what_is_kept_for_the_backward_pass_is_no_larger_than_queries_keys_values_and_output():
    features, position = torch.randn(2, 48, 56, 56, requires_grad=True), torch.zeros(4, 56, 56)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = packed_attention(features, position, heads=4, window=7)
    sums_bytes = 2 * 4 * 56 * 56 * 4
    assert sum(kept.values()) <= (features.numel() + out.numel() + position.numel()) * 4 + sums_bytes


def test_the_form_can_be_chosen_and_comes_back():
    inputs = a_case(9, 9)
    with using("reference"), using("auto"):
        auto = local_attention(*inputs, window=5)
    with using("reference"):
        slow = local_attention(*inputs, window=5)
    assert torch.equal(slow, reference_local_attention(*inputs, window=5))
    torch.testing.assert_close(auto, slow, rtol=0, atol=1e-12)
    with (
        pytest.raises(OptionInvalid, match="no form 'unfold' of local attention; auto, triton, cpu, tile, reference"),
        using("unfold"),
    ):
        pass


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own, on copies that it makes
@pytest.mark.parametrize("stride", [1, 2])
def test_the_operations_keep_what_torch_asks_of_them(stride: int):
    q, k, v = (
        each.permute(0, 3, 4, 1, 2).detach().contiguous().requires_grad_() for each in a_case(9, 11, stride=stride)
    )
    torch.library.opcheck(torch.ops.acmix.attend_tiles, (q, k, v, 5, stride, 1))
    packed = torch.randn(2, 9, 11, 3, 6, dtype=torch.float64, requires_grad=True)
    position = torch.randn(3, 9, 11, dtype=torch.float64).movedim(0, -1).detach().requires_grad_()
    torch.library.opcheck(torch.ops.acmix.attend_packed, (packed, position, 5, stride, 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("side", [9, 17])
@FORMS
def test_lower_precisions_come_close(form: Form, dtype: torch.dtype, tolerance: float, side: int):
    with using(form):
        exact = local_attention(*a_case(side, side), window=7)
        rough = local_attention(*a_case(side, side, dtype=dtype), window=7)
    assert rough.dtype == dtype
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=tolerance)


@FORMS
def test_the_backward_pass_repeats_bit_for_bit(form: Form):
    inputs = a_case(23, 19, dtype=torch.float32)
    with using(form):
        outs = [local_attention(*inputs, window=7) for _ in range(2)]
    first, second = (torch.autograd.grad(out.square().sum(), inputs) for out in outs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@FORMS
@pytest.mark.parametrize("side", [10, 18])
def test_a_geometry_first_met_in_inference_mode_trains_later(form: Form, side: int):
    inputs = a_case(side, side)
    with using(form):
        with torch.inference_mode():
            expected = local_attention(*inputs, window=11)
        out = local_attention(*inputs, window=11)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))
    assert torch.equal(out, expected.clone())


@FORMS
def test_a_geometry_first_met_by_fake_tensors_runs_on_real_ones(form: Form):
    with using(form):
        with FakeTensorMode():
            fake = local_attention(*(torch.empty(1, 2, 3, 16, 16) for _ in range(3)), window=9)
        real = local_attention(*(torch.ones(1, 2, 3, 16, 16) for _ in range(3)), window=9)
    assert fake.shape == real.shape
    torch.testing.assert_close(real, torch.ones_like(real))


def test_shapes_are_known_without_data():
    q, k, v = (each.to("meta") for each in a_case(15, 20, stride=2))
    assert local_attention(q, k, v, window=7, stride=2).shape == (2, 2, 3, 8, 10)
