"""ACmixReduced: against its definition, step by step, and the attention that it stands in for."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from acmix.backbones.pvt import ReducedAttention
from acmix.errors import OptionInvalid, ShapeMismatch
from acmix.mixers import ACmixReduced
from acmix.mixers._layer import Combine
from acmix.ops.shift_conv import REFERENCES, Shift, reference_shift_conv
from acmix.registry import check_options, entries, schema
from acmix.swap import find, swap

SHIFTS: tuple[Shift, ...] = get_args(Shift)
COMBINES: tuple[Combine, ...] = get_args(Combine)


def by_definition(layer: ACmixReduced, x: Tensor, height: int, width: int) -> Tensor:
    """The layer step by step; only what has a place on the map gets something from the convolution."""
    class_tokens = x.shape[1] - height * width
    alpha, beta = layer.strengths()
    out = torch.zeros_like(x)
    if layer.has_attention:
        out = alpha * attention_by_definition(layer, x, height, width)
    if layer.has_convolution:
        convolution = convolution_by_definition(layer, x[:, class_tokens:], height, width)
        of_class = [] if layer.has_attention else [convolution.mean(1, keepdim=True)] * class_tokens
        zeros = [torch.zeros_like(x[:, :1])] * (class_tokens - len(of_class))
        out = out + beta * torch.cat([*of_class, *zeros, convolution], dim=1)
    return out


def attention_by_definition(layer: ACmixReduced | ReducedAttention, x: Tensor, height: int, width: int) -> Tensor:
    """Every token to the patches of the map: head by head, each patch flattened, normed and projected."""
    keys = x if layer.reduction == 1 else reduced_by_definition(layer, x, height, width)
    q, (k, v) = layer.q(x), layer.kv(keys).chunk(2, dim=2)
    attended = []
    for q_head, k_head, v_head in zip(*(each.chunk(layer.heads, dim=2) for each in (q, k, v)), strict=True):
        weights = (q_head @ k_head.mT / q_head.shape[2] ** 0.5).softmax(2)
        attended.append(weights @ v_head)
    return layer.proj(torch.cat(attended, dim=2))


def reduced_by_definition(layer: ACmixReduced | ReducedAttention, x: Tensor, height: int, width: int) -> Tensor:
    side, class_tokens = layer.reduction, x.shape[1] - height * width
    grid = x[:, class_tokens:].unflatten(1, (height, width))
    filled = torch.zeros(len(x), max(height, side), max(width, side), x.shape[2], dtype=x.dtype)
    filled[:, :height, :width] = grid
    patches = [
        filled[:, top : top + side, left : left + side].permute(0, 3, 1, 2).flatten(1)
        for top in range(0, filled.shape[1] - side + 1, side)
        for left in range(0, filled.shape[2] - side + 1, side)
    ]
    projected = torch.stack(patches, dim=1) @ layer.sr.weight.flatten(1).T + layer.sr.bias
    keys = torch.cat([x[:, :class_tokens], projected], dim=1)
    centred = keys - keys.mean(2, keepdim=True)
    normed = centred / (centred.square().mean(2, keepdim=True) + layer.norm.eps).sqrt()
    return normed * layer.norm.weight + layer.norm.bias


def convolution_by_definition(layer: ACmixReduced, x: Tensor, height: int, width: int) -> Tensor:
    """q and kv of the whole map, `fc` on the 3N maps, then the shifts; shared kernels stand for all heads."""
    q, (k, v) = layer.q(x), layer.kv(x).chunk(2, dim=2)
    maps = torch.cat([each.mT.unflatten(1, (layer.heads, -1)) for each in (q, k, v)], dim=1)
    features = maps.transpose(1, 2).flatten(1, 2).unflatten(2, (height, width))
    groups = maps.shape[2]
    if layer.shift_form in REFERENCES:
        out = REFERENCES[layer.shift_form](features, layer.fc.weight, groups=groups)
    else:
        out = reference_shift_conv(features, layer.fc.weight, layer.dep_conv.weight, groups=groups)
    if layer.shift_form != "full_group":
        out = out.repeat_interleave(layer.heads, dim=1)
    return out.flatten(2).mT


def randomized(layer: nn.Module, *, seed: int = 0) -> Any:
    """The layer in double precision, its every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return layer


def some_tokens(tokens: int, channels: int = 6, *, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_is_its_definition(layer: ACmixReduced, x: Tensor, height: int, width: int) -> None:
    """Output and every gradient, to 1e-10."""
    wanted = [x.requires_grad_(), *layer.parameters()]
    out, expected = layer(x, height, width), by_definition(layer, x, height, width)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    ours = torch.autograd.grad((out * weight).sum(), wanted)
    witness = torch.autograd.grad((expected * weight).sum(), wanted)
    torch.testing.assert_close(ours, witness, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize(("reduction", "class_tokens"), [(1, 1), (2, 0)])
def test_every_combination_is_its_definition(combine: Combine, shift: Shift, reduction: int, class_tokens: int):
    layer = randomized(ACmixReduced(6, 2, reduction, combine=combine, shift=shift))
    assert_is_its_definition(layer, some_tokens(5 * 4 + class_tokens), 5, 4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (5, 4), (9, 2), (2, 9), (1, 1)])
@pytest.mark.parametrize("class_tokens", [0, 1])
def test_maps_need_not_be_square_nor_multiples_of_the_reduction(height: int, width: int, class_tokens: int):
    layer = randomized(ACmixReduced(6, 3, 4))
    assert_is_its_definition(layer, some_tokens(height * width + class_tokens), height, width)


@pytest.mark.parametrize("kernel_conv", [1, 5])
def test_any_odd_kernel_is_its_definition(kernel_conv: int):
    layer = randomized(ACmixReduced(4, 2, 2, kernel_conv=kernel_conv))
    assert_is_its_definition(layer, some_tokens(12, 4), 3, 4)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("combine", ["alpha_beta", "convolution"])
def test_any_number_of_heads_is_its_definition(heads: int, combine: Combine):
    """Few heads and many take different ways where the convolution is alone."""
    layer = randomized(ACmixReduced(6, heads, 2, combine=combine))
    assert_is_its_definition(layer, some_tokens(21), 4, 5)


def test_all_shifts_agree_at_the_start():
    layers = [ACmixReduced(6, 2, 2, shift=shift).double() for shift in SHIFTS]
    x = some_tokens(31)
    outs = []
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict(), strict=False)
        outs.append(layer(x, 5, 6))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-10)


def test_the_convolution_adds_nothing_to_a_class_token():
    layer, x = randomized(ACmixReduced(6, 2, 1)), some_tokens(13)
    before = layer(x, 3, 4)
    nn.init.constant_(layer.beta, 7.0)
    after = layer(x, 3, 4)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.isclose(after[:, 1:], before[:, 1:]).any()


def test_a_class_token_hears_of_the_image_from_the_convolution_where_that_is_alone():
    layer, x = randomized(ACmixReduced(6, 2, 1, combine="convolution")), some_tokens(13)
    out = layer(x, 3, 4)
    torch.testing.assert_close(out[:, 0], out[:, 1:].mean(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_alone_is_the_layer_that_was_there_bit_for_bit(reduction: int, dtype: torch.dtype):
    plain = randomized(ReducedAttention(6, 2, reduction)).to(dtype)
    layer = ACmixReduced.replacing(plain, combine="attention")
    x = some_tokens(21).to(dtype)
    assert torch.equal(layer(x, 4, 5), plain(x, 4, 5))
    torch.testing.assert_close(plain(x, 4, 5), attention_by_definition(plain, x, 4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_swap_keeps_every_weight_that_has_a_place(reduction: int, dtype: torch.dtype):
    model = nn.Sequential(randomized(ReducedAttention(6, 3, reduction)).to(dtype))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    swap(model, [{"layers": "*"}])
    after = model.state_dict()
    assert isinstance(model[0], ACmixReduced)
    assert (model[0].channels, model[0].heads, model[0].reduction) == (6, 3, reduction)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(after) - set(before) == {"0.alpha", "0.beta", "0.fc.weight", "0.dep_conv.weight"}
    assert all(value.dtype == dtype for value in after.values())


def test_the_weights_that_are_kept_are_copies():
    plain = ReducedAttention(6, 2, 2)
    layer = ACmixReduced.replacing(plain)
    nn.init.zeros_(layer.q.weight)
    assert plain.q.weight.any()


def test_a_path_left_out_has_no_parameters():
    names = {combine: set(ACmixReduced(4, 2, 2, combine=combine).state_dict()) for combine in COMBINES}
    assert names["alpha_beta"] - names["complement"] == {"beta"}
    assert names["alpha_beta"] - names["sum"] == {"alpha", "beta"}
    assert names["sum"] - names["attention"] == {"fc.weight", "dep_conv.weight"}
    assert {name.partition(".")[0] for name in names["sum"] - names["convolution"]} == {"sr", "norm", "proj"}
    assert names["attention"] == set(ReducedAttention(4, 2, 2).state_dict())


def test_fixed_shifts_have_no_parameters():
    for shift in REFERENCES:
        learned = set(ACmixReduced(4, 2, 1).state_dict()) - set(ACmixReduced(4, 2, 1, shift=shift).state_dict())
        assert learned == {"dep_conv.weight"}


def test_slots_are_the_attentions_of_a_pvt_and_nothing_within_them():
    model = nn.Sequential(ReducedAttention(6, 2, 2), nn.Linear(6, 6))
    assert [(slot.name, slot.kind, slot.channels, slot.stride) for slot in find(model)] == [("0", "reduced", 6, 1)]
    swap(model, [{"layers": "*"}])
    assert find(model) == []


def test_heads_are_the_layers_own_unless_told():
    assert ACmixReduced.replacing(ReducedAttention(6, 2, 1)).heads == 2
    assert ACmixReduced.replacing(ReducedAttention(6, 2, 1), heads=3).heads == 3
    with pytest.raises(ShapeMismatch, match="heads=4 does not divide 6 channels; 1, 2, 3 and 6 do"):
        ACmixReduced.replacing(ReducedAttention(6, 2, 1), heads=4)


def test_the_registry_knows_it_as_acmix_for_reduced_attentions():
    form = entries("mixers")["acmix:reduced"]
    assert form is ACmixReduced
    options = {"heads", "kernel_conv", "combine", "shift", "alpha", "beta"}
    assert set(schema(form.replacing)["properties"]) == options
    for wrong in ({"heads": 0}, {"kernel_conv": 4}, {"combine": "product"}, {"kernel_att": 7}):
        with pytest.raises(OptionInvalid):
            check_options(form.replacing, wrong, where="mixer")


def test_multiply_adds_are_those_of_the_definition():
    """A layer of PVT's second stage at 224 px, and one of its last, counted by hand."""
    positions, keys, channels = 28 * 28, 7 * 7, 128
    attention = channels**2 * (2 * positions + 2 * keys) + 2 * channels * positions * keys
    reduction = keys * (4 * 4 * channels**2 + 2 * channels)
    convolution = positions * (2 * channels**2 + 6 * 9 * 64 + 81 * 128)
    layer = ACmixReduced(128, 2, 4)
    assert layer.macs(torch.Size([3, positions, 128])) == 3 * (attention + reduction + convolution)
    tokens, channels = 50, 512
    attention = 4 * channels**2 * tokens + 2 * channels * tokens * tokens
    convolution = 49 * (24 * 9 * 64 + 81 * channels)
    assert ACmixReduced(512, 8, 1).macs(torch.Size([1, tokens, 512])) == attention + convolution
    alone = ACmixReduced(512, 8, 1, combine="convolution")
    assert alone.macs(torch.Size([1, tokens, 512])) == 49 * 3 * channels**2 + convolution


def test_multiply_adds_of_tokens_that_are_no_square_map_are_not_guessed():
    with pytest.raises(NotImplementedError, match="12 tokens are no square map"):
        ACmixReduced(4, 2, 1).macs(torch.Size([1, 12, 4]))


@pytest.mark.parametrize("combine", COMBINES)
def test_autocast_computes_in_its_own_precision_and_keeps_gradients_full(combine: Combine):
    layer = ACmixReduced(8, 2, 2, combine=combine)
    x = some_tokens(17, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, 4, 4)
        out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in layer.parameters())
    torch.testing.assert_close(out.float(), layer(x, 4, 4), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precisions_train(dtype: torch.dtype):
    exact = randomized(ACmixReduced(8, 2, 2))
    layer, x = copy.deepcopy(exact).to(dtype), some_tokens(17, 8)
    out = layer(x.to(dtype), 4, 4)
    out.float().sum().backward()
    torch.testing.assert_close(out.double(), exact(x, 4, 4), rtol=0.05, atol=0.2)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in layer.parameters())


@pytest.mark.parametrize(("combine", "reduction"), [("alpha_beta", 1), ("alpha_beta", 2), ("convolution", 2)])
def test_it_compiles_whole_and_exports(combine: Combine, reduction: int):
    layer = ACmixReduced(6, 2, reduction, combine=combine)
    x = some_tokens(13).float()
    expected = layer(x, 4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 4, 3), expected)
    exported = torch.export.export(layer, (x, 4, 3)).module()
    torch.testing.assert_close(exported(x, 4, 3), expected)


@pytest.mark.parametrize("combine", COMBINES)
def test_tracing_leaves_both_paths_strengths_and_changes_nothing(combine: Combine):
    layer, x = randomized(ACmixReduced(6, 2, 2, combine=combine)), some_tokens(20)
    untraced = layer(x, 4, 5)
    layer.tracing = True
    assert torch.equal(layer(x, 4, 5), untraced)
    for path, left in (("attention", layer.attention_rms), ("convolution", layer.convolution_rms)):
        if not getattr(layer, f"has_{path}"):
            assert left is None
            continue
        definition = {"attention": attention_by_definition, "convolution": convolution_by_definition}[path]
        torch.testing.assert_close(left, definition(layer, x, 4, 5).square().mean().sqrt().float())


def test_the_meta_device_tells_shapes():
    with torch.device("meta"):
        assert ACmixReduced(6, 2, 2)(torch.empty(2, 21, 6), 4, 5).shape == (2, 21, 6)


def test_an_even_kernel_is_refused():
    with pytest.raises(OptionInvalid, match="kernel_conv=4 has no centre"):
        ACmixReduced(4, 2, 1, kernel_conv=4)
