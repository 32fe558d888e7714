"""A plan's memory against that of real training steps on the CPU, each model in a process of its own.

    python -m benchmarks.memory [--threads 1] [--only resnet50]

Measured is how far the peak of the resident set rises over three steps above where it stands before the model is built;
a step of a tiny model of the same kind has loaded torch's code by then. First with an allocator that gives freed memory
back at once (MALLOC_MMAP_THRESHOLD_): that is what tensors take, and `tensors` predicts it. Then with the allocator as
it is: the plan's peak_memory_bytes predicts that.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from acmix import registry, spec
from acmix.model import build
from acmix.planning.sizes import measure
from acmix.spec import JobSpec
from acmix.training import optimizer
from acmix.training.setup import task_of

CLASSES = 1000
STEPS = 3
TINY_PX = 8
GIVEN_BACK_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Row:
    """One model to train; `swapped` in all its slots or in none."""

    backbone: str
    swapped: bool
    image_px: int
    batch_size: int


ROWS = [
    Row("resnet26", swapped=False, image_px=64, batch_size=32),
    Row("resnet26", swapped=True, image_px=64, batch_size=32),
    Row("resnet26", swapped=False, image_px=224, batch_size=8),
    Row("resnet26", swapped=True, image_px=224, batch_size=8),
    Row("resnet50", swapped=False, image_px=64, batch_size=32),
    Row("resnet50", swapped=True, image_px=64, batch_size=32),
    Row("resnet50", swapped=False, image_px=224, batch_size=8),
    Row("resnet50", swapped=True, image_px=224, batch_size=8),
    Row("swin_tiny", swapped=True, image_px=224, batch_size=8),
    Row("pvt_tiny", swapped=True, image_px=224, batch_size=8),
    Row("san10", swapped=True, image_px=224, batch_size=8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="a backbone's name")
    parser.add_argument("--measure", type=int, metavar="ROW", help="the work of a row's own process")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(peak_growth_bytes(ROWS[arguments.measure])))
        return
    print(f"{'MiB, ' + str(arguments.threads) + ' threads':32}   tensors  measured ratio |    peak  measured ratio")
    for number, row in enumerate(ROWS):
        if row.backbone in registry.entries("backbones") and arguments.only in (None, row.backbone):
            show(number, row, arguments.threads)


def show(number: int, row: Row, threads: int) -> None:
    """Print a row: prediction, measurement and ratio, of tensors alone and of all."""
    job = job_of(row.backbone, swapped=row.swapped, batch_size=row.batch_size)
    with torch.device("meta"):
        model = build(job.backbone, job.swaps, num_classes=CLASSES, image_px=row.image_px)
    size = measure(model, job, num_classes=CLASSES, image_px=row.image_px, layers=[])
    tensors = measured_bytes(number, threads, GIVEN_BACK_AT_ONCE)
    peak = measured_bytes(number, threads, {})
    name = f"{row.backbone} {'acmix' if row.swapped else 'plain'} {row.image_px} px x {row.batch_size}"
    print(
        f"{name:32} {size.tensor_bytes >> 20:9} {tensors >> 20:9} {size.tensor_bytes / tensors:5.2f} | "
        f"{size.peak_memory_bytes >> 20:7} {peak >> 20:9} {size.peak_memory_bytes / peak:5.2f}",
        flush=True,
    )


def job_of(backbone: str, *, swapped: bool, batch_size: int, options: Any = None) -> JobSpec:
    """A job of that model with the default optimizer."""
    return spec.parse(
        {
            "backbone": {"name": backbone, "options": options or {}},
            "swaps": [{"layers": "*"}] if swapped else [],
            "dataset": {"name": "digits"},
            "training": {"batch_size": batch_size},
        }
    )


def measured_bytes(number: int, threads: int, environment: dict[str, str]) -> int:
    """What a fresh process measures of a row."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(number)]
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, check=True)
    return int(json.loads(done.stdout))


def peak_growth_bytes(row: Row) -> int:
    """How far the peak of this process rises over a few steps."""
    tiny = dict(registry.get("backbones", row.backbone).smallest)
    train(job_of(row.backbone, swapped=row.swapped, batch_size=2, options=tiny), TINY_PX, steps=1)
    before = resident_bytes("VmRSS")
    train(job_of(row.backbone, swapped=row.swapped, batch_size=row.batch_size), row.image_px, steps=STEPS)
    return resident_bytes("VmHWM") - before


def train(job: JobSpec, image_px: int, *, steps: int) -> None:
    """Optimizer steps on random images, as the training loop takes them."""
    model = build(job.backbone, job.swaps, num_classes=CLASSES, image_px=image_px)
    task = task_of(job, [str(number) for number in range(CLASSES)])
    descent = optimizer.build(model, job.training.optimizer, job.training.weight_decay_on)
    images = torch.randn(job.training.batch_size, 3, image_px, image_px)
    labels = torch.randint(0, CLASSES, (len(images),))
    for _ in range(steps):
        descent.zero_grad(set_to_none=True)
        loss, _ = task.step(model, (images, labels))
        loss.backward()
        descent.step()


def resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
