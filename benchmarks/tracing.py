"""What tracing costs: a traced step over an untraced one of the same model, taken in turns.

python -m benchmarks.tracing [--steps 60] [--every 10]
"""

import argparse
import statistics
import time

import torch

import acmix
from acmix.mixers import layers_of
from acmix.training import trace

MODELS: dict[str, tuple[dict[str, object], int, int]] = {
    "resnet26, small stem, width 0.25, 8 px": ({"stem": "small", "width": 0.25}, 8, 128),
    "resnet26, small stem, 32 px": ({"stem": "small"}, 32, 8),
    "resnet26, 224 px": ({}, 224, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind")
    parser.add_argument("--every", type=int, default=10, help="trace.every_steps of the spec")
    arguments = parser.parse_args()
    for name, (options, image_px, batch) in MODELS.items():
        plain, traced = measure(options, image_px, batch, arguments.steps if image_px < 224 else arguments.steps // 6)
        share = (traced / plain - 1) / arguments.every
        print(
            f"{name}: step {plain * 1e3:.1f} ms, traced {traced * 1e3:.1f} ms, "
            f"every {arguments.every} steps: {share:.2%} of step time",
            flush=True,
        )


def measure(options: dict[str, object], image_px: int, batch: int, steps: int) -> tuple[float, float]:
    """Median seconds of an untraced and of a traced step."""
    model = acmix.build({"name": "resnet26", "options": options}, [{"layers": "*"}], num_classes=10, image_px=image_px)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    layers = layers_of(model)
    images, labels = torch.randn(batch, 3, image_px, image_px), torch.randint(0, 10, (batch,))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * steps + 2):
        traced = number % 2 == 1
        began = time.perf_counter()
        optimizer.zero_grad()
        with trace.tracing(layers, on=traced):
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if traced:
            trace.read(number, layers).to_line()
        if number >= 2:  # the first of each kind warms up
            seconds[traced].append(time.perf_counter() - began)
    return statistics.median(seconds[False]), statistics.median(seconds[True])


if __name__ == "__main__":
    main()
