"""What a run has before its first step: data, model, optimizer and all else that the loop needs, from the spec."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from acmix import mixers, registry, weights
from acmix.backbones.san import PatchwiseAttention
from acmix.datasets._contract import Dataset, ImageFacts, SplitName
from acmix.errors import OptionInvalid, unknown_name
from acmix.model import build, trunk_of
from acmix.pulse import Pulse
from acmix.spec import Choice, JobSpec
from acmix.tasks._contract import Batch, Task
from acmix.training import data, loop, optimizer, schedule
from acmix.training.data import Division
from acmix.training.launch import LOADERS
from acmix.training.loop import Run
from acmix.training.mixing import mixing_of
from acmix.training.ranks import Ranks
from acmix.training.state import State, seed_everything
from acmix.uncompiled import shared

LOADER_WORKERS = 2  # of a data set that is not in memory


@dataclass(frozen=True)
class Site:
    """Where a spec is run: what it writes lies below `folder`; `stop` is set when it is to end soon."""

    folder: Path
    dataset_root: Path
    device: torch.device
    ranks: Ranks
    stop: Event


def prepare(
    spec: JobSpec, site: Site, given: Mapping[str, torch.Tensor] | None = None
) -> tuple[Run, weights.Fit | None]:
    """All that the loop needs, from the spec; and what of the weights that it starts from fits.

    Afterwards the ranks draw from generators of their own: the first as if it were alone.
    """
    training, ranks, device = spec.training, site.ranks, site.device
    dataset = _made("datasets", spec.dataset, site.dataset_root)
    task = task_of(spec, dataset.classes)
    model, fit = _model(spec, task, dataset.image_px, given)
    model = _placed(model, spec, device, ranks)
    division = Division(len(dataset.split("train")), training.batch_size, ranks.size, training.limit_train_batches)
    state = _state(spec, model, math.ceil(division.batches / training.accumulate_batches), device)
    if not ranks.is_first:
        seed_everything(ranks.seed(training.seed))
    training_batches, evaluation_batches = _batches(spec, site, dataset, task, division)
    run = Run(
        spec=spec,
        folder=site.folder,
        task=task,
        state=state,
        trained=shared(model) if ranks.size > 1 else model,
        ranks=ranks,
        layers=mixers.layers_of(trunk_of(model)),
        device=device,
        images=ImageFacts(dataset.image_px, dataset.mean, dataset.std, dataset.in_memory),
        training=training_batches,
        judging=evaluation_batches,
        source=lambda split, index: dataset.split(split).source(index),
        division=division,
        metric=_metric(spec, task),
        stop_requested=site.stop.is_set,
        pulse=Pulse(site.folder),
    )
    return run, fit


def _batches(
    spec: JobSpec, site: Site, dataset: Dataset, task: Task, division: Division
) -> tuple[loop.BatchesFrom, Callable[[SplitName], Iterator[tuple[int, Batch]]]]:
    """The rank's share of an epoch's training batches, and of a split's for its evaluation."""
    training, ranks = spec.training, site.ranks
    loading: dict[str, Any] = {
        "rank": ranks.rank,
        "loader_workers": _loader_workers(spec, dataset),
        "pin_memory": site.device.type == "cuda",
    }
    training_transform, evaluation_transform = task.transforms(dataset, training.augment)
    train_on = partial(
        data.training_batches,
        dataset.split("train"),
        training_transform,
        division,
        seed=training.seed,
        mixing=mixing_of(training, task),
        **loading,
    )

    def judge_on(split: SplitName) -> Iterator[tuple[int, Batch]]:
        share = {"batch_size": training.batch_size, "ranks": ranks.size, **loading}
        return data.evaluation_batches(dataset.split(split), evaluation_transform, **share)

    return lambda epoch, first: train_on(epoch=epoch, start_batch=first), judge_on


def _placed(model: torch.nn.Module, spec: JobSpec, device: torch.device, ranks: Ranks) -> torch.nn.Module:
    """The model on the device in the spec's precision, and in every rank that of the first."""
    training = spec.training
    if training.sync_batch_norm:
        if device.type != "cuda":
            raise OptionInvalid("sync_batch_norm=true needs GPUs, and the run is on the CPU; false would do")
        model = synchronised(model)
    model = model.to(device, loop.dtype_of(training))
    ranks.copy_from_first([*model.parameters(), *model.buffers()])
    return model


def synchronised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with batch norms that take their statistics over all ranks.

    By timm, which knows of norms of its own that hold an activation: torch would replace them by norms without.

    Raises:
        OptionInvalid: it has patchwise attention, whose operators norm by what they see themselves.
    """
    if any(isinstance(module, PatchwiseAttention | mixers.ACmixPatchwise) for module in model.modules()):
        raise OptionInvalid(
            "sync_batch_norm=true is not for patchwise attention, which norms for itself; false would do"
        )
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: torch.nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # as timm has it
    return converted


def _model(
    spec: JobSpec, task: Task, image_px: int, given: Mapping[str, torch.Tensor] | None
) -> tuple[torch.nn.Module, weights.Fit | None]:
    """The spec's model, and what of the weights that it starts from fits it."""
    outputs, around = task.num_outputs, partial(task.model, image_px=image_px)
    if given is None:
        return around(build(spec.backbone, spec.swaps, num_classes=outputs, image_px=image_px)), None
    return weights.start(spec.backbone, spec.swaps, given, num_classes=outputs, image_px=image_px, around=around)


def task_of(spec: JobSpec, classes: Sequence[str]) -> Task:
    """The spec's task, with the label smoothing that `auto` stands for."""
    smoothing = spec.training.label_smoothing
    if smoothing == "auto":
        smoothing = registry.get("tasks", spec.task.name).label_smoothing
    task: Task = _made("tasks", spec.task, classes, smoothing or 0.0)
    return task


def _made(folder: registry.Folder, choice: Choice, *given: Any) -> Any:
    """What the registry has under that name, made with the choice's options behind what the run gives."""
    entry = registry.get(folder, choice.name)
    return entry(*given, **registry.check_options(entry, choice.options, where=f"{folder} {choice.name}"))


def _state(spec: JobSpec, model: torch.nn.Module, steps_an_epoch: int, device: torch.device) -> State:
    """Everything as it is before the first step."""
    training = spec.training
    lr_factor = spec.resources.ranks if training.lr_rule == "linear" else 1
    descent = optimizer.build(model, training.optimizer, training.weight_decay_on, lr_factor=lr_factor)
    return State(
        model=model,
        optimizer=descent,
        schedule=schedule.build(descent, training.schedule, epochs=training.epochs, steps_an_epoch=steps_an_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "fp16"),
        average=_average(model, spec),
    )


def _loader_workers(spec: JobSpec, dataset: Any) -> int:
    if spec.training.loader_workers == "auto":
        return 0 if dataset.in_memory else min(LOADER_WORKERS, int(os.environ.get(LOADERS, LOADER_WORKERS)))
    return spec.training.loader_workers


def _average(model: torch.nn.Module, spec: JobSpec) -> AveragedModel | None:
    if spec.training.ema is None:
        return None
    follow = get_ema_multi_avg_fn(spec.training.ema.decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)


def _metric(spec: JobSpec, task: Task) -> str:
    metric = spec.evaluation.metric
    if metric == "auto":
        return task.metrics[0]
    if metric not in task.metrics:
        raise OptionInvalid(unknown_name(f"metric of {task.name}", metric, list(task.metrics)))
    return metric
