"""ACmixWindow: against the authors' recorded numbers, and everywhere their code does not run."""

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from acmix import authors
from acmix.backbones.swin import WindowAttention
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers import ACmixWindow
from acmix.mixers._layer import Combine
from acmix.ops.shift_conv import REFERENCES, Shift, reference_shift_conv
from acmix.ops.window_attention import APART, roll, rolled_by, window_mask
from acmix.registry import check_options, entries, schema
from acmix.swap import find, swap

GOLDEN = sorted(Path(__file__).with_name("golden").glob("swin_*.safetensors"))
SHIFTS: tuple[Shift, ...] = get_args(Shift)
COMBINES: tuple[Combine, ...] = get_args(Combine)


def golden(path: Path) -> tuple[ACmixWindow, dict[str, Tensor]]:
    """The recorded layer with the authors' weights, and all that was recorded."""
    with safe_open(path, framework="pt") as file:
        options = {name: json.loads(value) for name, value in file.metadata().items()}
        recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
    assert options.pop("family") == "swin"
    layer = ACmixWindow(options.pop("dim"), options.pop("window"), options.pop("heads"), **options).double()
    authors.load(layer, {name[6:]: value for name, value in recorded.items() if name.startswith("state.")})
    return layer, recorded


def attention_by_definition(layer: ACmixWindow | WindowAttention, x: Tensor) -> Tensor:
    """Position by position: the keys of its window that are its neighbours in the image, one softmax a head."""
    _, height, width, dim = x.shape
    head_channels, window = dim // layer.heads, layer.window
    by = rolled_by(height, width, window=window, shift=layer.shift)
    q, k, v = layer.qkv(x).unflatten(3, (3, layer.heads, head_channels)).unbind(3)
    table = layer.relative_position_bias_table.view(2 * window - 1, 2 * window - 1, layer.heads)
    places = [(row, column) for row in range(height) for column in range(width)]

    def part(row: int, column: int) -> tuple[int, int, bool, bool]:
        """Equal for positions that may attend to each other: window, and whether rolled in from the other edge."""
        return row // window, column // window, row >= height - by, column >= width - by

    attended = torch.zeros_like(x)
    for y, column in places:
        keys = [place for place in places if part(*place) == part(y, column)]
        rows, columns = torch.tensor(keys).T
        bias = table[y - rows + window - 1, column - columns + window - 1]
        logits = (q[:, y, column, None] * k[:, rows, columns]).sum(-1) / head_channels**0.5 + bias
        values = (logits.softmax(1).unsqueeze(-1) * v[:, rows, columns]).sum(1)
        attended = attended.index_put((torch.arange(len(x)), torch.tensor(y), torch.tensor(column)), values.flatten(1))
    return layer.proj(attended)


def convolution_by_definition(layer: ACmixWindow, x: Tensor) -> Tensor:
    """`fc` on all maps, its bias in the zero padding of what follows, then the shifts that the layer names."""
    by = 0 if layer.roll_convolution else rolled_by(*x.shape[1:3], window=layer.window, shift=layer.shift)
    maps = layer.qkv(torch.roll(x, (by, by), (1, 2))).unflatten(3, (3 * layer.heads, -1))
    features = maps.permute(0, 4, 3, 1, 2).flatten(1, 2)
    groups = layer.dim // layer.heads
    # the bias is the weight of one more map, of ones
    with_ones = torch.cat([features.unflatten(1, (groups, -1)), torch.ones_like(features[:, :groups, None])], 2)
    mixing = torch.cat([layer.fc.weight, layer.fc.bias.view(-1, 1, 1, 1)], 1)
    with_ones, place = with_ones.flatten(1, 2), {"groups": groups}
    if layer.shift_form in REFERENCES:
        out = REFERENCES[layer.shift_form](with_ones, mixing, **place)
    else:
        out = reference_shift_conv(with_ones, mixing, layer.dep_conv.weight, **place)
    if layer.shift_form != "full_group":
        out = out.repeat_interleave(layer.heads, dim=1)
    return torch.roll(out.permute(0, 2, 3, 1), (-by, -by), (1, 2))


def by_definition(layer: ACmixWindow, x: Tensor) -> Tensor:
    alpha, beta = layer.strengths()
    paths = [alpha * attention_by_definition(layer, x)] if layer.has_attention else []
    paths += [beta * convolution_by_definition(layer, x)] if layer.has_convolution else []
    return sum(paths[1:], paths[0])


def random_weights(module: Any, seed: int = 0) -> Any:
    """The module in double precision, its every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module


def a_layer(*sizes: int, **options: Any) -> ACmixWindow:
    layer: ACmixWindow = random_weights(ACmixWindow(*sizes, **options))
    return layer


def a_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_alike(ours: Tensor, witness: Tensor, wanted: list[Tensor]) -> None:
    """The same values, and the same gradients of a weighted sum of them."""
    torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view(ours.shape)
    gradients = [torch.autograd.grad((out * weight).sum(), wanted) for out in (ours, witness)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_golden_files_are_there():
    assert len(GOLDEN) == 2


@pytest.mark.parametrize("given", [False, True], ids=["mask made", "mask given"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_and_gradients_are_the_authors(path: Path, given: bool):
    layer, recorded = golden(path)
    x = recorded["x"].requires_grad_()
    out = layer(x, recorded["mask"]) if given and "mask" in recorded else layer(x)
    out.backward(recorded["grad_out"])
    torch.testing.assert_close(out, recorded["out"], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, recorded["grad_x"], rtol=0, atol=1e-10)
    expected = {name[5:]: value for name, value in recorded.items() if name.startswith("grad.")}
    torch.testing.assert_close(authors.gradients(layer), expected, rtol=0, atol=1e-10)


def test_the_mask_is_the_authors():
    layer, recorded = golden(GOLDEN[1])
    assert layer.shift == 3
    made = window_mask(14, 14, window=7, shift=3, like=recorded["x"])
    assert made is not None
    assert torch.equal(made, recorded["mask"])
    assert window_mask(14, 14, window=7, shift=0, like=recorded["x"]) is None
    assert window_mask(7, 14, window=7, shift=3, like=recorded["x"]) is None


def test_nothing_attends_to_the_filling():
    made = window_mask(4, 5, window=3, shift=0, like=torch.empty(()))
    assert made is not None
    assert made.shape == (4, 9, 9)
    filling = torch.tensor([[False] * 3] + [[True] * 3] * 2).flatten()
    assert torch.equal(made[2][~filling], torch.where(filling, APART, 0.0).expand(3, 9))


@pytest.mark.parametrize("roll_convolution", [True, False], ids=["rolled", "unrolled"])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (4, 8), (3, 7), (2, 2), (1, 4)])
def test_every_map_is_its_definition(size: tuple[int, int], shift: int, roll_convolution: bool):
    layer = a_layer(4, 3, 2, shift=shift, roll_convolution=roll_convolution)
    x = a_map(2, *size, 4).requires_grad_()
    assert_alike(layer(x), by_definition(layer, x), [x, *layer.parameters()])


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("heads", [2, 4])
def test_every_combination_is_its_definition(combine: Combine, shift: Shift, heads: int):
    """Of 6 maps, fewer than taps, and of 12."""
    layer = a_layer(4, 3, heads, shift=1, combine=combine, conv_shift=shift, roll_convolution=False)
    x = a_map(2, 5, 6, 4).requires_grad_()
    assert_alike(layer(x), by_definition(layer, x), [x, *layer.parameters()])


def test_the_unrolled_convolution_is_exact_at_the_edges_of_the_image():
    """It is what a block that does not roll computes, rolled."""
    layer = a_layer(4, 3, 2, shift=1, combine="convolution", roll_convolution=False)
    unshifted = a_layer(4, 3, 2, combine="convolution")
    unshifted.load_state_dict(layer.state_dict())
    x = a_map(1, 6, 9, 4)
    torch.testing.assert_close(layer(roll(x, 1)), roll(unshifted(x), 1), rtol=0, atol=1e-12)
    released = a_layer(4, 3, 2, shift=1, combine="convolution")
    released.load_state_dict(layer.state_dict())
    differs = (roll(released(roll(x, 1)), -1) - unshifted(x)).abs().sum((0, 3)) > 1e-6
    assert not differs[2:-1, 2:-1].any()
    assert differs[[0, -1]].any()


@pytest.mark.parametrize("kernel_conv", [1, 3, 5])
def test_all_shifts_agree_at_the_start(kernel_conv: int):
    layers = [ACmixWindow(6, 3, 2, kernel_conv=kernel_conv, conv_shift=shift).double() for shift in SHIFTS]
    x, outs = a_map(2, 7, 6, 6), []
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict(), strict=False)
        outs.append(layer(x))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-10)


def test_a_path_left_out_has_no_parameters():
    names = {combine: set(ACmixWindow(4, 3, 2, combine=combine).state_dict()) for combine in COMBINES}
    assert names["alpha_beta"] - names["complement"] == {"beta"}
    assert names["alpha_beta"] - names["sum"] == {"alpha", "beta"}
    assert names["sum"] - names["attention"] == {"fc.weight", "fc.bias", "dep_conv.weight"}
    assert names["sum"] - names["convolution"] == {"proj.weight", "proj.bias", "relative_position_bias_table"}
    assert names["attention"] == set(WindowAttention(4, 3, 2).state_dict())
    without_learned_shifts = set(ACmixWindow(4, 3, 2, conv_shift="tensor").state_dict())
    assert names["alpha_beta"] - without_learned_shifts == {"dep_conv.weight"}


def test_parameters_keep_their_names_and_shapes():
    assert {name: tuple(value.shape) for name, value in ACmixWindow(6, 3, 2).state_dict().items()} == {
        "alpha": (1,),
        "beta": (1,),
        "qkv.weight": (18, 6),
        "qkv.bias": (18,),
        "proj.weight": (6, 6),
        "proj.bias": (6,),
        "relative_position_bias_table": (25, 2),
        "fc.weight": (9, 6, 1, 1),
        "fc.bias": (9,),
        "dep_conv.weight": (6, 9, 3, 3),
    }


def test_multiply_adds_are_those_of_the_definition():
    """The first layer of a released Swin-T, counted by hand."""
    positions = 56 * 56
    expected = positions * (4 * 96 * 96 + 2 * 49 * 96 + 9 * 9 * 32 + 9 * 9 * 96)
    assert ACmixWindow(96, 7, 3).macs(torch.Size([2, 56, 56, 96])) == 2 * expected
    assert WindowAttention(96, 7, 3).macs(torch.Size([1, 56, 56, 96])) == positions * (4 * 96 * 96 + 2 * 49 * 96)


@pytest.mark.parametrize("shift", [0, 2])
def test_the_plain_attention_is_the_attention_path(shift: int):
    plain = random_weights(WindowAttention(6, 4, 2, shift=shift))
    x = a_map(2, 7, 9, 6).requires_grad_()
    assert_alike(plain(x), attention_by_definition(plain, x), [x, *plain.parameters()])


@pytest.mark.parametrize("combine", COMBINES)
def test_a_replacement_keeps_what_has_a_place(combine: Combine):
    plain = random_weights(WindowAttention(6, 4, 2, shift=2, dropout=0.1))
    layer = ACmixWindow.replacing(plain, combine=combine)
    assert (layer.dim, layer.window, layer.heads, layer.shift, layer.proj_drop.p) == (6, 4, 2, 2, 0.1)
    state, kept = layer.state_dict(), plain.state_dict()
    shared = state.keys() & kept.keys()
    assert shared == ({"qkv.weight", "qkv.bias"} if combine == "convolution" else kept.keys())
    assert all(torch.equal(state[key], kept[key]) for key in shared)


def test_other_heads_than_the_layers_draw_the_position_bias_anew():
    plain = random_weights(WindowAttention(6, 4, 2))
    layer = ACmixWindow.replacing(plain, heads=3)
    assert torch.equal(layer.proj.weight, plain.proj.weight)
    assert layer.relative_position_bias_table.shape == (49, 3)
    assert layer.relative_position_bias_table.abs().max() <= 2
    with pytest.raises(ShapeMismatch, match="heads=4 does not divide 6 channels; 1, 2, 3 and 6 do"):
        ACmixWindow.replacing(plain, heads=4)


def test_the_attention_alone_swapped_in_changes_nothing():
    model = nn.Sequential(random_weights(WindowAttention(6, 4, 2, shift=1)))
    x = a_map(1, 8, 10, 6)
    before = model(x)
    assert [(slot.kind, slot.channels, slot.stride) for slot in find(model)] == [("window", 6, 1)]
    swap(model, [{"layers": "*", "mixer": {"name": "acmix", "options": {"combine": "attention"}}}])
    assert isinstance(model[0], ACmixWindow)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("combine", COMBINES)
def test_tracing_leaves_both_paths_strengths_and_changes_nothing(combine: Combine):
    layer, x = a_layer(4, 3, 2, shift=1, combine=combine), a_map(2, 7, 6, 4)
    untraced = layer(x)
    layer.tracing = True
    assert torch.equal(layer(x), untraced)
    figures = layer.figures()
    for rms, path in ((figures[2], attention_by_definition), (figures[3], convolution_by_definition)):
        has = layer.has_attention if path is attention_by_definition else layer.has_convolution
        expected = path(layer, x).square().mean().sqrt().float() if has else torch.zeros(())
        torch.testing.assert_close(rms, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_own_precision_and_keeps_gradients_full(dtype: torch.dtype):
    layer = ACmixWindow(8, 3, 2, shift=1)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(torch.randn(2, 7, 6, 8))
        out.float().square().mean().backward()
    assert out.dtype == dtype
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_precision_trains(dtype: torch.dtype):
    exact = a_layer(8, 3, 2, shift=1)
    layer, x = copy.deepcopy(exact).to(dtype), a_map(2, 6, 8, 8)
    out = layer(x.to(dtype))
    out.float().sum().backward()
    torch.testing.assert_close(out.double(), exact(x), rtol=0.05, atol=0.3)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_meta_device_tells_shapes():
    with torch.device("meta"):
        assert ACmixWindow(4, 3, 2, shift=1)(torch.empty(2, 7, 5, 4)).shape == (2, 7, 5, 4)


def test_a_mask_made_in_inference_mode_serves_training_too():
    layer, x = a_layer(4, 3, 2, shift=1), a_map(1, 11, 13, 4)  # a size that no other test has
    with torch.inference_mode():
        judged = layer(x)
    trained = layer(x)
    trained.sum().backward()
    torch.testing.assert_close(judged.clone(), trained, rtol=0, atol=1e-12)


def test_dropout_is_that_of_the_sum_and_of_training_alone():
    layer, x = a_layer(4, 3, 2, dropout=0.5), a_map(4, 6, 6, 4)
    whole = layer.eval()(x)
    dropped = layer.train()(x)
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


@pytest.mark.parametrize("shift", [0, 1])
def test_it_compiles_without_a_graph_break(shift: int):
    layer, x = a_layer(4, 3, 2, shift=shift), a_map(2, 7, 6, 4).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_alike(compiled(x), layer(x), [x, *layer.parameters()])


@pytest.mark.parametrize("roll_convolution", [True, False])
def test_it_exports(roll_convolution: bool):
    layer, x = a_layer(4, 3, 2, shift=1, roll_convolution=roll_convolution).eval(), a_map(2, 7, 6, 4)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=0, atol=1e-12)


def test_a_shift_beyond_the_window_is_refused():
    with pytest.raises(OptionInvalid, match="shift=3 is no part of a window of 3; 0 to 2 are"):
        ACmixWindow(4, 3, 2, shift=3)


def test_the_registry_knows_it_as_acmix_for_windows():
    form = entries("mixers")["acmix:window"]
    assert form is ACmixWindow
    options = {"heads", "kernel_conv", "combine", "shift", "roll_convolution", "alpha", "beta"}
    assert set(schema(form.replacing)["properties"]) == options
    assert check_options(form.replacing, {}, where="mixer")["heads"] is None
    for wrong in ({"heads": 0}, {"kernel_conv": 2}, {"combine": "product"}, {"shift": 3}, {"roll_convolution": 1}):
        with pytest.raises(OptionInvalid):
            check_options(form.replacing, wrong, where="mixer")
