"""Small detectors and a few real scenes for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from acmix.datasets.digits_detection import DigitsDetection
from acmix.model import build
from acmix.tasks.detection import Detection
from acmix.training.scenes import DetectionTransform

HEADS = ("retinanet", "mask_rcnn", "cascade_mask_rcnn")
SMALL = {"channels": 16, "proposals": 30, "regions": 16}
RESNET = {"name": "resnet26", "options": {"width": 0.0625}}

SCENES = {"image_px": 64, "train_scenes": 9, "val_scenes": 3, "test_scenes": 2}


def detector(head: str, *, image_px: int = 64, backbone: Any = RESNET, swaps: Any = (), **options: Any) -> Any:
    """The task and a small model of ten digits."""
    torch.manual_seed(0)
    task = Detection(DigitsDetection.classes, 0.0, head=head, **{**SMALL, **options})
    return task, task.model(build(backbone, swaps, num_classes=None, image_px=image_px), image_px)


def scene_batch(*, sides: Sequence[tuple[int, int]] = ((64, 64), (64, 64))) -> tuple[list[Tensor], list[Any]]:
    """Scenes of digits, (height, width) each."""
    dataset = DigitsDetection(Path(), image_px=64)
    split = dataset.split("train")
    batches = [
        DetectionTransform((v2.Resize(side),), dataset.mean, dataset.std).collate([split[index]], [0])
        for index, side in enumerate(sides)
    ]
    return [images[0] for images, _ in batches], [targets[0] for _, targets in batches]


def dense_spec(head: str, **training: Any) -> dict[str, Any]:
    """A job of a few steps with any of the five heads."""
    task = "detection" if head in HEADS else "segmentation"
    options: dict[str, Any] = {"head": head, "channels": 16}
    if head in HEADS[1:]:
        options |= {"proposals": 30, "regions": 16}
    return {
        "task": {"name": task, "options": options},
        "backbone": {"name": "resnet26", "options": {"width": 0.0625}},
        "swaps": [{"layers": "layer4.*", "mixer": {"name": "acmix", "options": {"heads": 2}}}],
        "dataset": {"name": f"digits_{task}", "options": SCENES},
        "training": {
            "epochs": 2,
            "batch_size": 2,
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "cosine", "warmup_epochs": 0},
            **training,
        },
        "trace": {"every_steps": 2},
    }
