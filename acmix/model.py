"""A model from the parts of a spec: a backbone by name, with ACmix layers swapped in."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from acmix import registry
from acmix.backbones._pyramid import PRETRAINED_PX
from acmix.spec import Backbone, Swap
from acmix.swap import swap


def build(
    backbone: str | Backbone | Mapping[str, Any],
    swaps: Sequence[Swap | Mapping[str, Any]] = (),
    *,
    num_classes: int | None,
    image_px: int,
) -> nn.Module:
    """The model that a spec's `backbone` and `swaps` describe, its random weights drawn from torch's global generator.

    Without `num_classes` it gives feature maps in place of logits (acmix.backbones._pyramid).

    Args:
        backbone: a name, timm/resnet18 for one of a family, or what a spec has: {"name": "resnet26", "options":
            {"width": 0.25}}.
        swaps: what a spec has: [{"layers": "layer4.*", "mixer": {"name": "acmix", "options": {"heads": 8}}}].
        num_classes: outputs of the classifier; None for a feature pyramid.
        image_px: side of the square images; only some backbones depend on it.
    """
    choice = Backbone.model_validate({"name": backbone} if isinstance(backbone, str) else backbone)
    entry = registry.get("backbones", choice.name)
    options = registry.check_options(entry, choice.options, where=f"backbone {choice.name!r}")
    known = {"num_classes": num_classes, "image_px": image_px, "variant": choice.name.partition("/")[2]}
    asked = inspect.signature(entry).parameters
    if num_classes is None:
        known["image_px"] = min(image_px, PRETRAINED_PX)
    model: nn.Module = entry(**{name: value for name, value in known.items() if name in asked}, **options)
    swap(trunk_of(model), swaps)
    return model


def trunk_of(model: nn.Module) -> nn.Module:
    """The part of a model in which layers have the names of the catalog: the backbone that a detector stands on."""
    while isinstance(trunk := getattr(model, "trunk", None), nn.Module):
        model = trunk
    return model
