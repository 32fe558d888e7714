"""P3: a training that is killed again and again ends as one that was not, to the last bit, whatever its spec."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cluster import ROOT
from tests.flow.service_process import small_job, wait_for

pytestmark = pytest.mark.release

KILLS = 10
PVT = {"name": "pvt", "options": {"depths": [1, 1, 1, 1], "width": 0.125, "patch_px": 1, "drop_path": 0.3}}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "batch norm": {},
    "drop path": {"backbone": PVT},
    "dropout": {"backbone": {"name": "timm/resnet10t", "options": {"drop_rate": 0.3}}, "batch_size": 16},
    "ema, augmented": {"ema": {"decay": 0.9}, "augment": {"name": "shift"}},
    "bf16, clipped": {"precision": "bf16", "clip_norm": 1.0},
    "fp16 scaled, accumulated": {"precision": "fp16", "accumulate_batches": 3},
    "adamw, 2 loader workers": {"optimizer": {"name": "adamw"}, "loader_workers": 2},
    "mixup and cutmix": {"mixup": 0.8, "cutmix": 1.0},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_training_killed_at_random_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    file = _written(name, tmp_path)
    lasts = _run(file, tmp_path / "unbroken")
    assert lasts
    drawn, kills = random.Random(name), 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{kills}"
        while _run(file, folder, kill_after=drawn.uniform(0, 1) * lasts) is None:
            kills += 1
        assert _files(folder) == _files(tmp_path / "unbroken"), f"after {kills} kills"
    print(f"\nP3 {name}: {kills} kills", flush=True)


@pytest.mark.parametrize(("guard", "name"), [("random state", "drop path"), ("scaler", "fp16 scaled, accumulated")])
def test_without_a_part_of_its_state_it_does_not(guard: str, name: str, tmp_path: Path) -> None:
    """Killed as soon as it has saved something, and gone on with."""
    spec = _written(name, tmp_path)
    _run(spec, tmp_path / "unbroken")
    (tmp_path / "sitecustomize.py").write_text(f"from tests.chaos import sabotage\nsabotage.take_out({guard!r})\n")
    folder = tmp_path / "killed"
    with subprocess.Popen(_command(spec, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: any(folder.glob("checkpoints/step-*")))
        process.kill()
    assert _run(spec, folder, PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT)))) is not None
    differing = {file for file, sha256 in _files(folder).items() if _files(tmp_path / "unbroken")[file] != sha256}
    print(f"\nP3 without its {guard}: {', '.join(sorted(differing))} differ", flush=True)
    assert differing


def _run(spec: Path, folder: Path, *, kill_after: float | None = None, **environment: str) -> float | None:
    """Seconds from its first batch to its end; None where it was killed, so long after its first batch."""
    started_at = time.time()
    with subprocess.Popen(
        _command(spec, folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        wait_for(lambda: process.poll() is not None or _has_begun(folder, started_at))
        began = time.monotonic()
        try:
            told, _ = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    assert process.returncode == 0, told.decode()[-2000:]
    return time.monotonic() - began


def _has_begun(folder: Path, started_at: float) -> bool:
    pulse = folder / "pulse"
    return pulse.exists() and pulse.stat().st_mtime >= started_at


def _written(name: str, folder: Path) -> Path:
    """The spec of a configuration, in a file."""
    changes = dict(CONFIGURATIONS[name])
    backbone = {"backbone": changes.pop("backbone")} if "backbone" in changes else {}
    checkpoints = {"every_seconds": 0.2, "keep_latest": 2}
    spec = {**small_job(epochs=3, limit_train_batches=20, **changes, checkpoints=checkpoints), **backbone}
    file = folder / "spec.json"
    file.write_text(json.dumps(spec))
    return file


def _command(spec: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "acmix", "run", str(spec), "--folder", str(folder)]


def _files(folder: Path) -> dict[str, str]:
    """What the last checkpoints hold: weights, optimizer, averages, scaler, every random generator."""
    return dict(_hashes(folder / "checkpoints"))


def _hashes(parent: Path) -> Iterator[tuple[str, str]]:
    newest = sorted(parent.glob("step-*"))[-1]
    for file in sorted(newest.iterdir()):
        yield file.name, hashlib.sha256(file.read_bytes()).hexdigest()
