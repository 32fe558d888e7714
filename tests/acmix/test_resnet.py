"""ResNets: torchvision's when plain, the authors' once all slots are swapped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.models import resnet50

from acmix import authors, registry
from acmix.backbones.resnet import ResNet, ResNet26, ResNet38, ResNet50
from acmix.errors import OptionInvalid
from acmix.model import build
from acmix.swap import find

OFFICIAL_KEYS = Path(__file__).parent / "golden" / "official_resnet50_acmix_state_dict.json"
EVERY_SLOT = [{"layers": "*"}]


def on_meta(backbone: Any, swaps: Any = (), *, num_classes: int = 1000) -> torch.nn.Module:
    with torch.device("meta"):
        return build(backbone, swaps, num_classes=num_classes, image_px=224)


def parameters_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "plain", "swapped"),
    [("resnet26", None, 10_487_816), ("resnet38", None, 14_410_896), ("resnet50", 25_557_032, 18_333_976)],
)
def test_sizes_are_the_released_ones(name: str, plain: int | None, swapped: int):
    assert parameters_of(on_meta(name, EVERY_SLOT)) == swapped
    assert plain in {None, parameters_of(on_meta(name))}


def test_every_key_of_the_authors_checkpoint_has_its_place():
    official = {key: torch.Size(shape) for key, shape in json.loads(OFFICIAL_KEYS.read_text()).items()}
    model = build("resnet50", EVERY_SLOT, num_classes=1000, image_px=224)
    authors.load(model, {key: torch.zeros(shape) for key, shape in official.items()})
    assert all(not value.any() for value in model.state_dict().values())


def test_a_plain_resnet50_has_the_names_and_shapes_that_torchvision_has():
    with torch.device("meta"):
        theirs = resnet50()
    ours = on_meta("resnet50")
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }


def test_a_plain_resnet50_computes_what_torchvision_computes():
    theirs = resnet50().double().eval()
    ours = ResNet50(1000).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 40, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-10)


DEPTHS = st.lists(st.integers(1, 3), min_size=4, max_size=4)


@settings(max_examples=12, deadline=None)
@given(
    backbone=st.sampled_from([ResNet26, ResNet38, ResNet50]),
    stem=st.sampled_from(["imagenet", "small"]),
    width=st.floats(0.05, 8),
)
@example(backbone=ResNet26, stem="small", width=0.05)
def test_slots_in_the_catalog_are_the_slots_of_the_model(backbone: type[ResNet], stem: str, width: float):
    options = {"stem": stem, "width": width}
    assert backbone.slot_pattern.slots(options) == find(on_meta({"name": backbone.name, "options": options}))


@settings(max_examples=12, deadline=None)
@given(stem=st.sampled_from(["imagenet", "small"]), width=st.floats(0.05, 8), depths=DEPTHS)
def test_depths_of_ones_own_move_the_slots(stem: str, width: float, depths: list[int]):
    options = {"stem": stem, "width": width, "depths": depths}
    assert ResNet.slot_pattern.slots(options) == find(on_meta({"name": "resnet", "options": options}))


def test_slots_without_options_are_those_of_the_defaults():
    for name, backbone in registry.entries("backbones").items():
        if issubclass(backbone, ResNet):
            assert backbone.slot_pattern.slots({}) == find(on_meta(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet26", {"width": 0.04}),
        ("resnet26", {"width": 9}),
        ("resnet26", {"stem": "large"}),
        ("resnet26", {"depths": [1, 1, 1, 1]}),
        ("resnet", {"depths": [1, 1, 1]}),
        ("resnet", {"depths": [1, 1, 1, 65]}),
        ("resnet", {"depths": [1, 1, 1, 0]}),
    ],
)
def test_options_out_of_bounds_are_refused(name: str, options: dict[str, Any]):
    with pytest.raises(OptionInvalid):
        on_meta({"name": name, "options": options})


@pytest.mark.parametrize("swaps", [(), EVERY_SLOT], ids=["plain", "swapped"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 17)])
def test_every_image_size_trains(size: tuple[int, int], stem: str, swaps: Any):
    backbone = {"name": "resnet26", "options": {"stem": stem, "width": 0.0625}}
    model = build(backbone, swaps, num_classes=5, image_px=size[0])
    logits = model(torch.randn(2, 3, *size))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_small_stem_keeps_the_map():
    model = on_meta({"name": "resnet26", "options": {"stem": "small"}})
    assert model.conv1.stride == (1, 1)
    assert "conv1" not in {slot.name for slot in find(model)}


def test_the_same_seed_draws_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(build({"name": "resnet26", "options": {"width": 0.125}}, EVERY_SLOT, num_classes=3, image_px=32))
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_weights_are_drawn_as_he_et_al_do():
    model = ResNet26(10)
    weight = model.layer4[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert model.layer4[0].bn3.weight.unique().tolist() == [1.0]
