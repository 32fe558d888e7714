"""The authors' weights under the authors' names."""

import pytest
import torch
from torch import Tensor, nn

from acmix import authors
from acmix.errors import CheckpointIncompatible
from acmix.mixers import ACmixConv2d
from acmix.model import build

THEIR_SHAPES = {
    "rate1": (1,),
    "rate2": (1,),
    "conv1.weight": (8, 6, 1, 1),
    "conv1.bias": (8,),
    "conv2.weight": (8, 6, 1, 1),
    "conv2.bias": (8,),
    "conv3.weight": (8, 6, 1, 1),
    "conv3.bias": (8,),
    "conv_p.weight": (2, 2, 1, 1),
    "conv_p.bias": (2,),
    "fc.weight": (9, 12, 1, 1),
    "dep_conv.weight": (8, 9, 3, 3),
}


def their_weights() -> dict[str, Tensor]:
    """A layer of 6 to 8 channels as the authors save it; each tensor is full of its own number."""
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(THEIR_SHAPES.items())}


def test_each_of_their_tensors_goes_where_its_part_is():
    layer = ACmixConv2d(6, 8)
    authors.load(layer, their_weights())
    parts = (layer.alpha, layer.beta, layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.bias, layer.fc.weight)
    assert [part.unique().item() for part in parts] == [0, 1, 2, 4, 7, 10]
    assert layer.position_proj.bias is not None
    assert layer.position_proj.bias.unique().item() == 9
    assert layer.dep_conv.weight.unique().item() == 11


@pytest.mark.parametrize("nest", ["model", "state_dict"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_nests_and_wrappers_of_training_scripts_are_seen_through(nest: str, wrapper: str):
    layer = ACmixConv2d(6, 8)
    weights = {wrapper + key: value for key, value in their_weights().items()}
    authors.load(layer, {nest: weights, "epoch": 90, "optimizer": {}})
    assert layer.dep_conv.weight.unique().item() == 11


def test_a_model_renames_its_acmix_layers_alone():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), ACmixConv2d(6, 8))
    weights = {f"1.{key}": value for key, value in their_weights().items()}
    authors.load(model, {"0.weight": torch.ones(6, 3, 1, 1), "0.bias": torch.ones(6), **weights})
    assert model[0].weight.unique().item() == 1
    assert model[1].beta.item() == 1


def test_gradients_come_under_their_names_with_zeros_where_there_is_none():
    layer = ACmixConv2d(6, 8)
    untouched = authors.gradients(layer)
    assert {name: tuple(value.shape) for name, value in untouched.items()} == THEIR_SHAPES
    assert not any(value.any() for value in untouched.values())
    layer(torch.randn(1, 6, 5, 5)).square().sum().backward()
    assert layer.q_proj.weight.grad is not None
    assert torch.equal(authors.gradients(layer)["conv1.weight"], layer.q_proj.weight.grad)


def test_weights_that_do_not_fit_are_named_and_change_nothing():
    layer = ACmixConv2d(6, 8)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    weights = their_weights()
    del weights["conv_p.bias"]
    with pytest.raises(CheckpointIncompatible) as caught:
        authors.load(
            layer, weights | {"dep_conv.bias": torch.ones(8), "fc.weight": torch.ones(9, 6, 1, 1), "rate1": 0.5}
        )
    for fault in (
        "missing: conv_p.bias",
        "unexpected: dep_conv.bias",
        "fc.weight has shape [9, 6, 1, 1] where the model has [9, 12, 1, 1]",
        "rate1 has no tensor where the model has [1]",
    ):
        assert fault in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_foreign_checkpoint_is_refused_in_a_message_of_bounded_length():
    model = build({"name": "resnet26", "options": {"width": 0.125}}, [{"layers": "*"}], num_classes=2, image_px=32)
    with pytest.raises(CheckpointIncompatible, match="and 990 more") as caught:
        authors.load(model, {f"blocks.{index}.weight": torch.ones(1) for index in range(1000)})
    assert len(str(caught.value)) < 1000
