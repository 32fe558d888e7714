"""The catalog of what is installed here, read from the registry's folders; what a worker posts when it starts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from acmix import pretrained, registry
from acmix.catalog import (
    AugmentEntry,
    BackboneEntry,
    Catalog,
    DatasetEntry,
    Device,
    Entry,
    MixerEntry,
    MixerForm,
    TaskEntry,
)
from acmix.presets import presets
from acmix.swap import find
from acmix.training import augments, optimizer, schedule
from acmix.uncompiled import on_meta


def catalog() -> Catalog:
    """Every name a spec can use here, with the JSON Schema of its options."""
    return Catalog(
        tasks=[
            TaskEntry(
                **_entry(name, task),
                metrics=task.metrics,
                label_smoothing=task.label_smoothing,
                mixes=task.mixes,
                masks_for=task.masks_for,
            )
            for name, task in registry.entries("tasks").items()
        ],
        backbones=[_backbone(name, backbone) for name, backbone in registry.entries("backbones").items()],
        mixers=_mixers(),
        datasets=[_dataset(name, dataset) for name, dataset in registry.entries("datasets").items()],
        optimizers=_functions(optimizer.OPTIMIZERS),
        schedules=_functions(schedule.SCHEDULES),
        augments=_augments(),
        presets=[each for each in presets() if each.spec["backbone"]["name"] in registry.entries("backbones")],
    )


def devices() -> list[Device]:
    """The accelerators of this machine, in CUDA's order."""
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [
        Device(index=index, name=card.name, memory_bytes=card.total_memory, uuid=_uuid(card))
        for index, card in enumerate(found)
    ]


def _uuid(card: Any) -> str | None:
    """None where it is that of something else: of a part (MIG) torch tells the whole one's."""
    return f"GPU-{card.uuid}" if torch.version.cuda and " MIG " not in card.name else None


def _entry(name: str, of: Callable[..., Any]) -> dict[str, Any]:
    return {"name": name, "description": registry.description(of), "options": registry.schema(of)}


def _functions(table: Mapping[str, Callable[..., Any]]) -> list[Entry]:
    return [Entry(**_entry(name, function)) for name, function in table.items()]


def _augments() -> list[AugmentEntry]:
    """Of all tasks; some, as `default`, have one function a task and the options of none."""
    makes: dict[str, Callable[..., Any]] = {}
    tasks: dict[str, list[str]] = {}
    for task in registry.entries("tasks"):
        for name, make in augments.of(task).items():
            makes.setdefault(name, make)
            tasks.setdefault(name, []).append(task)
    return [AugmentEntry(**_entry(name, make), tasks=tasks[name]) for name, make in makes.items()]


def _backbone(name: str, backbone: type[Any]) -> BackboneEntry:
    """Its slots are found in the model itself, built without memory for its weights; a family has too many of them."""
    if registry.is_family(backbone):
        variants = list(backbone.variants())
        without = [each for each in variants if not pretrained.has_weights(each)]
        return BackboneEntry(**_entry(name, backbone), slots=None, variants=variants, without_weights=without)
    with on_meta():
        slots = find(backbone(1))
    counterpart = getattr(backbone, "timm_counterpart", None)
    return BackboneEntry(
        **_entry(name, backbone), slots=slots, slot_pattern=backbone.slot_pattern, timm_counterpart=counterpart
    )


def _mixers() -> list[MixerEntry]:
    entries: dict[str, list[type[Any]]] = {}
    for mixer in registry.entries("mixers").values():
        entries.setdefault(mixer.name, []).append(mixer)
    return [
        MixerEntry(name=name, description=registry.description(forms[0]), forms=[_form(form) for form in forms])
        for name, forms in entries.items()
    ]


def _form(mixer: type[Any]) -> MixerForm:
    return MixerForm(
        kind=mixer.fits,
        description=registry.description(mixer),
        options=registry.schema(mixer.replacing),
        divides_channels=mixer.divides_channels,
    )


def _dataset(name: str, dataset: type[Any]) -> DatasetEntry:
    return DatasetEntry(
        **_entry(name, dataset),
        task=dataset.task,
        num_classes=dataset.num_classes,
        image_px=dataset.default_image_px,
        has_masks=None if dataset.num_classes is None else dataset.has_masks,
    )
