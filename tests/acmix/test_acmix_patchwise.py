"""ACmixPatchwise: against its definition, and as a layer of a SAN that keeps what the SAN had learned."""

import copy
import pickle
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.backbones.san import PatchwiseAttention
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers import ACmixPatchwise
from acmix.mixers._layer import Combine
from acmix.model import build
from acmix.ops.patchwise_attention import reference_patchwise_attention
from acmix.ops.shift_conv import REFERENCES, Shift, reference_shift_conv
from acmix.registry import check_options, schema
from acmix.swap import swap

SHIFTS: tuple[Shift, ...] = get_args(Shift)
COMBINES: tuple[Combine, ...] = get_args(Combine)


def attention_by_definition(layer: ACmixPatchwise, x: Tensor) -> Tensor:
    qkv = (projection(x) for projection in (layer.q_proj, layer.k_proj, layer.v_proj))
    return reference_patchwise_attention(*qkv, layer.weighing, window=layer.window)


def convolution_by_definition(layer: ACmixPatchwise, x: Tensor) -> Tensor:
    """All maps of D channels, first q's, then k's, then v's; `fc` on them, then the shifts that the layer names."""
    channels = layer.out_channels // layer.heads
    maps = [
        map_BDHW
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
        for map_BDHW in projection(x).split(channels, dim=1)
    ]
    features = torch.stack(maps, dim=2).flatten(1, 2)
    if layer.shift_form in REFERENCES:
        out = REFERENCES[layer.shift_form](features, layer.fc.weight, groups=channels)
        return out.repeat_interleave(layer.heads, dim=1)
    out = reference_shift_conv(features, layer.fc.weight, layer.dep_conv.weight, groups=channels)
    return out if layer.shift_form == "full_group" else out.repeat_interleave(layer.heads, dim=1)


def by_definition(layer: ACmixPatchwise, x: Tensor) -> Tensor:
    alpha, beta = layer.strengths()
    paths = [alpha * attention_by_definition(layer, x)] if layer.has_attention else []
    paths += [beta * convolution_by_definition(layer, x)] if layer.has_convolution else []
    return sum(paths)


def a_layer(channels: int = 32, *, seed: int = 0, **options: Any) -> ACmixPatchwise:
    """A layer in double precision whose every parameter is random."""
    layer = ACmixPatchwise(channels, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return layer


def an_image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_is_its_definition(layer: ACmixPatchwise, x: Tensor) -> None:
    """Values, gradients and running figures."""
    witness = copy.deepcopy(layer)
    x.requires_grad_()
    out, expected = layer(x), by_definition(witness, x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(witness.named_buffers()), rtol=0, atol=1e-10)
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    ours = torch.autograd.grad((out * direction).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((expected * direction).sum(), [x, *witness.parameters()], materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=8)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    window=st.sampled_from([1, 3, 7]),
    kernel_conv=st.sampled_from([1, 3, 5]),
    sizes=st.sampled_from([(32, 4), (32, 8), (64, 4), (96, 12)]),
    training=st.booleans(),
)
@example(height=1, width=1, window=7, kernel_conv=3, sizes=(64, 8), training=True)
def test_the_fast_form_is_the_definition(
    height: int, width: int, sizes: tuple[int, int], training: bool, **options: int
):
    channels, heads = sizes
    layer = a_layer(channels, heads=heads, **options).train(training)
    assert layer(an_image(2, channels, height, width)).shape == (2, channels // 4, height, width)
    assert_is_its_definition(layer, an_image(2, channels, height, width))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("combine", COMBINES)
def test_every_combination_is_its_definition(combine: Combine, shift: Shift):
    assert_is_its_definition(a_layer(heads=4, window=3, combine=combine, shift=shift), an_image(2, 32, 5, 6))


@pytest.mark.parametrize("kernel_conv", [1, 3, 5])
def test_all_shifts_agree_at_the_start(kernel_conv: int):
    layers = [ACmixPatchwise(64, heads=8, kernel_conv=kernel_conv, shift=shift).double() for shift in SHIFTS]
    x = an_image(2, 64, 7, 10)
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict(), strict=False)
    outs = [layer(x) for layer in layers]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-10)


def test_a_path_left_out_has_no_parameters():
    names = {combine: set(ACmixPatchwise(32, combine=combine).state_dict()) for combine in COMBINES}
    attention = {name for name in names["sum"] if name.startswith("weighing.")}
    assert names["alpha_beta"] - names["complement"] == {"beta"}
    assert names["alpha_beta"] - names["sum"] == {"alpha", "beta"}
    assert names["sum"] - names["attention"] == {"fc.weight", "dep_conv.weight"}
    assert names["sum"] - names["convolution"] == attention != set()
    assert names["attention"] == set(PatchwiseAttention(32, 7).state_dict())


def test_parameters_keep_their_names_and_shapes():
    assert {name: tuple(value.shape) for name, value in ACmixPatchwise(64, window=3).named_parameters()} == {
        "alpha": (1,),
        "beta": (1,),
        "q_proj.weight": (4, 64, 1, 1),
        "q_proj.bias": (4,),
        "k_proj.weight": (4, 64, 1, 1),
        "k_proj.bias": (4,),
        "v_proj.weight": (16, 64, 1, 1),
        "v_proj.bias": (16,),
        "weighing.0.weight": (40,),
        "weighing.0.bias": (40,),
        "weighing.2.weight": (2, 40, 1, 1),
        "weighing.3.weight": (2,),
        "weighing.3.bias": (2,),
        "weighing.5.weight": (18, 2, 1, 1),
        "weighing.5.bias": (18,),
        "fc.weight": (9, 6, 1, 1),
        "dep_conv.weight": (16, 9, 3, 3),
    }


@pytest.mark.parametrize("combine", COMBINES)
def test_a_swap_keeps_all_that_has_a_place(combine: Combine):
    model = build({"name": "san10", "options": {"width": 0.05}}, num_classes=3, image_px=32)
    model(torch.randn(2, 3, 32, 32))  # its running figures move
    before = {name: value.clone() for name, value in model.state_dict().items()}
    swap(model, [{"layers": "*", "mixer": {"name": "acmix", "options": {"combine": combine}}}])
    after = model.state_dict()
    lost = {name for name in before if name not in after}
    assert lost == ({name for name in before if ".weighing." in name} if combine == "convolution" else set())
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in lost)


def test_attention_alone_computes_what_it_replaces():
    plain = PatchwiseAttention(64, 7).double().eval()
    x = an_image(2, 64, 9, 8)
    layer = ACmixPatchwise.replacing(plain, combine="attention").double().eval()
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "message"), [(5, "does not divide 8 channels"), (2, "is no multiple of 4")])
def test_heads_that_cannot_be_are_refused(heads: int, message: str):
    with pytest.raises(ShapeMismatch, match=f"heads={heads} {message}"):
        ACmixPatchwise(32, heads=heads)
    with pytest.raises(OptionInvalid):
        check_options(ACmixPatchwise.replacing, {"heads": heads}, where="mixer")


def test_the_schema_says_what_heads_can_be():
    heads = schema(ACmixPatchwise.replacing)["properties"]["heads"]
    assert (heads["minimum"], heads["multipleOf"], heads["default"]) == (4, 4, 4)


def test_multiply_adds_are_those_of_the_definition():
    """A layer of SAN's second stage on a 56 x 56 map, counted by hand."""
    projections = 256 * (16 + 16 + 64)
    copies = 16 * 50
    attention = 2 * copies + copies * 8 + 2 * 8 + 8 * 8 * 49 + 2 * 49 * 64
    convolution = 9 * (16 + 16 + 64) + 9 * 9 * 64
    shape = torch.Size([2, 256, 56, 56])
    assert ACmixPatchwise(256).macs(shape) == 2 * 56 * 56 * (projections + attention + convolution)
    assert ACmixPatchwise(256, combine="convolution").macs(shape) == 2 * 56 * 56 * (projections + convolution)
    assert PatchwiseAttention(256, 7).macs(shape) == 2 * 56 * 56 * (projections + attention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_own_precision_and_keeps_gradients_full(dtype: torch.dtype):
    layer, x = ACmixPatchwise(32, window=5), torch.randn(2, 32, 9, 9)
    exact = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    out.float().square().mean().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.1)
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


def test_channels_last_changes_the_layout_alone():
    layer, x = a_layer(64, heads=4), an_image(2, 64, 9, 8)
    out = copy.deepcopy(layer).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, layer(x), rtol=0, atol=1e-12)


def test_the_meta_device_tells_shapes():
    with torch.device("meta"):
        assert ACmixPatchwise(64)(torch.empty(2, 64, 33, 20)).shape == (2, 16, 33, 20)


def test_it_compiles_in_one_piece():
    layer, x = a_layer(window=3), an_image(2, 32, 6, 5)
    witness = copy.deepcopy(layer)
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    out.square().sum().backward()
    expected = witness(x)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for one, other in zip(layer.parameters(), witness.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(witness.named_buffers()))


def test_it_can_be_exported():
    layer, x = a_layer(window=3).eval(), an_image(2, 32, 6, 5)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x_BCHW": {0: torch.export.Dim("images", min=1)}})
    larger = an_image(3, 32, 6, 5)
    torch.testing.assert_close(program.module()(larger), layer(larger), rtol=0, atol=1e-10)


def test_it_can_be_exported_for_maps_of_any_size():
    layer, x = a_layer(window=7).eval(), an_image(2, 32, 6, 5)
    sides = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(layer, (x,), dynamic_shapes={"x_BCHW": sides})
    for other in (an_image(2, 32, 2, 3), an_image(2, 32, 9, 14)):
        torch.testing.assert_close(program.module()(other), layer(other), rtol=0, atol=1e-10)


def test_a_used_layer_can_be_copied_and_pickled():
    layer, x = ACmixPatchwise(32).eval(), torch.randn(1, 32, 8, 8)
    layer.tracing = True
    out = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), out)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), out)
    assert (layer.figures() > 0).all()
