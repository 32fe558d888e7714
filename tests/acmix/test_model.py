"""A model from the parts of a spec."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from acmix import backbones, registry
from acmix.backbones.resnet import ResNet26
from acmix.errors import LayerNotFound, NameNotFound, OptionInvalid
from acmix.mixers import layers_of
from acmix.model import build
from acmix.spec import Backbone, Swap

TINY = {"name": "resnet26", "options": {"stem": "small", "width": 0.0625}, "weights": None}


def test_a_name_alone_builds_the_default():
    with torch.device("meta"):
        model = build("resnet26", num_classes=10, image_px=224)
    assert isinstance(model, ResNet26)
    assert model.fc.out_features == 10


def test_json_and_spec_build_the_same():
    models = []
    for backbone, swap in (
        (TINY, {"layers": "layer[34].*", "mixer": {"name": "acmix", "options": {"heads": 2}}}),
        (Backbone(**TINY), Swap(layers="layer[34].*", mixer={"name": "acmix", "options": {"heads": 2}})),
    ):
        torch.manual_seed(0)
        models.append(build(backbone, [swap], num_classes=10, image_px=8))
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert list(layers_of(models[0])) == [f"layer3.{block}.conv2" for block in range(4)] + ["layer4.0.conv2"]


def test_every_stage_keeps_its_shift_kernels():
    model = build(TINY, [{"layers": "*"}], num_classes=2, image_px=8)
    for layer in layers_of(model).values():
        fresh = layer.dep_conv.weight.clone()
        layer.reset_shifts()
        assert torch.equal(layer.dep_conv.weight, fresh)


LINEAR = """
from torch import nn


class Linear(nn.Linear):
    name = "linear"

    def __init__(self, num_classes: int, image_px: int, *, bias: bool = True) -> None:
        super().__init__(3 * image_px**2, num_classes, bias=bias)
"""


@pytest.fixture
def linear_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file dropped in the folder of backbones."""
    (tmp_path / "linear.py").write_text(LINEAR)
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()
    sys.modules.pop("acmix.backbones.linear")


@pytest.mark.usefixtures("linear_backbone")
def test_image_px_reaches_the_backbones_that_depend_on_it_and_is_no_option():
    model = build({"name": "linear", "options": {"bias": False}}, num_classes=4, image_px=8)
    assert model.weight.shape == (4, 192)
    assert model.bias is None
    with pytest.raises(OptionInvalid):
        build({"name": "linear", "options": {"image_px": 9}}, num_classes=4, image_px=8)


def test_an_unknown_backbone_answers_the_nearest():
    with pytest.raises(NameNotFound, match="resnet26"):
        build("resnet62", num_classes=10, image_px=32)


def test_a_field_that_no_spec_has_is_refused():
    with pytest.raises(ValidationError):
        build({**TINY, "option": {}}, num_classes=10, image_px=32)


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(LayerNotFound, match=r"layer1\.0\.conv2"):
        build(TINY, [{"layers": "layer9.*"}], num_classes=10, image_px=32)
