"""One model of every module of timm, with ACmix in all its slots, run without memory for its tensors."""

from math import gcd
from typing import Any

import pytest
import timm
import torch
from torch import nn

from acmix.errors import LayerNotFound
from acmix.model import build
from acmix.planning import sizes
from acmix.swap import find

# what the names of small models hold, the smallest first
SMALL = (
    *("test_", "atto", "femto", "pico", "nano", "xxtiny", "tiny", "xxs", "_xs", "_t0", "_s0", "_b0"),
    *("_002", "18", "_s", "small", "mini"),
)


def smallest_of(module: str) -> str:
    def place(name: str) -> tuple[int, int, str]:
        return next((place for place, part in enumerate(SMALL) if part in name), len(SMALL)), len(name), name

    return min(timm.list_models(module=module), key=place)


def on_meta(variant: str, swaps: Any, image_px: int) -> nn.Module:
    with torch.device("meta"):
        return build(f"timm/{variant}", swaps, num_classes=10, image_px=image_px)


def every_slot(model: nn.Module) -> list[dict[str, Any]]:
    """One swap for each kind of slot, with as many heads as divide all of its layers, four at most."""
    slots = find(model)
    kinds = list(dict.fromkeys(slot.kind for slot in slots))
    convolutions = [slot for slot in slots if slot.kind == "conv2d"]
    options = {"conv2d": {"heads": gcd(4, *(slot.channels for slot in convolutions))}}
    return [
        {
            "layers": "*" if len(kinds) == 1 else [slot.name for slot in slots if slot.kind == kind],
            "mixer": {"name": "acmix", "options": options.get(kind, {})},
        }
        for kind in kinds
    ]


@pytest.mark.release
@pytest.mark.parametrize("module", timm.list_modules())
def test_a_model_of_every_module_takes_acmix_at_the_sizes_that_it_takes_plain(module: str):
    variant = smallest_of(module)
    own_px = timm.get_pretrained_cfg(variant).input_size[-1]
    plain = on_meta(variant, [], own_px)
    swaps = every_slot(plain)
    if not swaps:
        with pytest.raises(LayerNotFound, match="no layer that ACmix can stand in for"):
            on_meta(variant, [{"layers": "*"}], own_px)
    sizes.forward(plain, images=2, image_px=own_px)
    for image_px in (own_px, own_px + 32):
        if image_px == own_px or takes(variant, image_px):
            sizes.forward(on_meta(variant, swaps, image_px), images=2, image_px=image_px)


def takes(variant: str, image_px: int) -> bool:
    """Whether the plain model does."""
    try:
        sizes.forward(on_meta(variant, [], image_px), images=2, image_px=image_px)
    except Exception:  # whatever timm raises
        return False
    return True
