"""What machines offer and what jobs ask of them: plain data, by which a job finds its worker."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from acmix.catalog import Catalog, Device

SHARED = "shared"  # the label of a worker that gives one GPU to several jobs, and of the jobs that agree to that
MEMORY_STEP_BYTES = 2**28  # a card's memory is asked for, and compared, in steps of this
PARTS = ("training", "evaluation", "checkpoints", "trace", "resources")  # of a spec, with fields of their own


@dataclass(frozen=True)
class Machine:
    """What one worker offers: its GPUs, the labels that its operator gave it, the CPU cores that it may use.

    Its GPUs are alike: where a machine has cards of several kinds, each kind has a worker of its own.
    """

    devices: tuple[Device, ...] = ()
    labels: frozenset[str] = frozenset()
    cores: int = 1


@dataclass(frozen=True)
class Demand:
    """What a job asks of a worker: all that decides whether one can run it. Many jobs have the same.

    `gpus` is None for "auto", which any worker has. `names` are those of the catalog that the spec names, by section.
    `shape` stands for the fields that the resolved spec has and the words in them: a worker of another version may not
    know all of them. Memory is in steps, or hardly two jobs would ask for the same.
    """

    gpus: int | None
    gpu_kind: str | None
    memory_bytes: int | None
    labels: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    shape: str

    @cached_property
    def id(self) -> str:
        """The same for equal demands."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:24]

    @property
    def slots(self) -> int:
        """How many slots of a worker a job takes: one for each GPU, one on the CPU."""
        return max(1, self.gpus or 1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def demand_of(resolved_spec: Mapping[str, Any]) -> Demand:
    """What a resolved spec, of this or an older version, asks for."""
    training, resources = resolved_spec["training"], resolved_spec["resources"]
    named = {
        "tasks": [resolved_spec["task"]],
        "datasets": [resolved_spec["dataset"]] if "dataset" in resolved_spec else [],  # a plan needs none
        "optimizers": [training["optimizer"]],
        "schedules": [training["schedule"]],
        "augments": [training["augment"]],
        "mixers": [swap["mixer"] for swap in resolved_spec["swaps"]],
        "backbones": [resolved_spec["backbone"]],
    }
    return Demand(
        gpus=None if resources["gpus"] == "auto" else resources["gpus"],
        gpu_kind=resources.get("gpu_kind"),
        memory_bytes=_in_steps(resources["memory_bytes"]) if resources.get("memory_bytes") else None,
        labels=tuple(sorted(set(resources.get("labels", ())))),
        names={section: _names(choices) for section, choices in named.items()},
        shape=_shape_of(resolved_spec),
    )


def _names(choices: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A data set of the user's may be named by its id alone: whoever checked it knows its format."""
    return tuple(sorted({choice["name"] for choice in choices if "name" in choice}))


def samples_a_step(resolved_spec: Mapping[str, Any]) -> int:
    """How many samples an optimizer step takes, of all processes that train together."""
    training = resolved_spec["training"]
    samples: int = training["batch_size"] * training.get("accumulate_batches", 1)
    return samples * ranks_of(resolved_spec)


def ranks_of(resolved_spec: Mapping[str, Any]) -> int:
    """How many processes train together, by a resolved spec of this or an older version."""
    resources = resolved_spec["resources"]
    gpus = 1 if resources["gpus"] == "auto" else resources["gpus"]
    ranks: int = max(1, gpus, resources.get("processes", 1))
    return ranks


def unmet(demand: Demand, machine: Machine, catalog: Catalog) -> str | None:
    """Why a worker cannot run such a job, whatever else it has to do; None where it can."""
    return next(lacks(demand, machine), None) or next(_unknown(demand, catalog), None)


def lacks(demand: Demand, machine: Machine) -> Iterator[str]:
    """What of the machine does not do."""
    devices = machine.devices
    if demand.gpus and demand.gpus > len(devices):
        yield f"it has {len(devices)} GPU{'s' * (len(devices) != 1)} and {demand.gpus} are asked for"
    elif demand.slots > 1 and any((device.uuid or "").startswith("MIG-") for device in devices):
        yield f"its GPUs are parts of divided ones, of which a job can have one, and {demand.gpus} are asked for"
    elif demand.slots > 1 and SHARED in machine.labels:
        yield f"its GPUs are shared, of which a job can have one, and {demand.gpus} are asked for"
    if SHARED in machine.labels and SHARED not in demand.labels:
        yield f"its GPUs are shared, and the job has no label {SHARED} to say that it may meet others there"
    kind, memory_bytes = demand.gpu_kind, demand.memory_bytes
    if not devices and (kind is not None or memory_bytes is not None):
        yield "it has no GPU"
    if kind is not None and not all(is_of_kind(each.name, kind) for each in devices):
        yield f"its GPUs are no {kind}"
    if memory_bytes is not None and any(_in_steps(each.memory_bytes) < memory_bytes for each in devices):
        yield f"its GPUs have less than {memory_bytes / 2**30:g} GiB"
    missing = [label for label in demand.labels if label not in machine.labels]
    if missing:
        yield f"it has no label {', '.join(missing)}"


def is_of_kind(name: str, kind: str) -> bool:
    """Whether a GPU is of a kind: the words of the kind are all in its name. `A100` is no `A10`."""
    return set(_words(kind)) <= set(_words(name))


def _unknown(demand: Demand, catalog: Catalog) -> Iterator[str]:
    """What of the spec its catalog has not."""
    for section, names in demand.names.items():
        for name in names:
            if not _has(catalog, section, name):
                yield f"its catalog has no {name}"


def _has(catalog: Catalog, section: str, name: str) -> bool:
    if section == "backbones":
        return catalog.backbone(name) is not None
    entries: Sequence[Any] = getattr(catalog, section, ())
    return any(entry.name == name for entry in entries)


def _in_steps(memory_bytes: int) -> int:
    """Rounded up, of cards too: who asks for a card's own figure gets it."""
    return math.ceil(memory_bytes / MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES


def _shape_of(resolved_spec: Mapping[str, Any]) -> str:
    parts = {part: resolved_spec.get(part) or {} for part in PARTS}
    fields = {f"{part}.{name}": value for part, its in parts.items() for name, value in its.items()}
    words = {name: value if isinstance(value, str | bool) else None for name, value in fields.items()}
    told = json.dumps([sorted(resolved_spec), words], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
