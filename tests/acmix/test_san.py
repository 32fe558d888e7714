"""SANs: of the published sizes when plain, with slots where the catalog says, on images of any size."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix import spec
from acmix.backbones.san import SAN, SAN10, SAN15, SAN19, PatchwiseAttention
from acmix.errors import OptionInvalid
from acmix.model import build
from acmix.ops.patchwise_attention import reference_patchwise_attention
from acmix.plan import plan
from acmix.swap import find

EVERY_SLOT = [{"layers": "*"}]
SANS = {"san10": SAN10, "san15": SAN15, "san19": SAN19}


def a_small_san(swaps: Any = (), **options: Any) -> nn.Module:
    return build({"name": "san10", "options": {"width": 0.05, **options}}, swaps, num_classes=5, image_px=8)


def on_meta(backbone: Any) -> nn.Module:
    with torch.device("meta"):
        return build(backbone, num_classes=1000, image_px=224)


@pytest.mark.parametrize(
    ("name", "plain", "swapped"),
    [
        ("san10", {"params": 11.8e6, "macs": 1.9e9}, {"params": 12.1e6, "macs": 1.9e9}),
        ("san15", {"params": 16.2e6, "macs": 2.6e9}, {"params": 16.6e6, "macs": 2.7e9}),
        ("san19", {"params": 20.5e6, "macs": 3.3e9}, {"params": 21.2e6, "macs": 3.4e9}),
    ],
)
def test_sizes_are_the_published_ones(name: str, plain: dict[str, float], swapped: dict[str, float]):
    """Plain within half a unit of the last digit; swapped, where the design is ours, params 3 % and MACs 10 %."""
    job = spec.parse({"backbone": {"name": name}, "swaps": EVERY_SLOT, "dataset": {"name": "digits"}})
    totals = plan(job, num_classes=1000, image_px=224)["totals"]
    for size, half_a_unit, share in (("params", 0.05e6, 0.03), ("macs", 0.05e9, 0.1)):
        assert totals["before"][size] == pytest.approx(plain[size], abs=half_a_unit)
        assert totals["after"][size] == pytest.approx(swapped[size], rel=share)


def by_definition(model: SAN, images: Tensor) -> Tensor:
    """The plain network layer by layer, windows copied out."""
    x = model.conv(images)
    for transition, stage in zip(model.transitions, model.stages, strict=True):
        x = transition(x)
        for block in stage:
            attention, inner = block.attention, block.bn1(x).relu()
            qkv = (projection(inner) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
            out = reference_patchwise_attention(*qkv, attention.weighing, window=attention.window)
            x = x + block.conv(block.bn2(out).relu())
    return model.fc(model.bn(x).relu().mean((2, 3)))


def test_a_plain_san_is_its_definition():
    model = a_small_san(stem="imagenet").double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 37, 50, dtype=torch.float64)
    expected = by_definition(model, images)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=10)
@given(name=st.sampled_from(list(SANS)), stem=st.sampled_from(["imagenet", "small"]), width=st.floats(0.05, 8))
@example(name="san10", stem="small", width=0.05)
@example(name="san10", stem="small", width=0.1875)
def test_slots_in_the_catalog_are_the_slots_of_the_model(name: str, stem: str, width: float):
    options = {"stem": stem, "width": width}
    slots = find(on_meta({"name": name, "options": options}))
    assert SANS[name].slot_pattern.slots(options) == slots
    assert all(slot.channels % 8 == 0 for slot in slots)


@pytest.mark.parametrize("name", SANS)
def test_slots_without_options_are_those_of_the_defaults(name: str):
    assert SANS[name].slot_pattern.slots({}) == find(on_meta(name))


def test_windows_are_3_in_the_first_stage_and_7_in_the_others():
    windows = {
        name.split(".")[1]: layer.window
        for name, layer in on_meta("san19").named_modules()
        if isinstance(layer, PatchwiseAttention)
    }
    assert windows == {"0": 3, "1": 7, "2": 7, "3": 7, "4": 7}


@pytest.mark.parametrize("options", [{"width": 0.04}, {"width": 9}, {"stem": "large"}, {"depths": [1, 1, 1, 1, 1]}])
def test_options_out_of_bounds_are_refused(options: dict[str, Any]):
    with pytest.raises(OptionInvalid):
        on_meta({"name": "san10", "options": options})


@pytest.mark.parametrize("swaps", [(), EVERY_SLOT], ids=["plain", "swapped"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 17)])
def test_every_image_size_trains(size: tuple[int, int], stem: str, swaps: Any):
    model = a_small_san(swaps, stem=stem)
    logits = model(torch.randn(2, 3, *size))
    logits.logsumexp(1).sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", [32, 16, 8, 4, 2]), ("small", [64, 32, 16, 8, 4])])
def test_a_stem_tells_the_sides_of_the_maps(stem: str, sides: list[int]):
    model = a_small_san(stem=stem)
    seen: list[int] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _stage, _inputs, map_BCHW: seen.append(map_BCHW.shape[-1]))
    model(torch.randn(1, 3, 64, 64))
    assert seen == sides


def test_blocks_start_as_the_identity():
    model = a_small_san().eval()
    x = torch.randn(2, model.conv.out_channels, 5, 5)
    assert torch.equal(model.stages[0](x), x)


def test_the_same_seed_draws_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(a_small_san(EVERY_SLOT).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
