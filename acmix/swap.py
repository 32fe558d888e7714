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
    """The slots of a model, in depth order: every layer that a form of a mixer can stand in for.

    A module, the model or a part of it, may name layers of its own that are no slots in an attribute `unswappable`.
    """
    excluded = set(_excluded(model))
    forms = {form.fits: form for form in registry.entries("mixers").values()}
    slots = []
    for name, layer in model.named_modules():
        if not name or name in excluded:
            continue
        for kind, form in forms.items():
            if geometry := form.slot_of(layer):
                slots.append(Slot(name=name, kind=kind, channels=geometry[0], stride=geometry[1]))
                excluded.update(f"{name}.{child}" for child, _ in layer.named_modules())  # no slot within a slot
                break
    return slots


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
