"""Run a spec: `for event in run(spec, folder): ...`. Run again on the same folder, it goes on where it stopped."""

import platform
import threading
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

import acmix
from acmix import events, weights
from acmix.errors import (
    AcmixError,
    CheckpointIncompatible,
    DatasetMissing,
    OptionInvalid,
    OutOfDeviceMemory,
    OutOfHostMemory,
    Reason,
    WeightsMissing,
)
from acmix.events import Event
from acmix.spec import JobSpec
from acmix.training import checkpoint, loop
from acmix.training.data import Division
from acmix.training.launch import is_rank, launched
from acmix.training.loop import Run, Stopped
from acmix.training.ranks import Ranks, joined, local_rank
from acmix.training.setup import Site, prepare
from acmix.training.state import seed_everything


def run(
    spec: JobSpec,
    folder: Path,
    *,
    data_root: Path = Path("datasets"),
    weights_file: Path | None = None,
    dataset_folder: Path | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """Train and evaluate as the spec says; everything it writes lies below `folder`.

    Closing the iterator stops at once and leaves the last checkpoint. Setting `stop` finishes the step,
    saves a checkpoint and ends with a status event "stopped".

    A spec of several GPUs or processes is run by as many further processes, which torchrun starts; in one of those,
    only the first yields events.

    Args:
        data_root: where data sets with files lie.
        weights_file: a safetensors file to start from, such as an id in `backbone.weights` stands for. Read when the
            run starts anew, not when it resumes.
        dataset_folder: where the data lie that an id in `dataset` stands for.

    Raises:
        AcmixError: what went wrong, with its reason; any other exception is a fault of this library.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stop = stop or threading.Event()
    if spec.resources.ranks > 1 and not is_rank():
        yield from launched(
            spec, folder, data_root=data_root, weights_file=weights_file, dataset_folder=dataset_folder, stop=stop
        )
        return
    dataset_root = _dataset_root(spec, data_root, dataset_folder)
    try:
        device = _device(spec)
        with joined(device) as ranks:
            _check_ranks(spec, ranks)
            site = Site(folder, dataset_root, device, ranks, stop)
            told = _told(_run(spec, site, data_root, weights_file))
            yield from (event for event in told if ranks.is_first)
    except torch.OutOfMemoryError as error:
        hint = "a smaller batch_size, or accumulate_batches to keep its effect"
        said = ". ".join(str(error).split(". ")[:2])  # that it is so, and how much was asked for
        raise OutOfDeviceMemory(said, hint=hint) from error
    except (MemoryError, RuntimeError) as error:
        if lack := _lack_of_memory(error):
            raise lack from error
        raise


def _told(happening: Iterator[Event]) -> Iterator[Event]:
    """What happens, and a last word where it was stopped."""
    try:
        yield from happening
    except Stopped:
        yield events.status("stopped", "stopped when asked")


def _check_ranks(spec: JobSpec, ranks: Ranks) -> None:
    asked = spec.resources.ranks
    if ranks.size != asked:
        raise OptionInvalid(f"{ranks.size} processes were started, and the spec asks for {asked}; as many would do")


def _lack_of_memory(error: MemoryError | RuntimeError) -> OutOfHostMemory | None:
    """What torch tells in words alone: it has no exceptions of its own for these."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return OutOfHostMemory("this machine's memory does not suffice", hint="a smaller batch_size")
    if "killed by signal: Bus error" in str(error):
        return OutOfHostMemory(
            "a loader worker found no shared memory left", hint="a larger /dev/shm, or fewer loader_workers"
        )
    if "killed by signal: Killed" in str(error):
        return OutOfHostMemory(
            "a loader worker was killed, as is done where memory runs out", hint="fewer loader_workers"
        )
    return None


def reason_of(error: BaseException) -> Reason:
    """Why a run ended, for whoever has to tell it."""
    if isinstance(error, AcmixError):
        return error.reason()
    return Reason("internal", f"{type(error).__name__}: {error}"[:1000], retryable=True)


def versions() -> dict[str, str | None]:
    """What the figures of a run depend on beside its spec."""
    return {
        "acmix": acmix.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def _dataset_root(spec: JobSpec, data_root: Path, dataset_folder: Path | None) -> Path:
    """Below which the data set's files lie."""
    if spec.dataset.id is None:
        return data_root
    if dataset_folder is None:
        raise DatasetMissing(
            f"dataset.id={spec.dataset.id} is a data set of the service that is not at hand",
            hint="name the folder of its unpacked content by --dataset-folder, and in dataset its name and options",
        )
    return dataset_folder


def _run(spec: JobSpec, site: Site, data_root: Path, weights_file: Path | None) -> Iterator[Event]:
    device, ranks = site.device, site.ranks
    names = ranks.gather(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    resume, faults = _newest_whole(site.folder / "checkpoints", ranks)
    origin = {"epoch": resume.epoch, "step": resume.step} if resume else None
    start = f"resumed from step {resume.step}" if resume else "started"
    yield events.status("running", start, resumed_from=origin, versions=versions(), devices=names, ranks=ranks.size)
    for fault in faults:
        yield events.warning(fault.code, f"{fault}; the checkpoint before it is used")
    yield events.progress("preparing")
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    seed_everything(spec.training.seed)
    if spec.kind == "evaluate":
        yield from _judged(spec, site, weights_file)
        return
    from_file = resume is None and ranks.is_first  # the others have them from the first
    given = weights.of(spec.backbone, weights_file, data_root=data_root) if from_file else None
    setup, fit = prepare(spec, site, given)
    _check_division(setup.division)
    if fit:
        yield from weights.told(fit, spec.backbone.weights or str(weights_file))
    if ranks.agree(site.stop.is_set())[0]:
        raise Stopped
    if resume:
        setup.state.restore(
            checkpoint.load_weights(resume), checkpoint.load_state(resume), rank=ranks.rank, ranks=ranks.size
        )
        _check_position(setup)
    yield from loop.train(setup)
    yield from _final(setup)
    yield events.status("succeeded", f"trained {spec.training.epochs} epochs")


def _judged(spec: JobSpec, site: Site, weights_file: Path | None) -> Iterator[Event]:
    """Evaluate a whole model's weights on the spec's split; CheckpointIncompatible where they are another's."""
    if weights_file is None:
        raise WeightsMissing("an evaluation needs the checkpoint's file", hint="name the file by --weights")
    setup, _ = prepare(spec, site)
    _check_classes(weights.about(weights_file).get("classes"), setup.task.classes)
    model = setup.state.judged
    try:
        model.load_state_dict(weights.read(weights_file))
    except RuntimeError as error:
        raise CheckpointIncompatible(f"the checkpoint does not fit this data set's model: {error}"[:1000]) from None
    yield events.progress("evaluating")
    yield from _last_evaluation(setup, spec.checkpoint)
    yield events.status("succeeded", f"evaluated on {spec.evaluation.split}")


def _check_classes(trained: Sequence[str] | None, judged: Sequence[str]) -> None:
    """A model names classes by their place: the data set must have the same in the same order."""
    if trained is None or list(trained) == list(judged):
        return
    pairs = zip_longest(trained, judged, fillvalue="none")
    place, (one, other) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    raise CheckpointIncompatible(
        f"the checkpoint was trained on other classes: of the {len(trained)} there number {place} is {one!r}, "
        f"of the {len(judged)} here it is {other!r}"
    )


def _last_evaluation(setup: Run, checkpoint_told: Any) -> Iterator[Event]:
    """On the spec's split, of the model that is judged now."""
    state, split = setup.state, setup.spec.evaluation.split
    evaluation = loop.evaluate(setup, state.judged, split)
    values = {f"{split}/{name}": [value] for name, value in evaluation.metrics.items()}
    yield events.metrics([state.step], values, epoch=state.epoch)
    yield loop.evaluation_event(setup, evaluation, split=split, best=False, final=True, checkpoint=checkpoint_told)


def _newest_whole(parent: Path, ranks: Ranks) -> tuple[checkpoint.Saved | None, list[CheckpointIncompatible]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones: for the first rank to find and tell."""
    if not ranks.is_first:
        name = ranks.first_says(None)
        return (checkpoint.verified(parent / name) if name else None), []
    found, faults = _looked_for(parent)
    ranks.first_says(found.folder.name if found else None)
    return found, faults


def _looked_for(parent: Path) -> tuple[checkpoint.Saved | None, list[CheckpointIncompatible]]:
    """Those that cannot be read are set aside on the way."""
    faults: list[CheckpointIncompatible] = []
    for folder in checkpoint.listed(parent):
        try:
            return checkpoint.verified(folder), faults
        except CheckpointIncompatible as error:
            faults.append(error)
            checkpoint.set_aside(folder)
    return None, faults


def _check_position(setup: Run) -> None:
    """Where the epoch is shorter now than where the run stopped in it, it would never end."""
    batches = setup.division.batches
    if setup.state.batch >= batches:
        raise CheckpointIncompatible(
            f"the checkpoint is at batch {setup.state.batch} of an epoch, and the spec now has "
            f"{batches}; the spec that it was made with would do"
        )


def _device(spec: JobSpec) -> torch.device:
    gpus, processes = spec.resources.gpus, spec.resources.processes
    if gpus != "auto" and gpus > 0 and processes > 1:
        raise OptionInvalid(f"resources.processes={processes} is for the CPU: each GPU has one of its own; 1 would do")
    if gpus == 0 or processes > 1 or (gpus == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise OptionInvalid(
            f"resources.gpus={gpus}, and this machine has none", hint='"auto" uses one where there is one'
        )
    has = torch.cuda.device_count()
    if gpus != "auto" and gpus > has:
        raise OptionInvalid(f"resources.gpus={gpus}, and this machine has {has}; {has} would do")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def _check_division(division: Division) -> None:
    if division.size_of(division.batches - 1) < division.ranks:
        raise OptionInvalid(
            f"{division.samples} samples cannot be shared out among {division.ranks} processes; fewer would do"
        )


def _final(setup: Run) -> Iterator[Event]:
    """Evaluate the best checkpoint on test."""
    state, ranks = setup.state, setup.ranks
    chosen, fault = _best_whole(setup) if ranks.is_first else (None, None)
    name = ranks.first_says(chosen.folder.name if chosen else None)
    chosen = chosen or checkpoint.verified(setup.checkpoints / name)
    if fault:
        yield events.warning(fault.code, f"{fault}; step {chosen.step} is tested in its place")
    state.judged.load_state_dict(checkpoint.load_weights(chosen))
    yield events.progress("testing", epoch=state.epoch, epochs=state.epoch, step=state.step, steps=setup.last_step)
    yield from _last_evaluation(setup, {"folder": chosen.folder.name, "epoch": chosen.epoch, "step": chosen.step})


def _best_whole(setup: Run) -> tuple[checkpoint.Saved, CheckpointIncompatible | None]:
    """The best checkpoint; the last one where no best is kept, or where the best is at fault as told."""
    last = checkpoint.path_of(setup.checkpoints, setup.state.step)
    if not setup.state.best or not setup.spec.checkpoints.keep_best:
        return checkpoint.verified(last), None
    try:
        return checkpoint.verified(checkpoint.path_of(setup.checkpoints, setup.state.best["step"])), None
    except CheckpointIncompatible as fault:
        return checkpoint.verified(last), fault
