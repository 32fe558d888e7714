"""The training loop: epochs of optimizer steps, evaluation and checkpoints, told as events."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acmix import events
from acmix.datasets._contract import ImageFacts, SplitName
from acmix.errors import DiskFull, Diverged, OptionInvalid
from acmix.events import Event
from acmix.mixers import ACmixLayer
from acmix.pulse import Pulse
from acmix.spec import JobSpec
from acmix.tasks._contract import Batch, Evaluation, Task, is_better
from acmix.training import checkpoint, trace
from acmix.training.state import State

FLUSH_SECONDS = 1.0  # how often metrics and progress leave the loop
FLUSH_STEPS = 500

BatchesFrom = Callable[[int, int], Iterator[Batch]]  # (epoch, first batch) -> the epoch's batches from there on


class Stopped(Exception):
    """The run was asked to stop; everything it knows is in its last checkpoint."""


@dataclass
class Run:
    """What the loop works with. `training` and `judging` give batches of `images`, `source` what people call a sample;
    `metric` is what best is chosen by."""

    spec: JobSpec
    folder: Path
    task: Task
    state: State
    layers: dict[str, ACmixLayer]
    device: torch.device
    images: ImageFacts
    training: BatchesFrom
    judging: Callable[[SplitName], Iterator[Batch]]
    source: Callable[[SplitName, int], str]
    batches_an_epoch: int
    metric: str
    stop_requested: Callable[[], bool]
    pulse: Pulse
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(self.batches_an_epoch / self.spec.training.accumulate_batches)

    @property
    def last_step(self) -> int:
        return self.steps_an_epoch * self.spec.training.epochs

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(run: Run) -> Iterator[Event]:
    """Train to the last epoch from wherever `run.state` is. Raises Stopped, after a checkpoint, when asked to stop."""
    state, epochs = run.state, run.spec.training.epochs
    while True:
        if state.batch == 0 and state.epoch > state.evaluated and _evaluation_is_due(run):
            yield from _evaluate(run)
            yield from _save(run, "epoch", must=state.epoch == epochs)
        elif state.batch == 0 and state.epoch and _checkpoint_is_due(run):
            yield from _save(run, "epoch", must=False)
        if state.epoch == epochs:
            return
        yield from _train_epoch(run)


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a batch, in lists and dictionaries too, on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(each, device) for name, each in batch.items()}
    return type(batch)(to_device(each, device) for each in batch)


def evaluate(run: Run, model: nn.Module, split: SplitName) -> Evaluation:
    """The task's metrics of a model on a split, in evaluation mode and the spec's precision; leaves its mode as it was.

    Raises:
        Diverged: a metric is not finite.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(run):
            evaluation = run.task.evaluate(model, _until_stopped(run, run.judging(split)))
    finally:
        model.train(was_training)
    for name, value in evaluation.metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{split}/{name} is {value} after epoch {run.state.epoch}", hint=_divergence_hint(run))
    return evaluation


def autocast(run: Run) -> Any:
    """The context of the spec's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.spec.training.precision)
    return torch.autocast(run.device.type, dtype) if dtype else nullcontext()


def evaluation_event(run: Run, evaluation: Evaluation, *, split: SplitName, best: bool, **more: Any) -> Event:
    """The event of an evaluation: everything that results are made of."""
    shown = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
    data = {
        "epoch": run.state.epoch,
        "step": run.state.step,
        "split": split,
        "samples": evaluation.samples,
        "dataset": run.spec.dataset.told,
        "metrics": evaluation.metrics,
        "metric": run.metric,
        "per_class": evaluation.per_class,
        "confusion_matrix": evaluation.confusion_matrix,
        "examples": [{"source": run.source(split, each["index"]), **each} for each in evaluation.examples],
        "best": best,
        **more,
    }
    return Event("evaluation", f"{split}: {shown}", data)


def _train_epoch(run: Run) -> Iterator[Event]:
    """The rest of the epoch under way. Only whole optimizer steps leave a mark: what stops in between is done again."""
    state, training = run.state, run.spec.training
    state.model.train()
    log = _Log(run)
    group: list[Batch] = []
    first_batch, batches = state.batch, run.training(state.epoch, state.batch)
    try:
        for batch_number, batch in enumerate(batches, start=first_batch + 1):
            run.pulse.beat()
            group.append(to_device(batch, run.device))
            if len(group) < training.accumulate_batches and batch_number < run.batches_an_epoch:
                continue
            yield from _step(run, group, log)
            group = []
            state.batch = batch_number % run.batches_an_epoch
            state.epoch += batch_number == run.batches_an_epoch
            if log.is_full() or state.batch == 0:
                yield from log.flush()
            if run.stop_requested():
                yield from log.flush()
                yield from _save(run, "stop", must=True)
                raise Stopped
            if state.batch and time.monotonic() - run.saved_at >= run.spec.checkpoints.every_seconds:
                yield from log.flush()
                yield from _save(run, "time", must=False)
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _step(run: Run, group: list[Batch], log: "_Log") -> Iterator[Event]:
    """One optimizer step over a group of batches."""
    state, training = run.state, run.spec.training
    this_step = state.step + 1
    traced = bool(run.layers) and (
        state.step == 0 or trace.is_due(this_step, run.spec.trace.every_steps, run.last_step)
    )
    samples = sum(len(images) for images, _ in group)
    shown: dict[str, Tensor] = {}
    state.optimizer.zero_grad(set_to_none=True)
    with trace.tracing(run.layers, on=traced):
        for batch in group:
            share = len(batch[0]) / samples
            with autocast(run):
                loss, figures = run.task.step(state.model, batch)
            if run.device.type == "cpu" and not math.isfinite(loss.item()):
                raise _diverged(run, batch, loss.item(), this_step)
            state.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            shown = {name: shown.get(name, 0) + value * share for name, value in figures.items()}
    if traced and state.step == 0:
        yield trace.read(0, run.layers)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    _descend(state, training.clip_norm)
    state.step = this_step
    if traced and trace.is_due(this_step, run.spec.trace.every_steps, run.last_step):
        yield trace.read(this_step, run.layers)
    log.add(samples, learning_rate, shown)


def _descend(state: State, clip_norm: float | None) -> None:
    """Apply the gradients; under fp16 the scaler skips a step whose gradients overflowed."""
    if clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    if state.average is not None:
        state.average.update_parameters(state.model)


class _Log:
    """Metrics of steps not yet told. They stay on the device until a flush: one wait for it, not one a step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._clear()

    def add(self, samples: int, learning_rate: float, figures: dict[str, Tensor]) -> None:
        self.steps.append(self.run.state.step)
        self.learning_rates.append(learning_rate)
        self.samples += samples
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def is_full(self) -> bool:
        return len(self.steps) >= FLUSH_STEPS or time.monotonic() - self.since >= FLUSH_SECONDS

    def flush(self) -> Iterator[Event]:
        """A metrics and a progress event. Raises Diverged if a loss is not finite."""
        if not self.steps:
            return
        state, training = self.run.state, self.run.spec.training
        values = {f"train/{name}": torch.stack(column).tolist() for name, column in self.figures.items()}
        for step, loss in zip(self.steps, values["train/loss"], strict=True):
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step}", hint=_divergence_hint(self.run))
        rate = self.samples / max(time.monotonic() - self.since, 1e-9)
        epoch = state.epoch + (1 if state.batch else 0)
        yield events.metrics(self.steps, {**values, "train/lr": self.learning_rates}, epoch=epoch)
        yield events.progress(
            "training",
            message=f"epoch {epoch} of {training.epochs}, step {state.step} of {self.run.last_step}, "
            f"loss {values['train/loss'][-1]:.4f}, {rate:.0f} samples/s",
            epoch=state.epoch,
            epochs=training.epochs,
            step=state.step,
            steps=self.run.last_step,
            samples_per_second=rate,
        )
        self._clear()

    def _clear(self) -> None:
        self.steps: list[int] = []
        self.learning_rates: list[float] = []
        self.figures: dict[str, list[Tensor]] = {}
        self.samples = 0
        self.since = time.monotonic()


def _evaluation_is_due(run: Run) -> bool:
    epoch = run.state.epoch
    return epoch % run.spec.evaluation.every_epochs == 0 or epoch == run.spec.training.epochs


def _checkpoint_is_due(run: Run) -> bool:
    """At the end of an epoch that was not evaluated; an evaluated one is always saved."""
    state = run.state
    return state.epoch > state.evaluated and state.epoch % run.spec.checkpoints.every_epochs == 0


def _evaluate(run: Run) -> Iterator[Event]:
    """Evaluate on val, note whether it is the best so far."""
    state = run.state
    yield events.progress(
        "evaluating", epoch=state.epoch, epochs=run.spec.training.epochs, step=state.step, steps=run.last_step
    )
    try:
        evaluation = evaluate(run, state.judged, "val")
    except Stopped:
        yield from _save(run, "stop", must=True)
        raise
    value = _judged_by(run, evaluation)
    best = is_better(run.metric, value, state.best["value"] if state.best else None)
    state.evaluated, state.metrics = state.epoch, {f"val/{name}": figure for name, figure in evaluation.metrics.items()}
    if best:
        state.best = {"metric": run.metric, "value": value, "epoch": state.epoch, "step": state.step}
    yield events.metrics([state.step], {name: [figure] for name, figure in state.metrics.items()}, epoch=state.epoch)
    yield evaluation_event(run, evaluation, split="val", best=best)


def _judged_by(run: Run, evaluation: Evaluation) -> float:
    """The value of the metric that best is chosen by. It may have none: no object of val may be of some size."""
    if run.metric not in evaluation.metrics:
        has = ", ".join(evaluation.metrics)
        raise OptionInvalid(f"evaluation.metric={run.metric} has no value on val here; these have: {has}")
    return evaluation.metrics[run.metric]


def _until_stopped(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if run.stop_requested():
            raise Stopped
        run.pulse.beat()
        yield to_device(batch, run.device)


def _save(run: Run, kind: str, *, must: bool) -> Iterator[Event]:
    """Write a checkpoint and thin out the older ones. A full disk is a warning unless this one must be saved."""
    state, keep = run.state, run.spec.checkpoints
    judged = state.evaluated == state.epoch and state.batch == 0
    metrics = (state.metrics or {}) if judged else {}
    try:
        try:
            saved = _write(run, kind, metrics)
        except DiskFull:
            _thin_out(run, keep_best=min(1, keep.keep_best), keep_latest=1)
            saved = _write(run, kind, metrics)
    except DiskFull as error:
        if must:
            raise
        yield events.warning(error.code, f"{error}; training goes on", epoch=state.epoch, step=state.step)
        return
    finally:
        run.saved_at = time.monotonic()
    best = judged and state.best is not None and state.best["epoch"] == state.epoch
    yield Event("checkpoint", f"step {state.step}", {**saved.as_json(), "best": best, "metric": f"val/{run.metric}"})
    _thin_out(run, keep_best=keep.keep_best, keep_latest=keep.keep_latest)


def _write(run: Run, kind: str, metrics: dict[str, float]) -> checkpoint.Saved:
    state = run.state
    return checkpoint.save(
        run.checkpoints,
        epoch=state.epoch,
        step=state.step,
        kind=kind,
        metrics=metrics,
        weights=state.weights(),
        state=state.tree(),
        about={
            "spec": run.spec.dump(),
            "classes": list(run.task.classes),
            "images": asdict(run.images),
            "epoch": state.epoch,
            "step": state.step,
        },
    )


def _thin_out(run: Run, *, keep_best: int, keep_latest: int) -> None:
    checkpoint.retain(run.checkpoints, f"val/{run.metric}", keep_best=keep_best, keep_latest=keep_latest)


def _diverged(run: Run, batch: Batch, loss: float, step: int) -> Diverged:
    """Names the first layer whose output on this batch is not finite."""
    culprits: list[tuple[str, float]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool((finite := output.isfinite()).all()):
                culprits.append((name, output[~finite][0].item()))

        return hook

    leaves = [(name, module) for name, module in run.state.model.named_modules() if not list(module.children())]
    leaves += list(run.layers.items())
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad(), autocast(run):
            run.task.step(run.state.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    where = f"{culprits[0][0]} produced {culprits[0][1]}, the first layer to" if culprits else "every layer is finite"
    return Diverged(f"the loss is {loss} at step {step}: {where}", hint=_divergence_hint(run))


def _divergence_hint(run: Run) -> str:
    training = run.spec.training
    tries = ["a lower learning rate"]
    if training.precision == "fp16":
        tries.append('precision "bf16"')
    if training.clip_norm is None:
        tries.append("clip_norm")
    return f"precision is {training.precision}; try {' or '.join(tries)}"
