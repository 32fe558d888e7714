"""Ready specs are right, every one: what they name is there, and their models can be built."""

import pytest

from acmix import menu, mixers, resolve, spec
from acmix.catalog import Catalog, Preset
from acmix.model import build, trunk_of
from acmix.presets import HEADS, presets
from acmix.training.setup import task_of
from acmix.uncompiled import on_meta

PRESETS = {preset.name: preset for preset in presets()}
CLASSES = [f"class {number}" for number in range(150)]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return menu.catalog()


def test_every_name_is_there_once_and_told_in_the_spec() -> None:
    assert len(PRESETS) == len(presets())
    assert all(preset.spec["name"] == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_can_be_posted_as_it_is(preset: Preset, catalog: Catalog) -> None:
    assert resolve.problems(spec.parse(preset.spec), catalog) == []


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].spec["dataset"]["name"] != "image_folder"])
def test_a_row_of_detection_or_segmentation_is_plain_or_swapped_in_every_slot(name: str) -> None:
    job = spec.parse(PRESETS[name].spec)
    assert PRESETS[name].what.startswith(HEADS[job.task.options["head"]])
    task = task_of(job, CLASSES)
    with on_meta():
        backbone = build(job.backbone, job.swaps, num_classes=None, image_px=512)
        model = task.model(backbone, 512)
        slots = len(mixers.layers_of(trunk_of(build(job.backbone, [{"layers": "*"}], num_classes=None, image_px=512))))
    assert len(mixers.layers_of(trunk_of(model))) == (slots if name.endswith("-acmix") else 0)
    assert slots > 0
