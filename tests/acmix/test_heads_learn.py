"""Half a minute of every head of detection and segmentation on a few scenes of digits: the loss halves."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from acmix import spec
from acmix.training.run import run
from tests.acmix.small import of_type

FIRST, LAST = 5, 10  # steps whose mean loss is compared
ANCHORS = {"channels": 32, "anchor_scale": 0.5}
REGIONS = {**ANCHORS, "proposals": 50, "regions": 32}
SCENES = 16


def _losses(folder: Path, task: str, options: dict[str, Any], batch_size: int, steps: int, lr: float) -> list[float]:
    scenes = {"image_px": 64, "train_scenes": SCENES, "val_scenes": 1, "test_scenes": 1}
    epochs = steps * batch_size // SCENES
    job = spec.parse(
        {
            "task": {"name": task, "options": options},
            "backbone": {"name": "resnet26", "options": {"width": 0.125}},
            "swaps": [{"layers": "layer[34].*", "mixer": {"name": "acmix", "options": {"heads": 4}}}],
            "dataset": {"name": f"digits_{task}", "options": scenes},
            "training": {
                "epochs": epochs,
                "batch_size": batch_size,
                "optimizer": {"name": "adamw", "lr": lr},
                "clip_norm": 10.0,
            },
            "evaluation": {"every_epochs": epochs},
        }
    )
    told = of_type(run(job, folder), "metrics")
    return [value for event in told for value in event.data["values"].get("train/loss", [])]


def _halves(losses: list[float]) -> bool:
    return mean(losses[-LAST:]) <= mean(losses[:FIRST]) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("head", "steps"), [("retinanet", 200), ("mask_rcnn", 120), ("cascade_mask_rcnn", 160)])
def test_a_detector_halves_its_loss(tmp_path: Path, head: str, steps: int):
    options = REGIONS if head != "retinanet" else ANCHORS
    losses = _losses(tmp_path, "detection", {"head": head, **options}, 4, steps, 2e-3)
    assert _halves(losses), losses


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_segmenter_halves_its_loss(tmp_path: Path, head: str):
    losses = _losses(tmp_path, "segmentation", {"head": head, "channels": 32}, 8, 100, 2e-3)
    assert _halves(losses), losses
