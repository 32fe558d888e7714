"""Finding slots and replacing those that a spec claims."""

import copy

import pytest
import torch
from torch import nn

from acmix.catalog import Slot
from acmix.errors import LayerClaimedTwice, LayerNotFound, NameNotFound, OptionInvalid, ShapeMismatch
from acmix.mixers import ACmixConv2d, layers_of
from acmix.spec import Swap
from acmix.swap import find, swap


def a_model() -> nn.Sequential:
    """Two slots, `0` and `2.body`, among layers that are none."""
    block = nn.Sequential()
    block.add_module("point", nn.Conv2d(8, 8, 1))
    block.add_module("depthwise", nn.Conv2d(8, 8, 3, padding=1, groups=8))
    block.add_module("body", nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False))
    block.add_module("growing", nn.Conv2d(12, 12, 3, padding=2))
    block.add_module("wide", nn.Conv2d(12, 12, 5, padding=2))
    block.add_module("oblong", nn.Conv2d(12, 12, 3, stride=(1, 2), padding=1))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.ReLU(), block)


def test_slots_are_the_plain_3x3_convolutions_in_depth_order():
    assert find(a_model()) == [
        Slot(name="0", kind="conv2d", channels=8, stride=1),
        Slot(name="2.body", kind="conv2d", channels=12, stride=2),
    ]


def test_a_module_may_keep_layers_of_its_own_from_being_slots():
    model = a_model()
    model[2].unswappable = ("body",)
    assert [slot.name for slot in find(model)] == ["0"]
    model.unswappable = ("0",)
    assert find(model) == []


@pytest.mark.parametrize("padding", ["same", 1, "valid", 0])
def test_padding_by_word_or_number_makes_a_slot(padding: str | int):
    assert [slot.name for slot in find(nn.Sequential(nn.Conv2d(4, 4, 3, padding=padding)))] == ["0"]


def test_nothing_inside_an_acmix_layer_is_a_slot():
    """With one channel a head, its `dep_conv` is an ungrouped 3x3 convolution."""
    assert find(nn.Sequential(ACmixConv2d(4, 4, heads=4))) == []


def test_a_swap_replaces_what_it_claims_and_leaves_the_rest():
    model = a_model()
    before = dict(model.named_modules())
    swap(model, [{"layers": "2.*", "mixer": {"name": "acmix", "options": {"heads": 3, "kernel_att": 5}}}])
    assert list(layers_of(model)) == ["2.body"]
    layer = model[2].body
    assert (layer.in_channels, layer.out_channels, layer.stride) == (8, 12, 2)
    assert (layer.heads, layer.kernel_att) == (3, 5)
    assert all(module is before[name] for name, module in model.named_children() if name != "2")


def test_swaps_take_specs_lists_of_globs_and_dilation():
    model = a_model()
    swap(model, [Swap(layers=["0", "2.b*"])])
    assert list(layers_of(model)) == ["0", "2.body"]
    assert model[0].dilation == 2


def test_a_swapped_layer_gives_maps_of_the_same_size():
    model = a_model()
    images = torch.randn(2, 3, 17, 20)
    shape = model(images).shape
    swap(model, [{"layers": "*"}])
    assert model(images).shape == shape


def test_mode_precision_and_device_stay():
    model = a_model().double().eval()
    model[2].train()
    swap(model, [{"layers": "*"}])
    assert model[0].alpha.dtype == torch.float64
    assert not model[0].training
    assert not model[0].q_proj.training
    assert model[2].body.training
    assert model[2].body.q_proj.training
    on_meta = a_model().to("meta")
    swap(on_meta, [{"layers": "*"}])
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("swaps", "error", "sentence"),
    [
        ([{"layers": "layer9.*"}], LayerNotFound, "'layer9.*' matches no slot; the slots are: 0, 2.body"),
        ([{"layers": "*"}, {"layers": "0"}], LayerClaimedTwice, "swaps 0 and 1 both claim 0"),
        (
            [{"layers": "0", "mixer": {"name": "acmx"}}],
            NameNotFound,
            "0: no mixer for conv2d is named 'acmx'; nearest: acmix",
        ),
        ([{"layers": "0", "mixer": {"name": "acmix", "options": {"head": 2}}}], OptionInvalid, "option 'head'"),
        (
            [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 8}}}],
            ShapeMismatch,
            "2.body: heads=8 does not divide 12 channels; 1, 2, 3, 4, 6 and 12 do",
        ),
    ],
)
def test_an_impossible_swap_says_why_and_changes_nothing(swaps: list, error: type[Exception], sentence: str):
    model = a_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        swap(model, swaps)
    assert sentence in str(caught.value)
    assert layers_of(model) == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
