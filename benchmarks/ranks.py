"""How much faster two processes train than one: samples a second of a spec by two ranks over those by one, paired.

    python -m benchmarks.ranks [--rounds 5] [--epochs 3] [--width 1.0] [--batch 128]

The example of `acmix up` at a width at which computing dominates: by one process with one thread and `--batch` images
a step, and by two with one thread each and half as many images, so that both make the same steps. They run in turns, by
`python -m acmix run`, gloo between the ranks; the rate is read off the time stamps of the log, from the end of the
first epoch to the end of the last, evaluations and checkpoints included. Beside it stands what is the best that could
be had: two runs of one process at once, each on its own, over one of them alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.overhead import steady
from service.cli import EXAMPLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, one thread a process, width {given.width}, {given.batch} images a step")
    backbone = {**EXAMPLE["backbone"], "options": {**EXAMPLE["backbone"]["options"], "width": given.width}}
    shown: dict[str, list[float]] = {"two ranks": [], "two apart": []}
    for _ in range(given.rounds):
        alone = rate({**EXAMPLE, "backbone": backbone, "training": training(given.epochs, given.batch)})
        half = {**EXAMPLE, "backbone": backbone, "training": training(given.epochs, given.batch // 2)}
        together = rate({**half, "resources": {"processes": 2}})
        with ThreadPoolExecutor(2) as pool:
            apart = sum(pool.map(rate, [half, half]))
        shown["two ranks"].append(together / alone)
        shown["two apart"].append(apart / alone)
        told = f"alone {alone:.1f}  two ranks {together:.1f}  two apart {apart:.1f} samples/s"
        print(f"  {told}  {together / alone:.2f} {apart / alone:.2f}  load {os.getloadavg()[0]:.1f}", flush=True)
    for name, ratios in shown.items():
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} over one, median of {len(ratios)}: {told}")


def training(epochs: int, batch_size: int) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": batch_size}


def rate(spec: dict[str, Any]) -> float:
    """Samples a second of a run."""
    with tempfile.TemporaryDirectory(prefix="acmix-ranks-") as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec))
        answer = subprocess.run(
            [sys.executable, "-m", "acmix", "run", str(file), "--folder", folder],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    samples, began, ended = steady(answer.stderr)
    return samples / (ended - began).total_seconds()


if __name__ == "__main__":
    main()
