"""Find the layers of a model that ACmix can stand in for, and replace those that a spec claims."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from acmix import registry
from acmix.catalog import Slot, claim
from acmix.errors import LayerClaimedTwice, LayerNotFound, NameNotFound, ShapeMismatch, unknown_name
from acmix.mixers import layers_of
from acmix.spec import Choice, Swap


def find(model: nn.Module) -> list[Slot]:
    """The slots of a model, in depth order: 3x3 convolutions that keep the map's size but for their stride.

    A module, the model or a part of it, may name layers of its own that are no slots in an attribute `unswappable`.
    """
    excluded = set(_excluded(model))
    return [
        Slot(name=name, kind="conv2d", channels=layer.out_channels, stride=layer.stride[0])
        for name, layer in model.named_modules()
        if name and name not in excluded and isinstance(layer, nn.Conv2d) and _is_slot(layer)
    ]


def swap(model: nn.Module, swaps: Sequence[Swap | Mapping[str, Any]]) -> None:
    """Replace the claimed layers in place; mode, device and dtype stay. On an error the model is unchanged.

    Raises:
        LayerNotFound: a glob matches no slot.
        LayerClaimedTwice: two swaps claim one slot.
        NameNotFound: no mixer of that name fits the slot.
        OptionInvalid: the mixer does not take such an option.
        ShapeMismatch: the options do not go with the layer's channels.
    """
    parsed = [Swap.model_validate(each) for each in swaps]
    slots = {slot.name: slot for slot in find(model)}
    claims, faults = claim([each.globs for each in parsed], list(slots))
    for _, sentence in faults:
        raise (LayerClaimedTwice if sentence.startswith("swaps ") else LayerNotFound)(sentence)
    replacements = {
        name: _replacement(model.get_submodule(name), slots[name], parsed[index].mixer)
        for name, index in claims.items()
    }
    for name, mixer in replacements.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, mixer)


def _excluded(model: nn.Module) -> Iterator[str]:
    """Names of all layers that a module declares unswappable or that belong to an ACmix layer."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        yield from (prefix + child for child in getattr(module, "unswappable", ()))
    for name, layer in layers_of(model).items():
        prefix = f"{name}." if name else ""
        yield from (prefix + child for child, _ in layer.named_modules())


def _is_slot(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.groups == 1
        and layer.padding in {"same", layer.dilation}
        and layer.stride[0] == layer.stride[1]
        and layer.dilation[0] == layer.dilation[1]
    )


def _replacement(layer: nn.Module, slot: Slot, mixer: Choice) -> nn.Module:
    forms = {form.name: form for form in registry.entries("mixers").values() if form.fits == slot.kind}
    if mixer.name not in forms:
        raise NameNotFound(f"{slot.name}: {unknown_name(f'mixer for {slot.kind}', mixer.name, list(forms))}")
    replacing = forms[mixer.name].replacing
    options = registry.check_options(replacing, mixer.options, where=f"mixer {mixer.name!r}")
    like = next(layer.parameters())
    try:
        with like.device:
            replacement: nn.Module = replacing(layer, **options)
    except ShapeMismatch as error:  # raised again with the name, which the mixer cannot know
        raise ShapeMismatch(f"{slot.name}: {error}") from None
    return replacement.to(like.dtype).train(layer.training)
