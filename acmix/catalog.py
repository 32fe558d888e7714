"""The menu: what a spec can name, as plain data that a worker posts and the service checks specs against."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

NO_SLOTS = "the backbone has no layer that ACmix can stand in for; without swaps it trains as it is"


class CatalogPart(BaseModel):
    """Stored and read back by other versions: unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Entry(CatalogPart):
    """One name with the JSON Schema of its options."""

    name: str
    description: str
    options: dict[str, Any] = Field(description="JSON Schema (2020-12) of the options object")


class Slot(CatalogPart):
    """A layer that an ACmix form can stand in for."""

    name: str = Field(examples=["layer3.0.conv2"])
    kind: str = Field(examples=["conv2d"])
    channels: int = Field(description="output channels")
    stride: int


class SlotPattern(CatalogPart):
    """How options move the slots of a backbone, so that a spec can be checked without building the model.

    Stage i (from 1) holds depths[i] blocks, each with one slot called `name` with {stage} (from `first_stage`)
    and {block} (from 0) filled in; the first block of a stage carries the stage's stride.
    `depths_option` and `width_option` name the options that replace the depths and multiply the channels, which stay
    multiples of `multiple`.
    """

    name: str
    kind: str
    depths: list[int]
    channels: list[int]
    strides: list[int]
    first_stage: int = 1
    channels_option: str | None = None  # names the option that replaces channels[0]; the others keep their proportion
    stages_vary: bool = False  # the depths option may hold fewer numbers than there are channels
    depths_option: str | None = None
    width_option: str | None = None
    multiple: int = 1

    def slots(self, options: Mapping[str, Any]) -> list[Slot]:
        """The slots under these options, in depth order."""
        depths = options.get(self.depths_option or "", self.depths)
        width = self._width(options)
        return [
            Slot(
                name=self.name.format(stage=stage + self.first_stage, block=block),
                kind=self.kind,
                channels=scaled(self.channels[stage], width, self.multiple),
                stride=self.strides[stage] if block == 0 else 1,
            )
            for stage, depth in enumerate(depths)
            for block in range(depth)
        ]

    def _width(self, options: Mapping[str, Any]) -> float:
        """What the options multiply the channels by."""
        first: int = options.get(self.channels_option or "", self.channels[0])
        factor: float = options.get(self.width_option or "", 1.0)
        return factor * first / self.channels[0]


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Channels of a layer under a width factor: the nearest multiple of `multiple`, at least 1 of it."""
    return multiple * max(1, round(channels * width / multiple))


class BackboneEntry(Entry):
    """One model, or a family of them: `timm` with its variants stands for `timm/resnet18` and all the others."""

    slots: list[Slot] | None = Field(description="with the default options; null where only the model itself tells")
    slot_pattern: SlotPattern | None = Field(None, description="how options move the slots")
    variants: list[str] = Field([], description="of a family: what may follow its name and a slash")
    timm_counterpart: str | None = Field(None, description="timm's model whose weights `weights: timm` loads")
    without_weights: list[str] = Field([], description="of a family: the variants that timm has no weights for")

    def has_timm_weights(self, name: str) -> bool:
        """Whether a backbone of that name, this one's or one of the family's, can start from timm's weights."""
        if self.variants:
            return name.removeprefix(f"{self.name}/") not in self.without_weights
        return self.timm_counterpart is not None

    def stands_for(self, name: str) -> bool:
        """Whether a spec can name it so: a family only with one of its variants."""
        own_name, _, variant = name.partition("/")
        return own_name == self.name and variant in self.variants if self.variants else name == self.name

    def slots_under(self, options: Mapping[str, Any]) -> list[Slot] | None:
        """The slots of this backbone built with `options`, in depth order; None where only the model itself tells."""
        return self.slot_pattern.slots(options) if self.slot_pattern else self.slots


class MixerForm(CatalogPart):
    """The form of a mixer that fits one kind of slot."""

    kind: str
    description: str
    options: dict[str, Any]
    divides_channels: str | None = Field(None, description="the option that must divide the slot's channels")


class MixerEntry(CatalogPart):
    name: str
    description: str
    forms: list[MixerForm]

    def form(self, kind: str) -> MixerForm | None:
        return next((form for form in self.forms if form.kind == kind), None)


class TaskEntry(Entry):
    metrics: list[str] = Field(description="what best can be chosen by on val; the first is the default")
    label_smoothing: float | None = Field(0.1, description="what auto stands for; null where there is none")
    masks_for: dict[str, list[str]] = Field({}, description="by option the values that need a data set with masks")
    mixes: bool = Field(True, description="whether images can be mixed by mixup and cutmix")


class AugmentEntry(Entry):
    tasks: list[str] = Field(["classification"], description="whose images it changes, with all that is drawn on them")


class DatasetEntry(Entry):
    task: str
    num_classes: int | None = Field(None, description="null where only the files tell")
    has_masks: bool | None = Field(None, description="of detection: whether objects have masks; null as above")
    image_px: int | None = None


class Preset(CatalogPart):
    """A ready spec."""

    name: str
    what: str = Field(description="what it shows")
    spec: dict[str, Any] = Field(description="the body of POST /v1/jobs")


class Device(CatalogPart):
    """One accelerator of a worker, whole or a part of a divided one (MIG)."""

    index: int = Field(description="among those of its worker")
    name: str = Field(examples=["NVIDIA A100-SXM4-80GB"])
    memory_bytes: int
    uuid: str | None = Field(
        None, examples=["GPU-5fb5f7d5-7a3f-3f1e-9f9e-1c8f6b3f2a10"], description="by which CUDA finds it"
    )


class Catalog(CatalogPart):
    """What one worker can run, or the union of what all can."""

    tasks: list[TaskEntry] = []
    backbones: list[BackboneEntry] = []
    mixers: list[MixerEntry] = []
    datasets: list[DatasetEntry] = []
    optimizers: list[Entry] = []
    schedules: list[Entry] = []
    augments: list[AugmentEntry] = []
    presets: list[Preset] = []

    def backbone(self, name: str) -> BackboneEntry | None:
        """The entry of that name, or of the family that has that variant."""
        return next((entry for entry in self.backbones if entry.stands_for(name)), None)

    @classmethod
    def union(cls, catalogs: Sequence["Catalog"]) -> "Catalog":
        """One menu of several; where two define a name, the first wins, but a family has the variants of both."""
        merged: dict[str, dict[str, Any]] = {section: {} for section in cls.model_fields}
        for catalog in catalogs:
            for section, entries in merged.items():
                for entry in getattr(catalog, section):
                    first = entries.setdefault(entry.name, entry)
                    if isinstance(entry, BackboneEntry) and entry.variants != first.variants:
                        entries[entry.name] = _both(first, entry)
        return cls(**{section: list(entries.values()) for section, entries in merged.items()})


def _both(first: BackboneEntry, other: BackboneEntry) -> BackboneEntry:
    """A family with the variants of two; one that only one of them has is with or without weights as there."""
    variants = [*dict.fromkeys((*first.variants, *other.variants))]
    without = [*dict.fromkeys((*first.without_weights, *other.without_weights))]
    return first.model_copy(update={"variants": variants, "without_weights": without})


def claim(swaps: Sequence[Sequence[str]], slots: Sequence[str]) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Which swap claims which slot.

    Args:
        swaps: the globs of each swap.
        slots: slot names, in depth order.

    Returns:
        The index of the claiming swap by slot name, in depth order, and the faults: (swap index, sentence)
        for every glob that matches nothing and every slot claimed a second time.
    """
    if not slots:
        return {}, [(index, NO_SLOTS) for index in range(len(swaps))]
    claims: dict[str, int] = {}
    faults: list[tuple[int, str]] = []
    listed = ", ".join(slots)
    for index, globs in enumerate(swaps):
        for glob in globs:
            if not any(fnmatchcase(slot, glob) for slot in slots):
                faults.append((index, f"{glob[:60]!r} matches no slot; the slots are: {listed}"))
        for slot in slots:
            if not any(fnmatchcase(slot, glob) for glob in globs):
                continue
            if slot in claims:
                faults.append((index, f"swaps {claims[slot]} and {index} both claim {slot}; the slots are: {listed}"))
            else:
                claims[slot] = index
    return {slot: claims[slot] for slot in slots if slot in claims}, faults
