"""One ACmix layer, forward and backward: against the released code's unfold form, and the 3x3 convolution it replaces.

    python -m benchmarks.operators [--rounds 5] [--batch 8] [--threads 1,2] [--only 64@56]

A row is channels @ map side, as in the stages of a ResNet-50 at 224 px (64@32 is a stage for small images), float32,
stride 1. The three take turns within one process, so that whatever else the machine does falls on all of them; times
are medians, ratios are medians over pairs of the same round. `kept` is what autograd saves for the backward pass
beside weights. `of matmul` is the share of the machine's matrix product rate, measured in the same run, that the
layer's own arithmetic (its definition's multiply-adds, three times for forward and backward) reaches.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from acmix.mixers import ACmixConv2d
from benchmarks.released_form import released

ROWS = {  # channels, side, at least so many times faster than unfolding, at most so many times a 3x3's time
    "64@56": (64, 56, 9.0, 7.5),
    "128@28": (128, 28, 10.0, 3.0),
    "256@14": (256, 14, 12.0, 1.3),
    "512@7": (512, 7, 10.0, 0.9),
    "64@32": (64, 32, 10.0, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", default=f"1,{len(os.sched_getaffinity(0))}", help="thread counts, by comma")
    parser.add_argument("--only", choices=sorted(ROWS))
    arguments = parser.parse_args()
    for threads in dict.fromkeys(int(count) for count in arguments.threads.split(",")):
        torch.set_num_threads(threads)
        print(f"{threads} thread{'s' * (threads > 1)}, batch {arguments.batch}, median of {arguments.rounds} rounds")
        print(
            "stage    unfold ms  acmix ms  3x3 ms   unfold/acmix (bar)   acmix/3x3 (bar)   kept MB  1/kept  of matmul"
        )
        for row in [arguments.only] if arguments.only else ROWS:
            measure(row, arguments.batch, arguments.rounds)


def measure(row: str, batch: int, rounds: int) -> None:
    """Time one stage and print it."""
    channels, side, faster, slower = ROWS[row]
    layer = ACmixConv2d(channels, channels)
    unfolding, plain = released(layer), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    x_BCHW = torch.randn(batch, channels, side, side, requires_grad=True)
    seconds: dict[str, list[float]] = {"unfold": [], "acmix": [], "3x3": [], "matmul": []}
    steps = {name: step(module, x_BCHW) for name, module in (("unfold", unfolding), ("acmix", layer), ("3x3", plain))}
    steps["matmul"] = matmul()
    for each in steps.values():
        each()
    for _ in range(rounds):
        for name, each in steps.items():
            began = time.perf_counter()
            each()
            seconds[name].append(time.perf_counter() - began)
    ours = seconds["acmix"]
    gain = statistics.median(other / own for other, own in zip(seconds["unfold"], ours, strict=True))
    cost = statistics.median(own / other for other, own in zip(seconds["3x3"], ours, strict=True))
    kept = {name: kept_bytes(module, x_BCHW) for name, module in (("unfold", unfolding), ("acmix", layer))}
    rate = MATMUL_MACS / statistics.median(seconds["matmul"])
    share = 3 * layer.macs(x_BCHW.shape) / statistics.median(ours) / rate
    times = "".join(f"{statistics.median(seconds[name]) * 1000:10.1f}" for name in ("unfold", "acmix", "3x3"))
    memory = f"{kept['acmix'] / 2**20:7.0f} {kept['unfold'] / kept['acmix']:7.1f}"
    print(
        f"{row:8}{times} {gain:10.1f} ({faster:3.0f}) {cost:14.2f} ({slower or '-'}) {memory} {share:9.0%}", flush=True
    )


def step(module: nn.Module, x_BCHW: Tensor) -> Callable[[], None]:
    """Forward and backward, with gradients of input and parameters."""
    grad_BCHW = torch.randn_like(module(x_BCHW))

    def run() -> None:
        x_BCHW.grad = None
        module.zero_grad(set_to_none=True)
        module(x_BCHW).backward(grad_BCHW)

    return run


MATMUL_SIDE = 768
MATMUL_MACS = MATMUL_SIDE**3


def matmul() -> Callable[[], None]:
    """One product of square float32 matrices."""
    a, b = torch.randn(2, MATMUL_SIDE, MATMUL_SIDE)

    def run() -> None:
        torch.mm(a, b).sum().item()

    return run


def kept_bytes(module: nn.Module, x_BCHW: Tensor) -> int:
    """What a forward pass saves for the backward pass, weights and constants of the geometry left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive = module(x_BCHW)
    del alive
    return sum(kept.values())


if __name__ == "__main__":
    main()
