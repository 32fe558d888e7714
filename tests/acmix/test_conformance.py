"""What every backbone, mixer, combination and shift of the registry must do: train, be cut off, resume, be judged.

A backbone names the options of its smallest model in `smallest`; a family also the variants to try in `examples`, with
further options of each.
"""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from acmix import registry, spec
from acmix.datasets._scans import digit_scans
from acmix.mixers._layer import Combine
from acmix.ops.shift_conv import Shift
from acmix.training.run import run
from tests.acmix.small import of_type, points

COMBINES: tuple[Combine, ...] = get_args(Combine)
SHIFTS: tuple[Shift, ...] = get_args(Shift)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real scans of zeros and ones in a folder: judging 540 of them takes most of a small model's run."""
    root = tmp_path_factory.mktemp("data-root")
    scans, labels = digit_scans()
    for label in (0, 1):
        own = scans[labels == label]
        for split, first, last in (("train", 0, 8), ("val", 8, 11), ("test", 11, 14)):
            folder = root / "few" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(first, last):
                Image.fromarray((own[number] * 15).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def backbones() -> list[Any]:
    """Every name that a spec can hold, with options that make the model small; of a family a few."""
    found = []
    for name, backbone in registry.entries("backbones").items():
        examples = {f"{name}/{variant}": more for variant, more in getattr(backbone, "examples", {}).items()}
        for whole, more in (examples or {name: {}}).items():
            found.append(pytest.param({"name": whole, "options": {**backbone.smallest, **more}}, id=whole))
    return found


def pairs(*, quick: bool) -> list[Any]:
    """Every backbone with every combination and shift once, in pairs that change with it; or else all other pairs."""
    found = []
    for turn, backbone in enumerate(backbones()):
        for first, combine in enumerate(COMBINES):
            for second, shift in enumerate(SHIFTS):
                if quick == ((first + turn) % len(SHIFTS) == second):
                    found.append(pytest.param(*backbone.values, combine, shift, id=f"{backbone.id}-{combine}-{shift}"))
    return found


@pytest.mark.parametrize(("backbone", "combine", "shift"), pairs(quick=True))
def test_it_trains_resumes_and_is_judged(
    tmp_path: Path, data_root: Path, backbone: dict[str, Any], combine: str, shift: str
):
    _train_and_resume(tmp_path, data_root, backbone, {"combine": combine, "shift": shift})


@pytest.mark.release
@pytest.mark.parametrize(("backbone", "combine", "shift"), pairs(quick=False))
def test_every_other_pair_does_too(tmp_path: Path, data_root: Path, backbone: dict[str, Any], combine: str, shift: str):
    _train_and_resume(tmp_path, data_root, backbone, {"combine": combine, "shift": shift})


@pytest.mark.parametrize("backbone", backbones())
def test_the_plain_backbone_trains(tmp_path: Path, data_root: Path, backbone: dict[str, Any]):
    _train_and_resume(tmp_path, data_root, backbone, None)


def _train_and_resume(folder: Path, data_root: Path, backbone: dict[str, Any], mixer: dict[str, Any] | None) -> None:
    """Two steps, cut off after the first one's checkpoint: the second attempt goes on from there to the end."""
    job = spec.parse(
        {
            "backbone": backbone,
            "swaps": [] if mixer is None else [{"layers": "*", "mixer": {"name": "acmix", "options": mixer}}],
            "dataset": {"name": "image_folder", "options": {"folder": "few", "image_px": 8}},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "limit_train_batches": 1,
                "loader_workers": 0,
                "optimizer": {"name": "sgd", "lr": 1e-3},
            },
            "evaluation": {"every_epochs": 2},
        }
    )
    first = run(job, folder, data_root=data_root)
    before = []
    for event in first:
        before.append(event)
        if event.type == "checkpoint":
            break
    first.close()
    after = list(run(job, folder, data_root=data_root))
    assert after[0].data["resumed_from"]["step"] == 1
    assert {step for name, step in points(before) if name == "train/loss"} == {1}
    assert {step for name, step in points(after) if name == "train/loss"} == {2}
    final = of_type(after, "evaluation")[-1].data
    assert (final["split"], final["samples"]) == ("test", 6)
    traces = of_type(after, "trace")
    assert bool(traces) is (mixer is not None)
    for layer in traces:
        assert all(value is not None for value in layer.data["alpha"] + layer.data["convolution_rms"])
