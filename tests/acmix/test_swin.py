"""Swin Transformers: timm's when plain, the authors' once all slots are swapped."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from acmix import authors, registry, resolve, spec
from acmix.backbones.swin import MOST_STAGES, PatchMerging, Swin, SwinSmall, SwinTiny
from acmix.errors import CheckpointIncompatible, OptionInvalid, ShapeMismatch
from acmix.menu import catalog
from acmix.mixers import ACmixWindow, layers_of
from acmix.model import build
from acmix.plan import plan
from acmix.swap import find

GOLDEN = Path(__file__).with_name("golden")
MODELS = sorted(GOLDEN.glob("model_swin_acmix_*.safetensors"))
EVERY_SLOT = [{"layers": "*"}]
SMALL = {"name": "swin", "options": {"embed_dim": 4, "depths": [2, 1], "heads": [1, 2], "window": 3, "patch_px": 2}}


def on_meta(backbone: Any, swaps: Any = (), *, image_px: int = 224) -> nn.Module:
    with torch.device("meta"):
        return build(backbone, swaps, num_classes=1000, image_px=image_px)


def small(swaps: Any = (), *, image_px: int = 16, **options: Any) -> nn.Module:
    backbone = {"name": "swin", "options": {**SMALL["options"], **options}}
    return build(backbone, swaps, num_classes=5, image_px=image_px).double()


def recorded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        options = {name: json.loads(value) for name, value in file.metadata().items()}
        return options, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict


def official(size: str, device: str = "cpu") -> dict[str, Tensor]:
    """A released checkpoint's keys and shapes, full of zeros."""
    shapes = json.loads((GOLDEN / f"official_swin_{size}_acmix_state_dict.json").read_text())
    return {key: torch.zeros(shape, device=device) for key, shape in shapes.items()}


def test_golden_files_are_there():
    assert len(MODELS) == 2


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_logits_and_gradients_of_whole_models_are_the_authors(path: Path):
    options, values = recorded(path)
    image_px, num_classes = options.pop("img"), options.pop("num_classes")
    model = build({"name": "swin", "options": options}, EVERY_SLOT, num_classes=num_classes, image_px=image_px)
    model.double().eval()
    authors.load(model, {name[6:]: value for name, value in values.items() if name.startswith("state.")})
    logits = model(values["x"])
    logits.sum().backward()
    torch.testing.assert_close(logits, values["logits"], rtol=0, atol=1e-10)
    ours = authors.gradients(model)
    for name, value in values.items():
        if name.startswith("grad."):
            torch.testing.assert_close(ours[name[5:]], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "params", "macs", "plain_params", "plain_macs"),
    [
        ("swin_tiny", 28_649_908, 4.652e9, 28e6, 4.5e9),
        ("swin_small", 50_345_080, 9.004e9, 50e6, 8.7e9),
    ],
)
def test_sizes_are_the_released_ones(name: str, params: int, macs: float, plain_params: float, plain_macs: float):
    training = {"batch_size": 1}
    job = spec.parse(
        {"backbone": {"name": name}, "swaps": EVERY_SLOT, "dataset": {"name": "digits"}, "training": training}
    )
    totals = plan(job, num_classes=1000, image_px=224)["totals"]
    assert totals["after"]["params"] == params
    assert totals["after"]["macs"] == pytest.approx(macs, abs=5e5)
    assert totals["before"]["params"] == pytest.approx(plain_params, abs=max(0.01 * plain_params, 5e5))
    assert totals["before"]["macs"] == pytest.approx(plain_macs, abs=max(0.01 * plain_macs, 5e7))


def test_every_key_of_the_authors_checkpoint_has_its_place():
    model = build("swin_tiny", EVERY_SLOT, num_classes=1000, image_px=224)
    authors.load(model, {"model": {f"module.{key}": value for key, value in official("t").items()}, "epoch": 299})
    assert all(not value.any() for value in model.state_dict().values())


def test_every_key_of_the_larger_one_is_known():
    authors.load(on_meta("swin_small", EVERY_SLOT), official("s", "meta"))


def test_a_checkpoint_without_its_masks_and_indices_loads_too():
    model = on_meta("swin_tiny", EVERY_SLOT)
    remade = ("attn_mask", "relative_position_index")
    weights = {key: value for key, value in official("t", "meta").items() if not key.endswith(remade)}
    authors.load(model, weights)
    del weights["layers.0.blocks.0.attn.rate1"]
    with pytest.raises(CheckpointIncompatible, match=r"missing: layers\.0\.blocks\.0\.attn\.rate1$"):
        authors.load(model, weights)


def test_a_plain_swin_computes_what_timm_computes():
    depths, heads = [2, 3, 1], [1, 2, 3]
    theirs = timm.create_model(
        SwinTiny.timm_counterpart,
        img_size=64,
        num_classes=5,
        embed_dim=6,
        depths=depths,
        window_size=4,
        num_heads=heads,
    )
    theirs.double().eval()
    options = {"embed_dim": 6, "depths": depths, "heads": heads, "window": 4}
    ours = build({"name": "swin", "options": options}, num_classes=5, image_px=64).double().eval()
    ours.load_state_dict({Swin.name_of_timm(key): value for key, value in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-10)


def test_a_plain_swin_tiny_has_the_names_and_shapes_that_timm_has():
    with torch.device("meta"):
        theirs = timm.create_model(SwinTiny.timm_counterpart)
    assert {name: value.shape for name, value in on_meta("swin_tiny").state_dict().items()} == {
        SwinTiny.name_of_timm(name): value.shape for name, value in theirs.state_dict().items()
    }


@settings(max_examples=10, deadline=None)
@given(backbone=st.sampled_from([SwinTiny, SwinSmall]), thirds=st.integers(1, 64))
@example(backbone=SwinTiny, thirds=1)
def test_slots_in_the_catalog_are_the_slots_of_the_model(backbone: type[Swin], thirds: int):
    options = {"embed_dim": 3 * thirds}
    assert backbone.slot_pattern.slots(options) == find(on_meta({"name": backbone.name, "options": options}))


@settings(max_examples=10, deadline=None)
@given(embed_dim=st.integers(1, 100), depths=st.lists(st.integers(1, 3), min_size=1, max_size=MOST_STAGES))
def test_depths_and_channels_of_ones_own_move_the_slots(embed_dim: int, depths: list[int]):
    options = {"embed_dim": embed_dim, "depths": depths}
    model = on_meta({"name": "swin", "options": {**options, "heads": [1] * len(depths)}})
    assert Swin.slot_pattern.slots(options) == find(model)


def test_slots_without_options_are_those_of_the_defaults():
    for name in ("swin", "swin_tiny", "swin_small"):
        assert registry.get("backbones", name).slot_pattern.slots({}) == find(on_meta(name))


def test_the_catalog_tells_of_faults_without_a_model():
    menu = catalog()

    def pointers(options: dict[str, Any], mixer: dict[str, Any] | None = None, *, name: str = "swin") -> set[str]:
        swaps = [{"layers": "layers.0.blocks.0.attn", "mixer": {"name": "acmix", "options": mixer or {}}}]
        raw = {"backbone": {"name": name, "options": options}, "swaps": swaps, "dataset": {"name": "digits"}}
        return {problem.pointer for problem in resolve.problems(spec.parse(raw), menu)}

    assert pointers({"depths": [1, 1], "heads": [1, 2], "embed_dim": 10}) == set()
    assert pointers({"depths": [1] * 7}) == {"/backbone/options/depths"}
    assert pointers({"embed_dim": 10}, {"heads": 4}) == {"/swaps/0/mixer/options/heads"}
    assert pointers({"embed_dim": 10}, {"heads": None}) == set()
    assert pointers({"embed_dim": 10}, {"kernel_att": 7}) == {"/swaps/0/mixer/options/kernel_att"}
    assert pointers({"embed_dim": 10}, name="swin_tiny") == {"/backbone/options/embed_dim"}
    assert pointers({"depths": [1, 1]}, name="swin_tiny") == {"/backbone/options/depths"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": [1]}, "heads has 1 numbers where depths has 2"),
        ({"heads": [1, 3]}, r"heads\[1\]=3 does not divide the 8 channels of its stage"),
        ({"depths": []}, "depths"),
        ({"window": 0}, "window"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(OptionInvalid, match=sentence):
        small(**options)


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ShapeMismatch, match="patch_px=4 leaves nothing of 3 px images; 3 or less would do"):
        small(image_px=3, patch_px=4)


@pytest.mark.parametrize("swaps", [(), EVERY_SLOT], ids=["plain", "swapped"])
@pytest.mark.parametrize("size", [(2, 2), (16, 16), (15, 22), (7, 31)])
def test_every_image_size_trains(size: tuple[int, int], swaps: Any):
    model = small(swaps, image_px=size[0])
    logits = model(torch.randn(2, 3, *size, dtype=torch.float64))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("image_px", [6, 5, 4])
def test_where_the_map_is_no_larger_than_the_window_the_window_is_the_map(image_px: int):
    model = small(image_px=image_px, window=7)
    windows = [block.attn.window for stage in model.layers for block in stage.blocks]
    assert windows == [image_px // 2, image_px // 2, -(-(image_px // 2) // 2)]
    assert model.layers[0].blocks[1].attn.relative_position_bias_table.shape[0] == (2 * (image_px // 2) - 1) ** 2


@pytest.mark.parametrize("swaps", [(), EVERY_SLOT], ids=["plain", "swapped"])
def test_a_larger_window_that_is_never_filled_computes_the_same(swaps: Any):
    """A model for larger images sees a small one as a model with windows of the map's size does."""
    narrow, wide = (
        small(swaps, image_px=6, window=5, depths=[2], heads=[2]),
        small(swaps, image_px=32, window=5, depths=[2], heads=[2]),
    )
    weights = dict(narrow.state_dict())
    for key, table in weights.items():
        if key.endswith("bias_table"):
            whole = torch.randn(9, 9, 2, dtype=torch.float64)
            whole[2:-2, 2:-2] = table.view(5, 5, 2)
            weights[key] = whole.flatten(0, 1)
    wide.load_state_dict(weights)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(wide(images), narrow(images), rtol=0, atol=1e-10)


def test_no_position_of_a_block_sees_the_opposite_edge_of_the_image():
    """With the attention alone, what changes in the top left corner changes nothing in the bottom right one."""
    block = small(image_px=16).layers[0].blocks[1]
    assert block.shift == 1
    x = torch.randn(1, 8, 8, 4, dtype=torch.float64)
    changed = x.clone()
    changed[:, :2, :2] += 1
    differs = (block(changed) - block(x)).abs().sum(-1)[0] > 1e-12
    assert differs[:4, :4].any()
    assert not differs[5:].any()
    assert not differs[:, 5:].any()


def test_merging_takes_rows_before_columns():
    merging = PatchMerging(1)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    map_14 = torch.arange(6.0).view(1, 2, 3, 1)
    assert merging(map_14).tolist() == [[[[0, 3, 1, 4], [2, 5, 0, 0]]]]


def test_swapping_keeps_the_weights_of_the_attention():
    torch.manual_seed(0)
    plain = small()
    torch.manual_seed(0)
    swapped = small(EVERY_SLOT)
    assert all(isinstance(layer, ACmixWindow) for layer in layers_of(swapped).values())
    state = swapped.state_dict()
    assert plain.state_dict().keys() < state.keys()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_drop_path_grows_with_depth_and_is_off_in_evaluation():
    model = small(drop_path=0.5)
    assert [block.drop_path.rate for stage in model.layers for block in stage.blocks] == [0, 0.25, 0.5]
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(images), model(images))


def test_weights_are_drawn_as_the_authors_do():
    model = build({"name": "swin_tiny", "options": {"embed_dim": 24}}, num_classes=10, image_px=224)
    attention = model.layers[3].blocks[0].attn
    assert attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert attention.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.1)
    assert not attention.qkv.bias.any()
