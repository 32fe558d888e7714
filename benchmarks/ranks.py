"""How much faster two processes train than one: samples a second of a spec by two ranks over those by one, paired.

    python -m benchmarks.ranks [--rounds 5] [--epochs 3] [--width 1.0] [--batch 128] [--parts]

The example of `acmix up` at a width at which computing dominates, by one process and by two, each with one thread and
`--batch` images a step. They run in turns, by `python -m acmix run`, gloo between the ranks; the rate is read off the
time stamps of the log, from the end of the first epoch to the end of the last, evaluations and checkpoints included.
Beside it stands what is the best that could be had: two runs of one process at once, each on its own, over one alone.

With `--parts` it is told what a step of two ranks consists of: both at once without sharing gradients, with sharing,
and the sum of as many bytes over gloo alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.overhead import steady
from service.cli.up import EXAMPLE

PARTS_TIMES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--parts", action="store_true")
    given = parser.parse_args()
    if given.parts:
        tell_parts(given.width, given.batch)
        return
    print(f"{os.cpu_count()} cores, one thread a process, width {given.width}, {given.batch} images a step")
    backbone = {**EXAMPLE["backbone"], "options": {**EXAMPLE["backbone"]["options"], "width": given.width}}
    shown: dict[str, list[float]] = {"two ranks": [], "two apart": []}
    for _ in range(given.rounds):
        training = {"epochs": given.epochs, "batch_size": given.batch}
        spec = {**EXAMPLE, "backbone": backbone, "training": training}
        alone = rate(spec)
        together = rate({**spec, "resources": {"processes": 2}})
        with ThreadPoolExecutor(2) as pool:
            apart = sum(pool.map(rate, [spec, spec]))
        shown["two ranks"].append(together / alone)
        shown["two apart"].append(apart / alone)
        told = f"alone {alone:.1f}  two ranks {together:.1f}  two apart {apart:.1f} samples/s"
        print(f"  {told}  {together / alone:.2f} {apart / alone:.2f}  load {os.getloadavg()[0]:.1f}", flush=True)
    for name, ratios in shown.items():
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name} over one, median of {len(ratios)}: {told}")


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


def tell_parts(width: float, batch_size: int) -> None:
    """In two processes that this one starts."""
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        asked = ["--parts", "--width", str(width), "--batch", str(batch_size)]
        subprocess.run([*command, "-m", "benchmarks.ranks", *asked], check=True)
        return
    import torch
    import torch.distributed as dist

    import acmix
    from acmix.uncompiled import shared

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    options = {**EXAMPLE["backbone"]["options"], "width": width}
    backbone = {**EXAMPLE["backbone"], "options": options}
    model = shared(acmix.build(backbone, EXAMPLE["swaps"], num_classes=10, image_px=8))
    images, labels = torch.randn(batch_size, 3, 8, 8), torch.randint(10, (batch_size,))
    gradients = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images), labels).backward()

    def unshared() -> None:
        with model.no_sync():
            step()

    parts = {"unshared": unshared, "shared": step, "summed alone": lambda: dist.all_reduce(gradients)}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(PARTS_TIMES):
        for name, part in parts.items():
            dist.barrier()
            began = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        print(f"{batch_size} images a rank, {gradients.nbytes / 2**20:.0f} MiB of gradients; medians of {PARTS_TIMES}")
        for name, each in seconds.items():
            print(f"  {name}: {1e3 * statistics.median(each[2:]):.0f} ms")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
