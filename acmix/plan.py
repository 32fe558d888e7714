"""What a swap costs, before anything is trained: parameters, multiply-adds and memory, by layer and in all."""

from collections.abc import Mapping
from typing import Any

from acmix.model import trunk_of
from acmix.planning import advice, possible
from acmix.planning.sizes import LayerSize, StepSize
from acmix.spec import JobSpec
from acmix.swap import find


def plan(job: JobSpec, *, num_classes: int, image_px: int) -> dict[str, Any]:
    """Sizes of the plain backbone and of the model with its swaps, as JSON values; no memory is taken for either.

    Args:
        job: the spec, resolved or not.
        num_classes: of the data set.
        image_px: side of its images.

    Returns:
        `layers`: for every slot of the plain backbone, in depth order, `layer`, `mixer` (null where nothing is
        swapped), `before`, `after` and `notes`. `totals`: `before` and `after`. `warnings`: sentences.

        `params` are numbers. `macs` are multiply-adds of the forward pass of one image: convolutions, linears and
        matrix products; attention by its definition, 2 * window positions * channels a query; 2 an output element of
        a norm. `activation_bytes` is what the layer keeps of one batch for the backward pass, at the spec's batch size
        and precision: its input included where it needs that, whether or not a neighbour keeps the same.
        `peak_memory_bytes` is the most that one training step takes on a CPU, in each of the processes that train
        together: weights, gradients, optimizer state, moving average, batch, activations, temporaries and the holes
        between them, but not torch's own code.

    Raises:
        SpecInvalid: there is no such model, or it cannot be trained on such images; with what would do.
    """
    plain = possible.plain(job, num_classes=num_classes, image_px=image_px)
    slots = find(trunk_of(plain))
    claims = possible.claims(job, slots)
    swapped = possible.swapped(job, slots, num_classes=num_classes, image_px=image_px) if claims else None
    unswapped = job.model_copy(update={"swaps": []})
    before = possible.measured(plain, unswapped, slots, num_classes=num_classes, image_px=image_px)
    after, notes = before, {}
    if swapped is not None:
        trunk = trunk_of(swapped)
        after = possible.measured(swapped, job, slots, num_classes=num_classes, image_px=image_px)
        notes = {name: advice.notes(trunk.get_submodule(name), after.layers[name].input_shape) for name in claims}
    return {
        "layers": [
            {
                "layer": slot.name,
                "mixer": job.swaps[claims[slot.name]].mixer.name if slot.name in claims else None,
                "before": _layer(before.layers[slot.name]),
                "after": _layer(after.layers[slot.name]),
                "notes": notes.get(slot.name, []),
            }
            for slot in slots
        ],
        "totals": {"before": _totals(before), "after": _totals(after)},
        "warnings": advice.warnings(job, before, after, list(claims), notes),
    }


def _layer(size: LayerSize) -> Mapping[str, int]:
    return {"params": size.params, "macs": size.macs, "activation_bytes": size.activation_bytes}


def _totals(size: StepSize) -> Mapping[str, int]:
    return {"params": size.params, "macs": size.macs, "peak_memory_bytes": size.peak_memory_bytes}
