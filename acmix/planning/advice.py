"""What a plan says in words: notes on a layer, warnings about the whole, each from a rule."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from acmix.planning.sizes import StepSize
from acmix.spec import JobSpec

LARGE_BYTES = 16 * 2**30
LARGER_PEAK = 1.5  # the swapped model's peak over the plain one's
LARGE_SHARE = 0.1  # of all activations, kept by the swapped layers of one stage ...
OUT_OF_PROPORTION = 2.0  # ... and this many times their share of the multiply-adds
MOST_NAMED = 3


def notes(layer: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """What stands out about a swapped layer, from the shape of its input; nothing, mostly."""
    window, dilation = getattr(layer, "kernel_att", None), getattr(layer, "dilation", 1)
    if window is None or not getattr(layer, "has_attention", True) or len(input_shape) != 4:
        return []
    height, width = input_shape[2:]
    reach, found = dilation * (window - 1) // 2, []
    if reach >= max(height, width) - 1:
        found.append(f"window {window} covers the whole {height}x{width} map from everywhere: attention is global")
    if reach > min(height, width) - 1:
        found.append(
            f"window {window} reaches {reach} positions out of a {height}x{width} map: "
            "some are reflected into it more than once"
        )
    return found


def warnings(
    job: JobSpec, before: StepSize, after: StepSize, swapped: Sequence[str], notes: Mapping[str, Sequence[str]]
) -> list[str]:
    """What should be known before such a job is started."""
    if not swapped:
        return [f"nothing is swapped: this is the plain {job.backbone.name}", *_large(job, after)]
    return [*_stages(after, swapped), *_larger(before, after), *_large(job, after), *_noted(swapped, notes)]


def _stages(after: StepSize, swapped: Sequence[str]) -> Iterator[str]:
    """Stages whose swaps take far more of the memory than of the arithmetic."""
    stages: dict[str, list[str]] = {}
    for name in swapped:
        stages.setdefault(_stage(name), []).append(name)
    for stage, names in stages.items():
        memory = sum(after.layers[name].activation_bytes for name in names) / max(after.activation_bytes, 1)
        macs = sum(after.layers[name].macs for name in names) / max(after.macs, 1)
        if memory >= LARGE_SHARE and memory >= OUT_OF_PROPORTION * macs:
            yield f"{stage} swaps take {memory * 100:.0f} % of the activation memory for {macs * 100:.0f} % of the MACs"


def _stage(layer: str) -> str:
    """A layer's name up to its first number: layer1, stages.0."""
    found = re.match(r".*?\d+(?=\.|$)", layer)
    return found.group() if found else layer


def _larger(before: StepSize, after: StepSize) -> Iterator[str]:
    ratio = after.peak_memory_bytes / before.peak_memory_bytes
    if ratio > LARGER_PEAK:
        yield (
            f"the swaps raise the peak of a training step from {_shown(before.peak_memory_bytes)} "
            f"to {_shown(after.peak_memory_bytes)}, {ratio:.1f} times"
        )


def _large(job: JobSpec, after: StepSize) -> Iterator[str]:
    peak, batch_size = after.peak_memory_bytes, job.training.batch_size
    if peak <= LARGE_BYTES:
        return
    an_image = (peak - after.lasting_bytes) / batch_size  # the gradients' share errs on the side of smaller batches
    would_do = int((LARGE_BYTES - after.lasting_bytes) // an_image)
    sentence = f"the peak of a training step is {_shown(peak)}, beyond {_shown(LARGE_BYTES)}"
    if would_do < 1:
        yield f"{sentence}, whatever the batch_size"
    else:
        yield f"{sentence}; a batch_size of {would_do} in place of {batch_size} would stay within"


def _noted(swapped: Sequence[str], notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    names = [name for name in swapped if notes[name]]
    if names:
        listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
        yield (
            f"the window is larger than the map in {len(names)} of {len(swapped)} swapped layers ({listed}): "
            "attention sees everything there, and a smaller kernel_att would keep it local"
        )


def _shown(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
