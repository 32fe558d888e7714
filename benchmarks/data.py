"""Whether training waits for its data: images a second of the loader alone and of training, and their ratio.

    python -m benchmarks.data [--rounds 3] [--seconds 8]

Each case is measured in turn, loader and training in pairs: a round gives one ratio, and the median of the rounds
counts. The loader has the processes that a run gives it by default; training has one thread, as the service's does.
The folder is of real photographs: crops of scikit-learn's two, as JPEGs of 320 x 256 px.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from acmix import spec
from acmix.datasets._scenes import photographs
from acmix.training.loop import Run
from acmix.training.ranks import ALONE
from acmix.training.setup import Site, prepare

CASES: dict[str, dict[str, Any]] = {
    "fashion_mnist, resnet26 of a quarter": {
        "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
        "swaps": [{"layers": "layer4.*"}],
        "dataset": {"name": "fashion_mnist"},
        "training": {"batch_size": 128, "epochs": 1000},
    },
    "image_folder at 224 px, resnet26": {
        "backbone": {"name": "resnet26"},
        "swaps": [{"layers": "layer4.*"}],
        "dataset": {"name": "image_folder", "options": {"folder": "photographs"}},
        "training": {"batch_size": 32, "epochs": 1000},
    },
    "digits_detection, mask_rcnn": {
        "task": {
            "name": "detection",
            "options": {"head": "mask_rcnn", "channels": 32, "proposals": 100, "regions": 64},
        },
        "backbone": {"name": "resnet26", "options": {"width": 0.25}},
        "swaps": [{"layers": "layer4.*"}],
        "dataset": {"name": "digits_detection"},
        "training": {"batch_size": 8, "epochs": 1000},
    },
}
IMAGES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        _write_photographs(Path(root) / "photographs")
        print(f"{'case':40} {'loader/s':>10} {'training/s':>11} {'loader/training':>16}")
        for name, raw in CASES.items():
            site = Site(Path(root), Path(root), torch.device("cpu"), ALONE, threading.Event())
            run, _ = prepare(spec.parse(raw), site)
            rounds = [
                (_loaded(run, arguments.seconds), _trained(run, arguments.seconds)) for _ in range(arguments.rounds)
            ]
            loader, training = (median(column) for column in zip(*rounds, strict=True))
            ratio = median(loaded / trained for loaded, trained in rounds)
            print(f"{name:40} {loader:10.0f} {training:11.1f} {ratio:16.1f}")


def _loaded(run: Run, seconds: float) -> float:
    """Images a second of the loader, nothing done with them."""
    with closing(_batches(run)) as batches:
        return _rate(batches, lambda _: None, seconds)


def _trained(run: Run, seconds: float) -> float:
    """Images a second of optimizer steps on what the loader gives."""
    state = run.state
    state.model.train()

    def step(batch: Any) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        loss, _ = run.task.step(state.model, batch)
        loss.backward()
        state.optimizer.step()

    with closing(_batches(run)) as batches:
        return _rate(batches, step, seconds)


def _rate(batches: Iterator[Any], use: Any, seconds: float) -> float:
    """Images a second after the first two batches, which wait for the loader's processes to start."""
    for _ in range(2):
        use(next(batches))
    images, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        batch = next(batches)
        use(batch)
        images += len(batch[0])
    return images / (time.monotonic() - begun)


def _batches(run: Run) -> Generator[Any, None, None]:
    epoch = 0
    while True:
        yield from run.training(epoch, 0)
        epoch += 1


def _write_photographs(place: Path) -> None:
    """Two classes, one of each photograph, in random crops that are all different."""
    random = np.random.RandomState(0)
    for label, photograph in enumerate(photographs()):
        for number in range(IMAGES):
            side = random.randint(256, photograph.height + 1)
            left, top = random.randint(0, photograph.width - side + 1), random.randint(0, photograph.height - side + 1)
            folder = place / ("train" if number % 4 else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            photograph.resize((320, 256), box=(left, top, left + side, top + side)).save(folder / f"{number}.jpg")


if __name__ == "__main__":
    main()
