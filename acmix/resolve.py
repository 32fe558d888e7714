"""A spec against the catalog: every fault with what would do, and the spec with all its defaults written out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal, TypeVar

from acmix.catalog import BackboneEntry, Catalog, Entry, MixerEntry, MixerForm, Slot, claim
from acmix.errors import Problem, nearest, unknown_name, unknown_variant
from acmix.fleet import Machine, demand_of, is_of_kind, lacks
from acmix.option_schema import Path, option_problems, with_defaults
from acmix.spec import AnySpec, Choice, FlatChoice, JobSpec, Swap, pointer

MAX_SLOTS = 500
MAX_GLOBS = 500
MAX_CLAIM_PROBLEMS = 20

_Named = TypeVar("_Named", bound=Entry | MixerEntry)


def problems(spec: JobSpec, catalog: Catalog, *, fleet: Sequence[Machine] | None = None) -> list[Problem]:
    """Every reason why no worker could run the spec; `fleet` is what the workers of the last days offer, if known."""
    return [
        *(problem for place in _places(spec, catalog) for problem in place.problems()),
        *_task_problems(spec, catalog),
        *_mask_problems(spec, catalog),
        *_weights_problems(spec, catalog),
        *_swap_problems(spec, catalog),
        *_training_problems(spec),
        *_norm_problems(spec, catalog),
        *_kind_of_training_problems(spec, catalog),
        *_metric_problems(spec, catalog),
        *_resource_problems(spec),
        *_fleet_problems(spec, fleet),
    ]


def resolve(spec: AnySpec, catalog: Catalog) -> AnySpec:
    """The spec with every default of its options written out; resolving it again changes nothing.

    `gpus` and `loader_workers` may stay "auto": the worker that claims the job decides them.
    """
    training, resources = spec.training, spec.resources
    return spec.model_copy(
        update={
            "task": _filled(spec.task, catalog.tasks),
            "backbone": _filled(spec.backbone, catalog.backbones),
            "dataset": _filled(spec.dataset, catalog.datasets),
            "swaps": _filled_swaps(spec, catalog),
            "training": training.model_copy(
                update={
                    "optimizer": _filled_flat(training.optimizer, catalog.optimizers),
                    "schedule": _filled_flat(training.schedule, catalog.schedules),
                    "augment": _filled_flat(training.augment, catalog.augments),
                    "label_smoothing": _label_smoothing(spec, catalog),
                }
            ),
            "evaluation": spec.evaluation.model_copy(update={"metric": _metric(spec, catalog)}),
            "resources": resources.model_copy(update={"gpus": _gpus(spec), "labels": sorted(set(resources.labels))}),
        }
    )


def only_model_tells(spec: JobSpec, catalog: Catalog) -> bool:
    """Whether the catalog has no slots for the spec's backbone: nothing but a plan can check its swaps."""
    backbone = _entry(catalog.backbones, spec.backbone.name)
    return backbone is not None and backbone.slots is None and backbone.slot_pattern is None


@dataclass(frozen=True)
class _Place:
    """Where a spec names an entry of the catalog."""

    what: str
    path: Path
    choice: Choice | FlatChoice
    entries: Sequence[Entry]
    offered: Sequence[Entry] = ()  # in place of an unknown name; all, if none

    def problems(self) -> list[Problem]:
        entry = _entry(self.entries, self.choice.name)
        if entry is None:
            return [_unknown_entry(self.what, self.path, self.choice.name, self.offered or self.entries)]
        at = self.path if isinstance(self.choice, FlatChoice) else (*self.path, "options")
        return option_problems(entry.options, self.choice.options, at)


def _places(spec: JobSpec, catalog: Catalog) -> list[_Place]:
    training = spec.training
    fitting = [each for each in catalog.datasets if each.task == spec.task.name]
    return [
        _Place("task", ("task",), spec.task, catalog.tasks),
        _Place("backbone", ("backbone",), spec.backbone, catalog.backbones),
        _Place("data set", ("dataset",), spec.dataset, catalog.datasets, offered=fitting),
        _Place("optimizer", ("training", "optimizer"), training.optimizer, catalog.optimizers),
        _Place("schedule", ("training", "schedule"), training.schedule, catalog.schedules),
        _Place("augment", ("training", "augment"), training.augment, catalog.augments),
    ]


def _unknown_name(what: str, path: Path, name: str, names: Sequence[str]) -> Problem:
    return Problem(
        pointer((*path, "name")),
        "unknown_name",
        unknown_name(what, name, names),
        allowed=sorted(names),
        fixes=nearest(name, names) or None,
    )


def _unknown_entry(what: str, path: Path, name: str, entries: Sequence[Entry]) -> Problem:
    """The nearest names; of a family the nearest variants, since all of them would be too many."""
    families = [each for each in entries if isinstance(each, BackboneEntry) and each.variants]
    at, (own_name, _, variant) = pointer((*path, "name")), name.partition("/")
    for family in families:
        if family.name == own_name:
            fixes = [f"{own_name}/{each}" for each in nearest(variant, family.variants)]
            sentence = unknown_variant(what, name, family.variants)
            return Problem(at, "unknown_name", sentence, fixes=fixes or None)
        if name in family.variants:
            whole = f"{family.name}/{name}"
            return Problem(at, "unknown_name", f"no {what} is named {name!r}; {whole} is", fixes=[whole])
    return _unknown_name(what, path, name, [each.name for each in entries if each not in families])


def _task_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    task, dataset = _entry(catalog.tasks, spec.task.name), _entry(catalog.datasets, spec.dataset.name)
    if task is None or dataset is None or dataset.task == task.name:
        return
    fitting = sorted(each.name for each in catalog.datasets if each.task == task.name)
    yield Problem(
        "/dataset/name",
        "wrong_task",
        f"{dataset.name} is a data set for {dataset.task}, not for {task.name}; "
        + (f"these are: {', '.join(fitting)}" if fitting else "there is none"),
        allowed=fitting,
    )


def _mask_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    dataset = _entry(catalog.datasets, spec.dataset.name)
    if dataset is not None and dataset.has_masks is False:
        yield from without_masks(spec, catalog, dataset.name)


def without_masks(spec: JobSpec, catalog: Catalog, dataset: str) -> Iterator[Problem]:
    """What of the task's options needs masks, which that data set has not."""
    task = _entry(catalog.tasks, spec.task.name)
    for option, values in (task.masks_for if task else {}).items():
        value = spec.task.options.get(option)
        if task is not None and value in values:
            every = task.options["properties"][option].get("enum", [])
            do = [each for each in every if each not in values]
            message = f"{option}={value} needs masks, and {dataset} has none; {', '.join(do) or 'none'} would do"
            yield Problem(pointer(("task", "options", option)), "no_masks", message, allowed=do, actual=value)


def _weights_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    """Whether timm has weights; whether an id is one is for the service to say, which knows them."""
    name = spec.backbone.name
    backbone = catalog.backbone(name)
    if spec.backbone.weights != "timm" or backbone is None or backbone.has_timm_weights(name):
        return
    have = [each.name for each in catalog.backbones if each.timm_counterpart]
    have += [f"most of {each.name}/..." for each in catalog.backbones if each.variants]
    message = f"timm has no weights for {name}; it has for: {', '.join(have) or 'none'}"
    yield Problem("/backbone/weights", "no_weights", message)


def _swap_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    names = [mixer.name for mixer in catalog.mixers]
    for index, swap in enumerate(spec.swaps):
        if swap.mixer.name not in names:
            yield _unknown_name("mixer", ("swaps", index, "mixer"), swap.mixer.name, names)
    if sum(len(swap.globs) for swap in spec.swaps) > MAX_GLOBS:
        yield Problem("/swaps", "out_of_bounds", f"swaps must hold at most {MAX_GLOBS} globs in all", limit=MAX_GLOBS)
        return
    slots, faults = _slots(spec, catalog)
    yield from faults
    if not slots:
        return
    slot_names = [slot.name for slot in slots]
    claims, claim_faults = claim([swap.globs for swap in spec.swaps], slot_names)
    for index, sentence in claim_faults[:MAX_CLAIM_PROBLEMS]:
        yield Problem(pointer(("swaps", index, "layers")), "layers_invalid", sentence, allowed=slot_names)
    for index, swap in enumerate(spec.swaps):
        claimed = [slot for slot in slots if claims.get(slot.name) == index]
        mixer = _entry(catalog.mixers, swap.mixer.name)
        if mixer:
            yield from _mixer_problems(index, swap, mixer, claimed or slots, catalog.mixers)


def _slots(spec: JobSpec, catalog: Catalog) -> tuple[list[Slot], list[Problem]]:
    """The slots of the backbone as the spec has it; none where its options are at fault or only the model tells."""
    backbone = _entry(catalog.backbones, spec.backbone.name)
    if backbone is None or option_problems(backbone.options, spec.backbone.options, ()):
        return [], []
    options = _set(with_defaults(backbone.options, spec.backbone.options))
    faults = _depth_problems(backbone, options)
    return ([], faults) if faults else (backbone.slots_under(options) or [], [])


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without the options that are null: they leave the depths and the width as they are."""
    return {name: value for name, value in options.items() if value is not None}


def _depth_problems(backbone: BackboneEntry, options: Mapping[str, Any]) -> list[Problem]:
    """Depths that do not go with the stages: slots are listed only for those that do."""
    pattern = backbone.slot_pattern
    if pattern is None or pattern.depths_option is None or pattern.depths_option not in options:
        return []
    depths, stages = options[pattern.depths_option], len(pattern.channels)
    at = pointer(("backbone", "options", pattern.depths_option))
    if len(depths) > stages or (len(depths) < stages and not pattern.stages_vary):
        how_many = f"at most {stages}" if pattern.stages_vary else str(stages)
        return [Problem(at, "out_of_bounds", f"{pattern.depths_option} must hold {how_many} numbers", limit=stages)]
    if sum(depths) > MAX_SLOTS:
        message = f"{pattern.depths_option} must sum to at most {MAX_SLOTS} blocks"
        return [Problem(at, "out_of_bounds", message, limit=MAX_SLOTS)]
    return []


def _mixer_problems(
    index: int, swap: Swap, mixer: MixerEntry, slots: Sequence[Slot], mixers: Sequence[MixerEntry]
) -> Iterator[Problem]:
    """Faults of a mixer for the slots that its swap claims, the first of each kind."""
    path: Path = ("swaps", index, "mixer")
    for kind in dict.fromkeys(slot.kind for slot in slots):
        alike = [slot for slot in slots if slot.kind == kind]
        form = mixer.form(kind)
        if form is None:
            fitting = sorted(other.name for other in mixers if other.form(kind))
            message = f"{mixer.name} has no form for {alike[0].name}, a {kind} slot; {', '.join(fitting) or 'none'} has"
            yield Problem(pointer((*path, "name")), "no_form", message, allowed=fitting)
            continue
        faults = option_problems(form.options, swap.mixer.options, (*path, "options"))
        yield from faults or _divisor_problems((*path, "options"), form, swap.mixer.options, alike)


def _divisor_problems(
    path: Path, form: MixerForm, given: Mapping[str, Any], slots: Sequence[Slot]
) -> Iterator[Problem]:
    """The option that must divide the channels of every slot, such as heads."""
    option = form.divides_channels
    parts = with_defaults(form.options, given).get(option) if option else None
    if option is None or not isinstance(parts, int):
        return
    odd = next((slot for slot in slots if slot.channels % parts), None)
    if odd is None:
        return
    do = _divisors(gcd(*(slot.channels for slot in slots)))
    do = [value for value in do if not option_problems(form.options, {**given, option: value}, ())]
    yield Problem(
        pointer((*path, option)),
        "does_not_divide",
        f"{option}={parts} does not divide {odd.channels} channels of {odd.name}; {_listed(do)} do",
        allowed=do,
        actual=parts,
        fixes=sorted(do, key=lambda value: abs(value - parts))[:3],
    )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _listed(values: Sequence[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def _training_problems(spec: JobSpec) -> Iterator[Problem]:
    warmup, epochs = spec.training.schedule.options.get("warmup_epochs"), spec.training.epochs
    if isinstance(warmup, int | float) and warmup > epochs:
        yield Problem(
            "/training/schedule/warmup_epochs",
            "out_of_bounds",
            f"warmup_epochs must be at most the {epochs} epochs of the training",
            limit=epochs,
            actual=warmup,
        )


def _norm_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    """Patchwise attention, swapped or not, norms by what it sees in its own process alone."""
    slots, _ = _slots(spec, catalog)
    if spec.training.sync_batch_norm and any(slot.kind == "patchwise" for slot in slots):
        message = (
            f"sync_batch_norm=true is not for the patchwise attention of {spec.backbone.name}, which norms for itself; "
            "false would do"
        )
        yield Problem("/training/sync_batch_norm", "wrong_backbone", message, actual=True, fixes=[False])


def _kind_of_training_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    """What only some tasks can be trained with: mixed images, smooth labels, an augment for their samples."""
    task, training = _entry(catalog.tasks, spec.task.name), spec.training
    if task is None:
        return
    for name in () if task.mixes else ("mixup", "cutmix"):
        if getattr(training, name):
            message = f"{name} mixes labels of whole images, which {task.name} has not; 0 would do"
            yield Problem(f"/training/{name}", "wrong_task", message, actual=getattr(training, name), fixes=[0])
    if task.label_smoothing is None and training.label_smoothing not in ("auto", 0):
        message = f"label_smoothing is not for {task.name}; auto or 0 would do"
        actual = training.label_smoothing
        yield Problem("/training/label_smoothing", "wrong_task", message, actual=actual, fixes=["auto", 0])
    augment = _entry(catalog.augments, training.augment.name)
    if augment and task.name not in augment.tasks:
        fitting = sorted(each.name for each in catalog.augments if task.name in each.tasks)
        message = f"{augment.name} is for {' and '.join(augment.tasks)}, not for {task.name}; {', '.join(fitting)} are"
        yield Problem("/training/augment/name", "wrong_task", message, allowed=fitting)


def _metric_problems(spec: JobSpec, catalog: Catalog) -> Iterator[Problem]:
    task, asked = _entry(catalog.tasks, spec.task.name), spec.evaluation.metric
    known = task.metrics if task else []
    if task is None or asked == "auto" or asked in known:
        return
    message = unknown_name(f"metric of {task.name}", asked, known)
    fixes = nearest(asked, known) or None
    yield Problem("/evaluation/metric", "unknown_name", message, allowed=["auto", *known], fixes=fixes)


def _resource_problems(spec: JobSpec) -> Iterator[Problem]:
    """What of the resources contradicts another part of the spec."""
    asked, gpus = spec.resources, spec.resources.gpus
    if gpus not in ("auto", 0) and asked.processes > 1:
        message = f"processes={asked.processes} is for the CPU: each GPU has a process of its own; 1 would do"
        yield Problem("/resources/processes", "out_of_bounds", message, limit=1, actual=asked.processes, fixes=[1])
    if gpus == 0 or asked.processes > 1:
        for name in ("gpu_kind", "memory_bytes"):
            if getattr(asked, name) is not None:
                message = f"{name} is of GPUs, and the job is to run on the CPU; null would do"
                yield Problem(f"/resources/{name}", "needs_gpu", message, fixes=[None])
        if spec.training.sync_batch_norm:
            message = "sync_batch_norm=true needs GPUs, and the job is to run on the CPU; false would do"
            yield Problem("/training/sync_batch_norm", "needs_gpu", message, actual=True, fixes=[False])


def _fleet_problems(spec: JobSpec, fleet: Sequence[Machine] | None) -> Iterator[Problem]:
    """What no worker of the last days could give."""
    if fleet is None:
        return
    faults = list(_missing(spec, fleet))
    yield from faults
    settled = spec.resources.model_copy(update={"gpus": _gpus(spec)})
    demand = demand_of(spec.model_copy(update={"resources": settled}).dump())
    why = [next(lacks(demand, machine), None) for machine in fleet]
    if why and not faults and None not in why:
        message = f"no worker of the last 7 days could run it; of the last, {why[-1]}"
        yield Problem("/resources", "no_worker", message)


def _missing(spec: JobSpec, fleet: Sequence[Machine]) -> Iterator[Problem]:
    """What is asked for by a single field and nobody has."""
    asked, gpus = spec.resources, spec.resources.gpus
    most = max((len(machine.devices) for machine in fleet), default=0)
    if gpus != "auto" and gpus > most:
        message = f"gpus must be at most {most}: no worker of the last 7 days had more"
        yield Problem("/resources/gpus", "out_of_bounds", message, limit=most, actual=gpus)
        return
    if spec.training.sync_batch_norm and not most and gpus == "auto" and asked.processes == 1:
        message = "sync_batch_norm=true needs GPUs, and no worker of the last 7 days had any; false would do"
        yield Problem("/training/sync_batch_norm", "needs_gpu", message, actual=True, fixes=[False])
    kinds = sorted({device.name for machine in fleet for device in machine.devices})
    if asked.gpu_kind is not None and not any(is_of_kind(kind, asked.gpu_kind) for kind in kinds):
        message = f"no worker of the last 7 days had a GPU of that kind; there were: {', '.join(kinds) or 'none'}"
        yield Problem("/resources/gpu_kind", "unknown_name", message, allowed=kinds)
    largest = max((device.memory_bytes for machine in fleet for device in machine.devices), default=0)
    if asked.memory_bytes is not None and not largest:
        message = "memory_bytes is of GPUs, and no worker of the last 7 days had any; null would do"
        yield Problem("/resources/memory_bytes", "needs_gpu", message, fixes=[None])
    elif asked.memory_bytes is not None and asked.memory_bytes > largest:
        message = f"memory_bytes must be at most {largest}: no GPU of the last 7 days had more"
        yield Problem("/resources/memory_bytes", "out_of_bounds", message, limit=largest, actual=asked.memory_bytes)
    labels = sorted({label for machine in fleet for label in machine.labels})
    for index, label in enumerate(asked.labels):
        if label not in labels:
            message = unknown_name("label of a worker", label, labels)
            at = pointer(("resources", "labels", index))
            yield Problem(at, "unknown_name", message, allowed=labels, fixes=nearest(label, labels) or None)


def _gpus(spec: JobSpec) -> Literal["auto"] | int:
    """Where the rest of the spec decides whether there is one, "auto" is settled."""
    asked = spec.resources
    if asked.gpus != "auto":
        return asked.gpus
    if asked.processes > 1:
        return 0
    needs_gpu = asked.gpu_kind is not None or asked.memory_bytes is not None or spec.training.sync_batch_norm
    return 1 if needs_gpu else "auto"


def _metric(spec: JobSpec, catalog: Catalog) -> str:
    task = _entry(catalog.tasks, spec.task.name)
    return task.metrics[0] if task and spec.evaluation.metric == "auto" else spec.evaluation.metric


def _label_smoothing(spec: JobSpec, catalog: Catalog) -> float | str:
    task, asked = _entry(catalog.tasks, spec.task.name), spec.training.label_smoothing
    return (task.label_smoothing or 0.0) if task and asked == "auto" else asked


def _filled(choice: Choice, entries: Sequence[Entry]) -> Choice:
    entry = _entry(entries, choice.name)
    return choice.model_copy(update={"options": with_defaults(entry.options, choice.options)}) if entry else choice


def _filled_flat(choice: FlatChoice, entries: Sequence[Entry]) -> FlatChoice:
    entry = _entry(entries, choice.name)
    options = with_defaults(entry.options, choice.options) if entry else choice.options
    return FlatChoice.model_validate({"name": choice.name, **options})


def _filled_swaps(spec: JobSpec, catalog: Catalog) -> list[Swap]:
    """The swaps with the options of the form that they need; of several forms none would take the others' options."""
    slots, _ = _slots(spec, catalog)
    claims, _ = claim([swap.globs for swap in spec.swaps], [slot.name for slot in slots])
    filled = []
    for index, swap in enumerate(spec.swaps):
        kinds = {slot.kind for slot in slots if claims.get(slot.name) == index}
        mixer = _entry(catalog.mixers, swap.mixer.name)
        form = mixer.form(kinds.pop()) if mixer and len(kinds) == 1 else None
        options = with_defaults(form.options, swap.mixer.options) if form else swap.mixer.options
        filled.append(swap.model_copy(update={"mixer": swap.mixer.model_copy(update={"options": options})}))
    return filled


def _entry(entries: Sequence[_Named], name: str) -> _Named | None:
    return next((entry for entry in entries if _stands_for(entry, name)), None)


def _stands_for(entry: Entry | MixerEntry, name: str) -> bool:
    return entry.stands_for(name) if isinstance(entry, BackboneEntry) else entry.name == name
