"""ACmixConv2d: against the authors' recorded numbers, and everywhere their code does not run."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from acmix import authors
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers import ACmixConv2d, layers_of
from acmix.mixers._layer import LEARNED, Combine
from acmix.ops.local_attention import reference_local_attention
from acmix.ops.shift_conv import REFERENCES, Shift, reference_shift_conv
from acmix.registry import check_options, entries, schema

GOLDEN = sorted(Path(__file__).with_name("golden").glob("resnet_*.safetensors"))


def by_definition(layer: ACmixConv2d, x: Tensor) -> Tensor:
    """The layer step by step: three projections, positions, padded windows, `fc`, the shifts, the sum."""
    alpha, beta = layer.strengths()
    return alpha * attention_by_definition(layer, x) + beta * convolution_by_definition(layer, x)


def projections(layer: ACmixConv2d, x: Tensor) -> list[Tensor]:
    """q, k and v, (B, N, D, H, W)."""
    return [projection(x).unflatten(1, (layer.heads, -1)) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)]


def attention_by_definition(layer: ACmixConv2d, x: Tensor) -> Tensor:
    q, k, v = projections(layer, x)
    height, width = x.shape[-2:]
    grid_x = torch.linspace(-1, 1, width, dtype=x.dtype).expand(height, width)
    grid_y = torch.linspace(-1, 1, height, dtype=x.dtype)[:, None].expand(height, width)
    position = layer.position_proj(torch.stack([grid_x, grid_y]).unsqueeze(0))
    return reference_local_attention(
        q[..., :: layer.stride, :: layer.stride],
        k - position,
        v,
        window=layer.kernel_att,
        stride=layer.stride,
        dilation=layer.dilation,
    ).flatten(1, 2)


def convolution_by_definition(layer: ACmixConv2d, x: Tensor) -> Tensor:
    """`fc` on all maps, then the shifts that the layer names; shared kernels stand for all heads."""
    q, k, v = projections(layer, x)
    features = torch.cat([q, k, v], dim=1).transpose(1, 2).flatten(1, 2)
    place = {"groups": q.shape[2], "stride": layer.stride}
    if layer.shift_form in REFERENCES:
        return REFERENCES[layer.shift_form](features, layer.fc.weight, **place).repeat_interleave(layer.heads, dim=1)
    out = reference_shift_conv(features, layer.fc.weight, layer.dep_conv.weight, **place)
    return out if layer.shift_form == "full_group" else out.repeat_interleave(layer.heads, dim=1)


def a_layer(*sizes: int, seed: int = 0, **options: Any) -> ACmixConv2d:
    """A layer in double precision whose every parameter is random."""
    layer = ACmixConv2d(*sizes, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return layer


def an_image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_golden_files_are_there():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_and_gradients_are_the_authors(path: Path):
    with safe_open(path, framework="pt") as file:
        options = {name: json.loads(value) for name, value in file.metadata().items()}
        recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
    assert options.pop("family") == "resnet"
    layer = ACmixConv2d(options.pop("in_channels"), options.pop("out_channels"), **options).double()
    authors.load(layer, {name[6:]: value for name, value in recorded.items() if name.startswith("state.")})
    x = recorded["x"].requires_grad_()
    out = layer(x)
    out.backward(recorded["grad_out"])
    torch.testing.assert_close(out, recorded["out"], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, recorded["grad_x"], rtol=0, atol=1e-10)
    expected = {name[5:]: value for name, value in recorded.items() if name.startswith("grad.")}
    torch.testing.assert_close(authors.gradients(layer), expected, rtol=0, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    kernel_att=st.sampled_from([1, 3, 5, 7, 9, 11, 13]),
    kernel_conv=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 6]),
)
@example(height=1, width=1, kernel_att=7, kernel_conv=3, stride=2, dilation=1, heads=2)
@example(height=17, width=15, kernel_att=7, kernel_conv=3, stride=2, dilation=2, heads=1)
def test_the_fast_form_is_the_definition(height: int, width: int, **options: int):
    layer = a_layer(4, 6, **options)
    x = an_image(2, 4, height, width).requires_grad_()
    wanted = [x, *layer.parameters()]
    fast, slow = layer(x), by_definition(layer, x)
    stride = options["stride"]
    assert fast.shape == (2, 6, -(-height // stride), -(-width // stride))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view(fast.shape)
    for ours, witness in zip(
        torch.autograd.grad((fast * weight).sum(), wanted),
        torch.autograd.grad((slow * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


def test_gradients_agree_with_finite_differences():
    layer = a_layer(2, 4, heads=2, kernel_att=3, stride=2)
    x = an_image(1, 2, 5, 4).requires_grad_()
    parameters = dict(layer.named_parameters())

    def out_of(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    torch.autograd.gradcheck(out_of, (x, *parameters.values()))


SHIFTS: tuple[Shift, ...] = get_args(Shift)
COMBINES: tuple[Combine, ...] = get_args(Combine)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("combine", COMBINES)
def test_every_combination_is_its_definition(combine: Combine, shift: Shift):
    layer = a_layer(4, 6, heads=2, kernel_att=5, stride=2, combine=combine, shift=shift)
    x = an_image(2, 4, 9, 6).requires_grad_()
    alpha, beta = layer.strengths()
    paths = [alpha * attention_by_definition(layer, x)] if layer.has_attention else []
    paths += [beta * convolution_by_definition(layer, x)] if layer.has_convolution else []
    expected = sum(paths)
    wanted = [x, *layer.parameters()]
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    ours = torch.autograd.grad((out * weight).sum(), wanted)
    witness = torch.autograd.grad((expected * weight).sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel_conv", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_shifts_agree_at_the_start(kernel_conv: int, stride: int):
    layers = [ACmixConv2d(4, 6, heads=2, kernel_conv=kernel_conv, stride=stride, shift=shift) for shift in SHIFTS]
    x = an_image(2, 4, 7, 10)
    outs = []
    for layer in layers:
        layer.double().load_state_dict(layers[0].double().state_dict(), strict=False)
        outs.append(layer(x))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-10)


def test_a_path_left_out_has_no_parameters():
    names = {combine: set(ACmixConv2d(4, 4, combine=combine).state_dict()) for combine in COMBINES}
    whole = names["alpha_beta"]
    assert whole - names["complement"] == {"beta"}
    assert whole - names["sum"] == {"alpha", "beta"}
    assert names["sum"] - names["attention"] == {"fc.weight", "dep_conv.weight"}
    assert names["sum"] - names["convolution"] == {"position_proj.weight", "position_proj.bias"}
    assert names["attention"] < names["sum"]


@pytest.mark.parametrize("shift", ["tensor", "depthwise_fixed", "grouped_fixed"])
def test_fixed_shifts_have_no_parameters(shift: Shift):
    learned = set(ACmixConv2d(4, 4).state_dict()) - set(ACmixConv2d(4, 4, shift=shift).state_dict())
    assert learned == {"dep_conv.weight"}
    assert ACmixConv2d(8, 8, shift="grouped_learned").dep_conv.weight.shape == (2, 9, 3, 3)


@pytest.mark.parametrize(
    ("combine", "alpha", "beta"),
    [("alpha_beta", 0.2, 0.7), ("complement", 0.2, 0.8), ("sum", 1, 1), ("attention", 1, 0), ("convolution", 0, 1)],
)
def test_the_trace_tells_alpha_and_beta_of_every_combination(combine: Combine, alpha: float, beta: float):
    initial = {name: 0.2 if name == "alpha" else 0.7 for name in LEARNED.get(combine, ())}
    layer = ACmixConv2d(4, 4, combine=combine, **initial)
    layer.tracing = True
    layer(torch.randn(2, 4, 16, 16))
    figures = layer.figures()
    assert figures.tolist()[:2] == pytest.approx([alpha, beta])
    assert (figures[2] > 0, figures[3] > 0) == (layer.has_attention, layer.has_convolution)


@pytest.mark.parametrize(("combine", "name"), [("sum", "alpha"), ("complement", "beta"), ("attention", "beta")])
def test_an_initial_value_of_what_is_not_learned_is_refused(combine: Combine, name: str):
    with pytest.raises(OptionInvalid, match=f"{name}=0.3 has no place with combine='{combine}'; alpha_beta"):
        ACmixConv2d(4, 4, combine=combine, **{name: 0.3})


def test_multiply_adds_are_those_of_the_definition():
    """A released layer of 64 channels on a 56 x 56 map, counted by hand."""
    positions = 56 * 56
    expected = positions * (3 * 64 * 64 + 2 * 16 + 2 * 49 * 64 + 12 * 9 * 16 + 9 * 9 * 64)
    assert ACmixConv2d(64, 64).macs(torch.Size([2, 64, 56, 56])) == 2 * expected


def test_a_new_layer_mixes_half_attention_with_half_shifted_maps():
    layer = ACmixConv2d(8, 8)
    assert layer.alpha.tolist() == layer.beta.tolist() == [0.5]
    for channel in range(8):
        for tap in range(9):
            kernel = layer.dep_conv.weight[channel, tap]
            assert kernel.sum() == kernel[tap // 3, tap % 3] == 1


def test_parameters_keep_their_names_and_shapes():
    assert {name: tuple(value.shape) for name, value in ACmixConv2d(6, 8).state_dict().items()} == {
        "alpha": (1,),
        "beta": (1,),
        "q_proj.weight": (8, 6, 1, 1),
        "q_proj.bias": (8,),
        "k_proj.weight": (8, 6, 1, 1),
        "k_proj.bias": (8,),
        "v_proj.weight": (8, 6, 1, 1),
        "v_proj.bias": (8,),
        "position_proj.weight": (2, 2, 1, 1),
        "position_proj.bias": (2,),
        "fc.weight": (9, 12, 1, 1),
        "dep_conv.weight": (8, 9, 3, 3),
    }


def test_the_bias_that_cancels_gets_a_gradient_of_exactly_zero():
    layer = ACmixConv2d(4, 4)
    layer(torch.randn(2, 4, 16, 16)).square().sum().backward()
    assert layer.position_proj.bias is not None
    assert layer.position_proj.bias.grad is not None
    assert layer.position_proj.bias.grad.tolist() == [0.0]
    assert layer.position_proj.weight.grad is not None
    assert layer.position_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("side", [8, 17])
def test_every_precision_trains(dtype: torch.dtype, side: int):
    exact = a_layer(4, 8)
    layer = copy.deepcopy(exact).to(dtype)
    x = an_image(2, 4, side, side)
    out = layer(x.to(dtype))
    out.float().sum().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact(x), rtol=0.05, atol=0.2)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_own_precision_and_keeps_gradients_full(dtype: torch.dtype):
    layer = ACmixConv2d(4, 8)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(torch.randn(2, 4, 16, 16))
        out.float().square().mean().backward()
    assert out.dtype == dtype
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


def test_channels_last_changes_the_layout_alone():
    layer, x = a_layer(4, 8, stride=2), an_image(2, 4, 17, 16)
    out = copy.deepcopy(layer).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, layer(x), rtol=0, atol=1e-12)


def test_the_meta_device_tells_shapes():
    with torch.device("meta"):
        layer = ACmixConv2d(4, 8, stride=2)
        assert layer(torch.empty(2, 4, 33, 20)).shape == (2, 8, 17, 10)


def test_evaluation_equals_training():
    layer, x = a_layer(4, 8), an_image(1, 4, 16, 15)
    trained = layer.train()(x)
    with torch.inference_mode():
        assert torch.equal(layer.eval()(x), trained)


def test_a_used_layer_can_be_cast_copied_and_pickled():
    layer, x = ACmixConv2d(4, 8), torch.randn(1, 4, 16, 16)
    layer.tracing = True
    out = layer(x)
    assert layer.double()(x.double()).dtype == torch.float64
    layer.float()
    assert torch.equal(copy.deepcopy(layer)(x), out)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), out)


def test_two_backward_passes_agree_bit_for_bit():
    layer, x = ACmixConv2d(8, 8), torch.randn(2, 8, 20, 20)
    runs = [torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("beta", [0.5, 0.0])
def test_tracing_leaves_both_paths_strengths_and_changes_nothing(beta: float):
    layer, x = a_layer(4, 8, stride=2), an_image(3, 4, 9, 9)
    nn.init.constant_(layer.beta, beta)
    untraced = layer(x)
    assert layer.attention_rms is None
    assert layer.convolution_rms is None
    layer.tracing = True
    assert torch.equal(layer(x), untraced)
    for path, (alpha, beta) in {"attention_rms": (1.0, 0.0), "convolution_rms": (0.0, 1.0)}.items():
        alone = copy.deepcopy(layer)
        nn.init.constant_(alone.alpha, alpha)
        nn.init.constant_(alone.beta, beta)
        left = getattr(layer, path)
        assert left.shape == ()
        assert not left.requires_grad
        torch.testing.assert_close(left, by_definition(alone, x).square().mean().sqrt().float())
    assert not any("rms" in name for name in layer.state_dict())


def test_layers_are_listed_in_depth_order():
    model = nn.Sequential(ACmixConv2d(4, 4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 8, 1), ACmixConv2d(8, 8)))
    assert list(layers_of(model)) == ["0", "2.1"]
    assert list(layers_of(model[0])) == [""]


@pytest.mark.parametrize(
    ("channels", "heads", "sentence"),
    [
        (30, 4, "heads=4 does not divide 30 channels; 1, 2, 3, 5, 6, 10, 15 and 30 do"),
        (7, 2, "heads=2 does not divide 7 channels; 1 and 7 do"),
        (1, 4, "heads=4 does not divide 1 channels; 1 does"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_those_that_do(channels: int, heads: int, sentence: str):
    with pytest.raises(ShapeMismatch) as caught:
        ACmixConv2d(4, channels, heads=heads)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kernel", ["kernel_att", "kernel_conv"])
def test_even_kernels_are_refused(kernel: str):
    with pytest.raises(OptionInvalid, match=f"{kernel}=4 has no centre; odd sides do"):
        ACmixConv2d(4, 4, **{kernel: 4})


def test_the_registry_knows_it_as_acmix_for_convolutions():
    form = entries("mixers")["acmix:conv2d"]
    assert form is ACmixConv2d
    options = {"heads", "kernel_att", "kernel_conv", "combine", "shift", "alpha", "beta"}
    assert set(schema(form.replacing)["properties"]) == options
    assert check_options(form.replacing, {}, where="mixer")["kernel_att"] == 7
    for wrong in (
        {"heads": 0},
        {"kernel_att": 4},
        {"kernel_conv": -1},
        {"kernel_conv": 13},
        {"combine": "product"},
        {"shift": "grouped"},
        {"alpha": 11.0},
        {"head": 2},
    ):
        with pytest.raises(OptionInvalid):
            check_options(form.replacing, wrong, where="mixer")


def test_a_replacement_takes_channels_stride_and_dilation():
    layer = ACmixConv2d.replacing(nn.Conv2d(6, 8, 3, stride=2, padding=3, dilation=3), heads=2, kernel_att=5)
    assert (layer.in_channels, layer.out_channels, layer.stride, layer.dilation) == (6, 8, 2, 3)
    assert (layer.heads, layer.kernel_att, layer.kernel_conv) == (2, 5, 3)


def test_it_learns():
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8, 8)
    target = F.conv2d(x, torch.randn(4, 4, 3, 3), padding=1)
    layer = ACmixConv2d(4, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, "valid"])
def test_in_place_of_an_unpadded_convolution_it_gives_as_much(
    padding: Any, stride: int, dilation: int, combine: Combine
):
    plain = nn.Conv2d(4, 4, 3, stride=stride, padding=padding, dilation=dilation)
    assert ACmixConv2d.slot_of(plain) == (4, stride)
    layer = ACmixConv2d.replacing(plain, combine=combine)
    for sides in [(10, 10), (11, 9), (8, 13)]:
        x = torch.randn(1, 4, *sides)
        assert layer(x).shape == plain(x).shape


def test_where_nothing_is_skipped_an_unpadded_one_gives_the_middle_of_the_map():
    cropped = ACmixConv2d(4, 4, cropped=1)
    whole = ACmixConv2d(4, 4)
    whole.load_state_dict(cropped.state_dict())
    x = torch.randn(1, 4, 9, 8)
    assert torch.equal(cropped(x), whole(x)[..., 1:-1, 1:-1])
