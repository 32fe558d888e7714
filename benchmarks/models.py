"""Whole training steps: ACmix against the released code's unfold form, and against the plain backbone it came from.

    python -m benchmarks.models [--rounds 3] [--batch 8] [--threads 1,2] [--only resnet50]

Forward, loss, backward and optimizer step on random images of 224 px, float32. The models of a row take turns within
one process, so that whatever else the machine does falls on all of them; figures are medians, and medians of ratios
of the same round.
"""

import argparse
import copy
import gc
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import acmix
from acmix.mixers import layers_of
from benchmarks.released_form import released

IMAGE_PX = 224
ROWS = {"resnet50": ("plain", "unfold"), "swin_tiny": ("plain",)}
BARS = {
    ("resnet50", "unfold"): "at least 6",
    ("resnet50", "plain"): "at most 1.8",
    ("swin_tiny", "plain"): "at most 1.25",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", default=f"1,{len(os.sched_getaffinity(0))}", help="thread counts, by comma")
    parser.add_argument("--only", choices=sorted(ROWS))
    arguments = parser.parse_args()
    for threads in dict.fromkeys(int(count) for count in arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for backbone in [arguments.only] if arguments.only else ROWS:
            measure(backbone, threads, arguments.batch, arguments.rounds)


def measure(backbone: str, threads: int, batch: int, rounds: int) -> None:
    """Time one row and print it."""
    steps = {name: training_step(model, batch) for name, model in models_of(backbone).items()}
    for step in steps.values():
        step()  # the first one warms up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    turns = list(steps)
    for _ in range(rounds):
        for name in turns:
            began = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - began)
        turns.append(turns.pop(0))  # whoever follows the unfold form finds the memory that it gave back to be had anew
    print(f"{backbone}, {threads} thread{'s' * (threads > 1)}, batch {batch}, {rounds} rounds", flush=True)
    for name, series in seconds.items():
        print(f"  {name:8} {statistics.median(series):7.2f} s a step", flush=True)
    for peer in ROWS[backbone]:
        faster = peer == "unfold"
        pairs = zip(seconds[peer], seconds["acmix"], strict=True)
        ratio = statistics.median(other / ours if faster else ours / other for other, ours in pairs)
        relation = "unfold form / acmix" if faster else "acmix / plain"
        print(f"  {relation}: {ratio:.2f} (bar: {BARS[backbone, peer]})", flush=True)
    del steps
    gc.collect()


def models_of(backbone: str) -> dict[str, nn.Module]:
    """The fully swapped model, and its peers; the unfold form has the same weights."""
    swapped = acmix.build(backbone, [{"layers": "*"}], num_classes=1000, image_px=IMAGE_PX)
    models: dict[str, nn.Module] = {"acmix": swapped}
    if "plain" in ROWS[backbone]:
        models["plain"] = acmix.build(backbone, num_classes=1000, image_px=IMAGE_PX)
    if "unfold" in ROWS[backbone]:
        models["unfold"] = unfolding(swapped)
    return models


def unfolding(swapped: nn.Module) -> nn.Module:
    """A copy of the model whose ACmix layers compute as the released code does."""
    model = copy.deepcopy(swapped)
    for name, layer in layers_of(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, released(layer))
    return model


def training_step(model: nn.Module, batch: int) -> Callable[[], None]:
    """One step of SGD on the same random batch every time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, IMAGE_PX, IMAGE_PX), torch.randint(0, 1000, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
