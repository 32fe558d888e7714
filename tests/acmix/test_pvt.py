"""PVTs: the published sizes, plain and swapped, on images of any size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix import registry, spec
from acmix.backbones._drop_path import DropPath, rates
from acmix.backbones.pvt import PVT, PVTSmall, PVTTiny
from acmix.errors import OptionInvalid, ShapeMismatch, SpecInvalid
from acmix.mixers import ACmixReduced, layers_of
from acmix.model import build
from acmix.plan import plan
from acmix.swap import find
from tests.acmix.test_acmix_reduced import attention_by_definition, randomized

EVERY_SLOT = [{"layers": "*"}]
TINY = {"patch_px": 1, "width": 0.0625, "depths": [1, 2, 1, 1]}


def on_meta(backbone: Any, swaps: Any = (), *, image_px: int = 224) -> nn.Module:
    with torch.device("meta"):
        return build(backbone, swaps, num_classes=1000, image_px=image_px)


def some_images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "params", "macs", "swapped_params", "swapped_macs"),
    [("pvt_tiny", 13.2e6, 1.9e9, 13e6, 2.0e9), ("pvt_small", 24.5e6, 3.8e9, 25e6, 3.9e9)],
)
def test_sizes_are_the_published_ones(
    name: str, params: float, macs: float, swapped_params: float, swapped_macs: float
):
    job = spec.parse({"backbone": {"name": name}, "swaps": EVERY_SLOT, "dataset": {"name": "digits"}})
    totals = plan(job, num_classes=1000, image_px=224)["totals"]
    assert totals["before"]["params"] == pytest.approx(params, abs=max(0.01 * params, 0.05e6))
    assert totals["before"]["macs"] == pytest.approx(macs, abs=0.05e9)
    assert totals["after"]["params"] == pytest.approx(swapped_params, abs=max(0.03 * swapped_params, 0.5e6))
    assert totals["after"]["macs"] == pytest.approx(swapped_macs, rel=0.15)


def test_parameters_keep_the_authors_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in on_meta("pvt_tiny").state_dict().items()}
    assert (
        shapes.items()
        >= {
            "cls_token": (1, 1, 512),
            "pos_embed1": (1, 56 * 56, 64),
            "pos_embed4": (1, 7 * 7 + 1, 512),
            "patch_embed2.proj.weight": (128, 64, 2, 2),
            "patch_embed2.norm.weight": (128,),
            "block1.0.norm1.weight": (64,),
            "block1.0.attn.q.weight": (64, 64),
            "block1.0.attn.kv.bias": (128,),
            "block1.0.attn.proj.weight": (64, 64),
            "block1.1.attn.sr.weight": (64, 64, 8, 8),
            "block3.1.attn.norm.bias": (320,),
            "block3.0.norm2.bias": (320,),
            "block3.0.mlp.fc1.weight": (1280, 320),
            "block4.1.mlp.fc2.bias": (512,),
            "norm.weight": (512,),
            "head.weight": (1000, 512),
        }.items()
    )
    assert not any(name.startswith(("block4.0.attn.sr", "block4.0.attn.norm")) for name in shapes)


def by_definition(model: PVT, images: Tensor) -> Tensor:
    """The plain model of images of its own size, stage by stage."""
    grid = images
    for stage in (1, 2, 3, 4):
        embedding, position = getattr(model, f"patch_embed{stage}"), getattr(model, f"pos_embed{stage}")
        grid = embedding.proj(grid)
        height, width = grid.shape[-2:]
        x = F.layer_norm(grid.flatten(2).mT, (grid.shape[1],), embedding.norm.weight, embedding.norm.bias, 1e-5)
        if stage == 4:
            x = torch.cat([model.cls_token.repeat(len(x), 1, 1), x], dim=1)
        x = x + position
        for block in getattr(model, f"block{stage}"):
            normed = F.layer_norm(x, x.shape[2:], block.norm1.weight, block.norm1.bias, 1e-6)
            x = x + attention_by_definition(block.attn, normed, height, width)
            normed = F.layer_norm(x, x.shape[2:], block.norm2.weight, block.norm2.bias, 1e-6)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
        grid = x[:, -height * width :].mT.unflatten(2, (height, width))
    return model.head(F.layer_norm(x, x.shape[2:], model.norm.weight, model.norm.bias, 1e-6)[:, 0])


@pytest.mark.parametrize(("patch_px", "image_px"), [(1, 9), (2, 24)])
def test_a_plain_model_is_its_definition(patch_px: int, image_px: int):
    model = randomized(PVT(5, image_px, **TINY | {"patch_px": patch_px}))
    images = some_images(2, 3, image_px, image_px)
    torch.testing.assert_close(model(images), by_definition(model, images), rtol=0, atol=1e-10)


DEPTHS = st.lists(st.integers(1, 3), min_size=4, max_size=4)
WIDTHS = st.integers(2, 128).map(lambda sixty_fourths: sixty_fourths / 64)


@settings(max_examples=12, deadline=None)
@given(backbone=st.sampled_from([PVTTiny, PVTSmall]), width=WIDTHS, patch_px=st.sampled_from([1, 4, 16]))
@example(backbone=PVTTiny, width=1 / 32, patch_px=4)
def test_slots_in_the_catalog_are_the_slots_of_the_model(backbone: type[PVT], width: float, patch_px: int):
    options = {"width": width, "patch_px": patch_px}
    assert backbone.slot_pattern.slots(options) == find(on_meta({"name": backbone.name, "options": options}))


@settings(max_examples=12, deadline=None)
@given(width=WIDTHS, depths=DEPTHS)
def test_depths_of_ones_own_move_the_slots(width: float, depths: list[int]):
    options = {"width": width, "depths": depths}
    assert PVT.slot_pattern.slots(options) == find(on_meta({"name": "pvt", "options": options}))


def test_slots_without_options_are_those_of_the_defaults():
    for name in ("pvt", "pvt_tiny", "pvt_small"):
        assert registry.get("backbones", name).slot_pattern.slots({}) == find(on_meta(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pvt_tiny", {"width": 0.3}),
        ("pvt_tiny", {"width": 0.015625}),
        ("pvt_tiny", {"depths": [1, 1, 1, 1]}),
        ("pvt_tiny", {"reductions": [8, 4, 2]}),
        ("pvt_tiny", {"drop_path": 1.0}),
        ("pvt", {"depths": [1, 1, 1]}),
        ("pvt", {"patch_px": 0}),
    ],
)
def test_options_out_of_bounds_are_refused(name: str, options: dict[str, Any]):
    with pytest.raises(OptionInvalid):
        on_meta({"name": name, "options": options})


@pytest.mark.parametrize(
    ("image_px", "patch_px", "sentence"),
    [
        (24, 4, "24 px images with patch_px=4 have no map left in the last stage; 32 px would do, or patch_px=3"),
        (7, 1, "7 px images with patch_px=1 have no map left in the last stage; 8 px would do"),
    ],
)
def test_images_that_are_too_small_are_refused_with_what_would_do(image_px: int, patch_px: int, sentence: str):
    with pytest.raises(ShapeMismatch) as caught:
        PVTTiny(10, image_px, patch_px=patch_px)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("swaps", [(), EVERY_SLOT], ids=["plain", "acmix"])
@pytest.mark.parametrize("size", [(32, 32), (47, 61), (16, 8)])
def test_a_model_takes_images_of_other_sizes(size: tuple[int, int], swaps: Any):
    model = build({"name": "pvt", "options": TINY}, swaps, num_classes=5, image_px=16)
    logits = model(torch.randn(2, 3, *size))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_position_embeddings_are_resized_and_the_class_tokens_is_not():
    model = randomized(PVT(5, 16, **TINY))
    own, other = model._positions(4, 2, 2), model._positions(4, 3, 5)
    assert own is model.pos_embed4
    assert torch.equal(other[:, 0], own[:, 0])
    map_of_own = own[:, 1:].mT.unflatten(2, (2, 2))
    expected = F.interpolate(map_of_own, size=(3, 5), mode="bilinear").flatten(2).mT
    torch.testing.assert_close(other[:, 1:], expected)


def test_a_reduction_of_the_last_stage_leaves_the_class_token_a_key():
    model = PVT(5, 16, **TINY, reductions=[1, 1, 1, 2])
    logits = model(torch.randn(2, 3, 16, 16))
    logits.sum().backward()
    assert model.cls_token.grad is not None
    assert model.cls_token.grad.any()


@pytest.mark.parametrize("combine", ["convolution", "attention", "alpha_beta"])
def test_every_combination_sees_the_image(combine: str):
    mixer = {"name": "acmix", "options": {"combine": combine}}
    model = build({"name": "pvt", "options": TINY}, [{"layers": "*", "mixer": mixer}], num_classes=5, image_px=8)
    one, other = model(torch.randn(2, 3, 8, 8))
    assert not torch.allclose(one, other)


def test_a_swap_leaves_everything_else_as_it_was():
    torch.manual_seed(0)
    plain = build({"name": "pvt", "options": TINY}, num_classes=5, image_px=8)
    torch.manual_seed(0)
    swapped = build({"name": "pvt", "options": TINY}, EVERY_SLOT, num_classes=5, image_px=8)
    assert {type(layer) for layer in layers_of(swapped).values()} == {ACmixReduced}
    state = swapped.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def test_weights_are_drawn_as_the_authors_do():
    model = PVTTiny(10, 64)
    assert model.block4[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.pos_embed2.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.block4[0].attn.q.bias.any()


def test_residual_branches_are_left_out_more_often_the_deeper_they_are():
    assert rates(0.3, (1, 2, 1)) == [[0.0], pytest.approx([0.1, 0.2]), pytest.approx([0.3])]
    model = PVT(5, 8, **TINY, drop_path=0.4)
    dropping = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert dropping == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_a_branch_is_left_out_sample_by_sample_and_only_while_training():
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = layer(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(branch) is branch


def test_a_plan_counts_nothing_for_branches_left_out():
    totals = []
    for drop_path in (0.0, 0.5):
        job = spec.parse(
            {"backbone": {"name": "pvt", "options": TINY | {"drop_path": drop_path}}, "dataset": {"name": "digits"}}
        )
        totals.append(plan(job, num_classes=10, image_px=8)["totals"]["before"])
    assert totals[0]["macs"] == totals[1]["macs"]
    assert totals[0]["params"] == totals[1]["params"]


def faults_of(mixer_options: dict[str, Any]) -> list[Any]:
    swaps = [{"layers": "*", "mixer": {"name": "acmix", "options": mixer_options}}]
    job = spec.parse({"backbone": {"name": "pvt_tiny"}, "swaps": swaps, "dataset": {"name": "digits"}})
    with pytest.raises(SpecInvalid) as caught:
        plan(job, num_classes=10, image_px=32)
    return caught.value.problems


def test_a_plan_tells_heads_that_would_do():
    (problem,) = faults_of({"heads": 3})
    assert (problem.pointer, problem.code, problem.fixes) == (
        "/swaps/0/mixer/options/heads",
        "does_not_divide",
        [2, 4, 1],
    )


def test_a_plan_blames_no_heads_where_they_are_the_layers_own():
    (problem,) = faults_of({"combine": "sum", "alpha": 0.3})
    assert problem.pointer == "/swaps/0/mixer/options"
    assert "alpha=0.3 has no place with combine='sum'" in problem.message


@pytest.mark.slow
def test_a_swapped_model_compiles_whole_and_exports():
    smallest = {"name": "pvt", "options": dict(PVT.smallest)}
    model = build(smallest, EVERY_SLOT, num_classes=5, image_px=8).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
