"""Models of timm: timm's own when plain, and with ACmix in their convolutions and window attentions."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.gcvit import GlobalContextVit
from torch import nn

from acmix import registry
from acmix.backbones._timm_windows import offer_windows
from acmix.backbones.timm import Timm
from acmix.errors import LayerNotFound, NameNotFound, OptionInvalid, ShapeMismatch, SpecInvalid
from acmix.mixers import ACmixWindow, layers_of
from acmix.model import build
from acmix.plan import plan
from acmix.spec import JobSpec, parse
from acmix.swap import find, swap

EVERY_SLOT = [{"layers": "*"}]
SWIN = {
    "name": "timm/swin_tiny_patch4_window7_224",
    "options": {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
}

# one of each kind of block, and the side of images that its windows do not divide where it allows that
WINDOWED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "swin": (lambda: _swin(40), 40),
    "swin, small map": (lambda: _swin(24), 24),
    "davit": (lambda: timm.create_model("davit_tiny", embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 2)), 72),
    "twins": (
        lambda: timm.create_model(
            "twins_svt_small", embed_dims=(8, 8, 16, 16), num_heads=(2, 2, 4, 4), depths=(2, 1, 1, 1), img_size=96
        ),
        96,
    ),
    "gcvit": (lambda: GlobalContextVit(img_size=64, embed_dim=8, depths=(2, 2), num_heads=(2, 2)), 64),
    "maxvit": (lambda: timm.create_model("test_maxvit", img_size=64), 64),
}


def _swin(image_px: int) -> nn.Module:
    sizes = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "qkv_bias": image_px != 24}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=image_px, **sizes)


@torch.no_grad()
def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """A model whose every parameter counts."""
    torch.manual_seed(0)
    model = make().double().eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def windows_of(model: nn.Module) -> list[str]:
    return [slot.name for slot in find(model) if slot.kind == "window"]


def job(backbone: Any, swaps: Any = EVERY_SLOT) -> JobSpec:
    named = {"name": backbone} if isinstance(backbone, str) else backbone
    return parse({"backbone": named, "swaps": swaps, "dataset": {"name": "digits"}})


def problem_of(spec: JobSpec, *, image_px: int = 32) -> dict[str, Any]:
    with pytest.raises(SpecInvalid) as caught:
        plan(spec, num_classes=10, image_px=image_px)
    (problem,) = caught.value.problems
    return problem.as_json()


def test_a_plain_model_is_timms_own():
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", num_classes=7)
    torch.manual_seed(0)
    ours = build("timm/resnet18", num_classes=7, image_px=32)
    assert type(ours) is type(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))
    assert ours.pretrained_cfg == theirs.pretrained_cfg


def test_every_3x3_convolution_but_the_one_that_sees_pixels_is_a_slot():
    model = build("timm/test_resnet", num_classes=2, image_px=32)
    convolutions = [name for name, module in model.named_modules() if getattr(module, "kernel_size", 0) == (3, 3)]
    slots = [slot.name for slot in find(model)]
    assert model.conv1[0].in_channels == 3
    assert [
        name for name in convolutions if name not in slots and isinstance(model.get_submodule(name), nn.Conv2d)
    ] == ["conv1.0"]
    assert "layer1.0.conv1" in slots


def test_weight_standardised_convolutions_are_slots_and_those_padded_at_the_end_are_not():
    """TensorFlow's padding puts the windows of a strided convolution elsewhere."""
    standardised = [slot.name for slot in find(build("timm/test_nfnet", num_classes=2, image_px=32))]
    assert "stages.0.0.conv2" in standardised
    padded = build("timm/tf_efficientnetv2_b0", num_classes=2, image_px=32)
    strided = [name for name, layer in padded.named_modules() if type(layer).__name__ == "Conv2dSame"]
    slots = {slot.name: slot for slot in find(padded)}
    assert strided
    assert not set(strided) & set(slots)
    assert {slot.stride for slot in slots.values()} == {1}


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_model_whose_windows_are_offered_computes_what_it_did(kind: str):
    make, image_px = WINDOWED[kind]
    theirs = drawn(make)
    ours = copy.deepcopy(theirs)
    offer_windows(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, image_px, image_px, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("kind", WINDOWED)
def test_the_attention_of_a_swapped_window_keeps_its_weights_and_computes_the_same(kind: str):
    make, image_px = WINDOWED[kind]
    model = drawn(make)
    images = torch.randn(2, 3, image_px, image_px, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        offer_windows(model)
        names = windows_of(model)
        swap(model, [{"layers": names, "mixer": {"name": "acmix", "options": {"combine": "attention"}}}])
        assert [name for name, layer in layers_of(model).items() if isinstance(layer, ACmixWindow)] == names
        torch.testing.assert_close(model(images), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", WINDOWED)
def test_swapped_windows_train(kind: str):
    make, image_px = WINDOWED[kind]
    model = make()
    offer_windows(model)
    swap(model, [{"layers": windows_of(model)}])
    model.train()(torch.randn(2, 3, image_px, image_px)).logsumexp(1).sum().backward()
    assert all(layer.beta.grad.isfinite() and layer.alpha.grad.isfinite() for layer in layers_of(model).values())


def test_attentions_that_acmix_does_not_compute_are_no_slots():
    """A cosine attention; global queries; grids."""
    v2 = build({"name": "timm/swinv2_tiny_window8_256", "options": {"embed_dim": 24}}, num_classes=2, image_px=64)
    assert find(v2) == []
    gcvit = WINDOWED["gcvit"][0]()
    offer_windows(gcvit)
    assert windows_of(gcvit) == ["stages.0.blocks.0.attn", "stages.1.blocks.0.attn"]
    maxvit = WINDOWED["maxvit"][0]()
    offer_windows(maxvit)
    assert all("attn_block" in name for name in windows_of(maxvit))


@pytest.mark.parametrize("image_px", [32, 45])
@pytest.mark.parametrize("backbone", ["timm/test_resnet", SWIN], ids=["resnet", "swin"])
def test_a_swapped_model_trains_at_the_sizes_that_the_plain_one_takes(backbone: Any, image_px: int):
    model = build(backbone, EVERY_SLOT, num_classes=5, image_px=image_px)
    assert layers_of(model).keys() >= {slot.name for slot in find(build(backbone, num_classes=5, image_px=image_px))}
    logits = model(torch.randn(2, 3, image_px, image_px))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_model_of_one_image_size_is_built_for_the_data_sets():
    model = build("timm/test_vit", num_classes=2, image_px=48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 2)


def test_options_reach_the_model():
    model = build(
        {"name": "timm/test_resnet", "options": {"drop_rate": 0.25, "drop_path": 0.5}}, num_classes=2, image_px=8
    )
    assert model.drop_rate == 0.25
    assert model.layer4[-1].drop_path.drop_prob == 0.5
    assert build(
        {"name": "timm/test_vit", "options": {"patch_size": 4}}, num_classes=2, image_px=8
    ).patch_embed.grid_size == (2, 2)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("timm/vgg11", {"drop_path": 0.1}, "drop_path=0.1 is no option of timm/vgg11"),
        ("timm/hrnet_w18_small", {"drop_path": 0.1}, "drop_path=0.1 is no option of timm/hrnet_w18_small"),
        ("timm/gcvit_xxtiny", {"depths": [1, 1]}, r"depths=\[1, 1\] is no option of timm/gcvit_xxtiny"),
        ("timm/test_vit", {"pretrained": True}, "option 'pretrained'"),
        ("timm/test_vit", {"drop_rate": 1.0}, "option 'drop_rate'"),
    ],
)
def test_an_option_that_the_model_does_not_take_is_named(name: str, options: dict[str, Any], sentence: str):
    with torch.device("meta"), pytest.raises(OptionInvalid, match=sentence):
        build({"name": name, "options": options}, num_classes=2, image_px=32)
    assert problem_of(job({"name": name, "options": options}, []))["pointer"] == "/backbone/options"


def test_options_that_do_not_go_together_are_told_in_timms_words():
    with pytest.raises(ShapeMismatch, match="timm/test_vit cannot be built so: "):
        build({"name": "timm/test_vit", "options": {"embed_dim": 30, "num_heads": 4}}, num_classes=2, image_px=32)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm", "timm is a family of .* add the name of one, such as timm/"),
        ("timm/", "no backbone is named 'timm/'"),
        ("timm/resnet81", "nearest: timm/resnet18"),
        ("resnet26/resnet18", "no backbone is named 'resnet26/resnet18'"),
    ],
)
def test_a_name_that_is_no_model_says_what_is_one(name: str, sentence: str):
    with pytest.raises(NameNotFound, match=sentence):
        registry.get("backbones", name)
    assert problem_of(job(name))["pointer"] == "/backbone/name"


def test_every_model_of_timm_can_be_named():
    assert list(Timm.variants()) == timm.list_models()
    assert set(Timm.examples) <= set(Timm.variants())


def test_a_model_without_slots_says_so_when_it_is_swapped():
    sentence = "no layer that ACmix can stand in for"
    with pytest.raises(LayerNotFound, match=sentence):
        build("timm/test_convnext", EVERY_SLOT, num_classes=2, image_px=32)
    problem = problem_of(job("timm/convnext_atto"))
    assert problem["pointer"] == "/swaps/0/layers"
    assert sentence in problem["message"]


def test_a_plan_shows_every_slot_of_a_model():
    layers = plan(job("timm/test_resnet"), num_classes=10, image_px=32)["layers"]
    slots = find(build("timm/test_resnet", num_classes=10, image_px=32))
    assert [layer["layer"] for layer in layers] == [slot.name for slot in slots]
    assert {layer["mixer"] for layer in layers} == {"acmix"}
    (layer, *_) = plan(job(SWIN), num_classes=10, image_px=32)["layers"]
    assert layer["layer"] == "layers.0.blocks.0.attn"
    assert layer["after"]["params"] > layer["before"]["params"]


def test_a_patch_that_the_image_does_not_hold_is_told_with_sizes_that_would_do():
    problem = problem_of(job("timm/test_vit", []), image_px=8)
    assert (problem["pointer"], problem["code"]) == ("/dataset", "image_size")
    assert 32 in problem["fixes"]
