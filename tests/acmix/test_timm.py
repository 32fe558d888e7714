"""Models of timm: timm's own when plain, and with ACmix in their convolutions and window attentions."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from timm.models.gcvit import GlobalContextVit
from timm.models.nest import Nest
from torch import nn

from acmix import registry
from acmix.backbones import _timm_names
from acmix.backbones._timm_windows import offer_windows
from acmix.backbones.timm import Timm, tell_padding
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
    "maxvit, a bias made by a network": (lambda: _maxvit("maxvit_rmlp_pico_rw_256"), 64),
    "maxvit, tensorflow's bias": (lambda: _maxvit("maxvit_tiny_tf_224"), 64),
    "maxvit, windows and grid side by side": (lambda: _maxvit("maxvit_tiny_pm_256", embed_dim=(64, 64)), 64),
    "swin v2": (lambda: _swin_v2("swinv2_tiny_window8_256", 40), 40),
    "swin v2, without a bias": (lambda: _swin_v2("swinv2_tiny_window8_256", 24, qkv_bias=False), 24),
    "swin v2 of timm": (lambda: _swin_v2("swinv2_cr_tiny_224", 40, init_values=0.1), 40),
    "nest": (
        lambda: Nest(img_size=32, patch_size=2, num_levels=2, embed_dims=(8, 16), num_heads=(2, 4), depths=(1, 2)),
        32,
    ),
    "tiny_vit": (
        lambda: timm.create_model(
            "tiny_vit_5m_224",
            embed_dims=(8, 8, 16, 16),
            depths=(1, 2, 1, 1),
            num_heads=(2, 2, 4, 4),
            window_sizes=(3, 3, 3, 3),
        ),
        80,
    ),
    "sam": (
        lambda: timm.create_model(
            "samvit_base_patch16",
            img_size=80,
            embed_dim=12,
            depth=3,
            num_heads=2,
            neck_chans=8,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        80,
    ),
    "hiera": (
        lambda: timm.create_model("hiera_tiny_224", img_size=64, embed_dim=8, num_heads=1, stages=(2, 1, 2, 1)),
        64,
    ),
    "hiera, wider by pooling": (
        lambda: timm.create_model(
            "hiera_tiny_224", img_size=64, embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), use_expand_proj=False
        ),
        64,
    ),
    "hieradet": (
        lambda: timm.create_model(
            "sam2_hiera_tiny", embed_dim=8, num_heads=1, stages=(1, 2, 2, 1), global_att_blocks=(4,)
        ),
        64,
    ),
}
# what a window attention of timm keeps beside the projections and a bias for every offset
OWN = {
    "swin v2": {
        "scoring.logit_scale",
        "scoring.cpb_mlp.0.weight",
        "scoring.cpb_mlp.0.bias",
        "scoring.cpb_mlp.2.weight",
    },
    "tiny_vit": {"norm.weight", "norm.bias", "scoring.attention_biases"},
    "sam": {"scoring.rel_pos_h", "scoring.rel_pos_w"},
}


def _maxvit(name: str, **sizes: Any) -> nn.Module:
    small = {"embed_dim": (32, 32), "stem_width": 16, "depths": (1, 1), "img_size": 64}
    return timm.create_model(name, **(small | sizes))


def _swin_v2(name: str, image_px: int, **options: Any) -> nn.Module:
    sizes = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return timm.create_model(name, img_size=image_px, **sizes, **options)


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


def test_weight_standardised_convolutions_are_slots():
    standardised = [slot.name for slot in find(build("timm/test_nfnet", num_classes=2, image_px=32))]
    assert "stages.0.0.conv2" in standardised


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2dSame, ScaledStdConv2dSame])
def test_a_convolution_with_tensorflows_padding_is_a_slot_and_keeps_its_size(kind: Callable[..., nn.Module], side: int):
    model = nn.Sequential(kind(4, 4, 3, stride=2))
    tell_padding(model)
    x = torch.randn(1, 4, side, side)
    before = model(x).shape
    assert [(slot.name, slot.stride) for slot in find(model)] == [("0", 2)]
    swap(model, [{"layers": "0"}])
    assert model(x).shape == before


def test_every_3x3_convolution_of_a_model_of_tensorflows_is_a_slot():
    with torch.device("meta"):
        model = build("timm/tf_efficientnetv2_b0", num_classes=2, image_px=32)
    convolutions = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1
    ]
    assert [slot.name for slot in find(model)] == [name for name in convolutions if name != "conv_stem"]


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


@pytest.mark.parametrize("kind", OWN)
def test_what_an_attention_scores_with_goes_along(kind: str):
    model = WINDOWED[kind][0]()
    offer_windows(model)
    (name, *_) = windows_of(model)
    before = model.get_submodule(name).state_dict()
    swap(model, [{"layers": name}])
    layer = model.get_submodule(name)
    kept = layer.state_dict()
    assert {key for key in kept if key.startswith(("scoring.", "norm."))} == OWN[kind]
    assert all(torch.equal(kept[key], before[key.removeprefix("scoring.")]) for key in OWN[kind])
    assert "relative_position_bias_table" not in kept


def test_heads_of_an_attention_that_scores_in_its_own_way_are_as_many_as_it_has():
    model = WINDOWED["swin v2"][0]()
    offer_windows(model)
    with pytest.raises(ShapeMismatch, match=r"layers.0.blocks.0.attn: heads=4 where the attention scores 2 of them"):
        swap(model, [{"layers": "layers.0.blocks.0.attn", "mixer": {"name": "acmix", "options": {"heads": 4}}}])


@pytest.mark.parametrize("kind", WINDOWED)
def test_every_window_attention_is_a_slot(kind: str):
    """All that look at windows, and none that looks at the whole map."""
    model = WINDOWED[kind][0]()
    offer_windows(model)
    attentions = [name for name, module in model.named_modules() if hasattr(module, "qkv")]
    whole = {
        "davit": [name for name in attentions if ".1.attn" in name],  # over channels
        "sam": ["blocks.1.attn"],
        "hiera": ["blocks.4.attn", "blocks.5.attn"],
        "hiera, wider by pooling": ["blocks.3.attn"],
        "hieradet": ["blocks.4.attn"],
    }.get(kind, [])
    assert windows_of(model) == [name for name in attentions if name not in whole]


def test_a_pooling_attention_gives_a_smaller_map_of_more_channels():
    model = WINDOWED["hiera"][0]()
    offer_windows(model)
    slots = {slot.name: (slot.channels, slot.stride) for slot in find(model) if slot.kind == "window"}
    assert slots["blocks.2.attn"] == (16, 2)
    swap(model, [{"layers": "blocks.2.attn"}])
    assert model.get_submodule("blocks.2.attn")(torch.randn(1, 16, 16, 8)).shape == (1, 8, 8, 16)


def test_attentions_whose_paths_cannot_be_parted_are_no_slots():
    """Cascaded: each head projects what attention of the head before gave. Halo: its windows overlap."""
    assert windows_of(build("timm/efficientvit_m0", num_classes=2, image_px=64)) == []
    assert windows_of(build("timm/halonet26t", num_classes=2, image_px=64)) == []


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


def test_every_model_of_timm_can_be_named(monkeypatch: pytest.MonkeyPatch):
    """Listed for the version that is installed; of another, timm is asked."""
    listed, version_file = _timm_names.names.__wrapped__(), json.loads(_timm_names._FILE.read_text())
    assert version_file["timm"] == timm.__version__
    assert listed == _timm_names.asked()
    assert list(Timm.variants()) == timm.list_models()
    monkeypatch.setattr(_timm_names, "version", lambda _: "0.0.1")
    monkeypatch.setattr(_timm_names, "asked", lambda: "what timm says")
    assert _timm_names.names.__wrapped__() == "what timm says"
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
