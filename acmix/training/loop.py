"""The training loop: epochs of optimizer steps, evaluation and checkpoints, told as events."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from acmix import events
from acmix.datasets._contract import ImageFacts, SplitName
from acmix.errors import DiskFull, Diverged, OptionInvalid
from acmix.events import Event
from acmix.mixers import ACmixLayer
from acmix.pulse import Pulse
from acmix.spec import JobSpec, Training
from acmix.tasks._contract import Batch, Evaluation, Task, is_better
from acmix.training import checkpoint, trace
from acmix.training.data import Division
from acmix.training.ranks import Ranks
from acmix.training.state import State, as_json, random_state

FLUSH_SECONDS = 1.0  # how often metrics and progress leave the loop
FLUSH_STEPS = 500

BatchesFrom = Callable[[int, int], Iterator[Batch]]  # (epoch, first batch) -> the epoch's batches from there on


class Stopped(Exception):
    """The run was asked to stop; everything it knows is in its last checkpoint."""


@dataclass
class Run:
    """What the loop works with. `training` and `judging` give this rank's batches, `judging` each with the index of its
    first sample; `source` is what people call a sample, and `metric` what best is chosen by.

    `trained` is what a step calls: the state's model, or that in DistributedDataParallel. Every rank goes through the
    loop step by step with the others; what all of them yield, the first tells.
    """

    spec: JobSpec
    folder: Path
    task: Task
    state: State
    trained: nn.Module
    ranks: Ranks
    layers: dict[str, ACmixLayer]
    device: torch.device
    images: ImageFacts
    training: BatchesFrom
    judging: Callable[[SplitName], Iterator[tuple[int, Batch]]]
    source: Callable[[SplitName, int], str]
    division: Division
    metric: str
    stop_requested: Callable[[], bool]
    pulse: Pulse
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(self.division.batches / self.spec.training.accumulate_batches)

    @property
    def last_step(self) -> int:
        return self.steps_an_epoch * self.spec.training.epochs

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def dtype_of(training: Training) -> torch.dtype:
    """Of weights and images; the halves are autocast's business."""
    return torch.float64 if training.precision == "float64" else torch.float32


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


def to_device(batch: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Every tensor of a batch, in lists and dictionaries too, on the device; what is float32 as `dtype`."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.dtype == torch.float32 else batch.dtype, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(each, device, dtype) for name, each in batch.items()}
    return type(batch)(to_device(each, device, dtype) for each in batch)


def evaluate(run: Run, model: nn.Module, split: SplitName) -> Evaluation:
    """The task's metrics of a model on a split, in evaluation mode and the spec's precision; leaves its mode as it was.

    Ranks share the split out and know the whole evaluation afterwards, each of them.

    Raises:
        Diverged: a metric is not finite.
    """
    was_training = model.training
    model.eval()
    run.ranks.copy_from_first(list(model.buffers()))  # each has its own running statistics; the first's are saved
    tally = run.task.tally()
    try:
        with torch.no_grad(), autocast(run):
            for first, batch in _until_stopped(run, run.judging(split)):
                tally.add(model, batch, first)
    finally:
        model.train(was_training)
    if run.ranks.size > 1:
        for rank, told in enumerate(run.ranks.gather(tally.told())):
            if rank != run.ranks.rank:
                tally.take(told)
    evaluation = tally.evaluation()
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
    group: list[_Share] = []
    batches_an_epoch, dtype = run.division.batches, dtype_of(training)
    first_batch, batches = state.batch, run.training(state.epoch, state.batch)
    try:
        for batch_number, batch in enumerate(batches, start=first_batch + 1):
            run.pulse.beat()
            group.append(_Share(to_device(batch, run.device, dtype), run.division.size_of(batch_number - 1)))
            if len(group) < training.accumulate_batches and batch_number < batches_an_epoch:
                continue
            yield from _step(run, group, log)
            group = []
            state.batch = batch_number % batches_an_epoch
            state.epoch += batch_number == batches_an_epoch
            saving = state.batch > 0 and time.monotonic() - run.saved_at >= run.spec.checkpoints.every_seconds
            stopping, saving, telling = run.ranks.agree(run.stop_requested(), saving, log.is_full())
            if stopping or saving or telling or state.batch == 0:
                yield from log.flush()
            if stopping:
                yield from _save(run, "stop", must=True)
                raise Stopped
            if saving:
                yield from _save(run, "time", must=False)
    finally:
        if hasattr(batches, "close"):
            batches.close()


class _Share(NamedTuple):
    """A rank's share of a batch, and how many samples the batch has for all ranks together."""

    batch: Batch
    of_samples: int


def _step(run: Run, group: list[_Share], log: "_Log") -> Iterator[Event]:
    """One optimizer step over a group of batches."""
    state, training = run.state, run.spec.training
    this_step = state.step + 1
    traced = bool(run.layers) and (
        state.step == 0 or trace.is_due(this_step, run.spec.trace.every_steps, run.last_step)
    )
    samples = sum(each.of_samples for each in group)
    shown: dict[str, Tensor] = {}
    state.optimizer.zero_grad(set_to_none=True)
    with trace.tracing(run.layers, on=traced):
        for batch, of_samples in group:
            traced_share = len(batch[0]) / of_samples
            share = len(batch[0]) / samples
            with _gradients_kept(run) if batch is not group[-1].batch else nullcontext():
                with autocast(run):
                    loss, figures = run.task.step(run.trained, batch)
                if run.device.type == "cpu" and not math.isfinite(loss.item()):
                    raise _diverged(run, batch, loss.item(), this_step)
                scaled = state.scaler.scale(loss * (share * run.ranks.size))  # the gradients' mean over ranks is taken
                scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            shown = {name: shown.get(name, 0) + value * share for name, value in figures.items()}
    if traced and state.step == 0:
        yield trace.read(0, run.layers, run.ranks, traced_share)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    _descend(state, training.clip_norm)
    state.step = this_step
    if traced and trace.is_due(this_step, run.spec.trace.every_steps, run.last_step):
        yield trace.read(this_step, run.layers, run.ranks, traced_share)
    log.add(samples, learning_rate, shown)


def _gradients_kept(run: Run) -> Any:
    """Within, gradients only add up in each rank: they are shared with the last batch of a step."""
    return run.trained.no_sync() if isinstance(run.trained, DistributedDataParallel) else nullcontext()


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
        table = self.run.ranks.total(torch.stack([torch.stack(column) for column in self.figures.values()])).tolist()
        values = {f"train/{name}": column for name, column in zip(self.figures, table, strict=True)}
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


def _until_stopped(run: Run, batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
    """This rank's batches; it stops when any of the ranks is asked to, at the same batch as all."""
    while True:
        item = next(batches, None)
        stopping, more = run.ranks.agree(run.stop_requested(), item is not None)
        if not more:
            return
        if stopping:
            raise Stopped
        if item is not None:
            run.pulse.beat()
            yield item[0], to_device(item[1], run.device, dtype_of(run.spec.training))


def _save(run: Run, kind: str, *, must: bool) -> Iterator[Event]:
    """Write a checkpoint and thin out the older ones. A full disk is a warning unless this one must be saved.

    All ranks come here; the first writes, with the random generators of all.
    """
    state, keep = run.state, run.spec.checkpoints
    generators = run.ranks.gather(as_json(random_state())) if run.ranks.size > 1 else [None]
    if not run.ranks.is_first:
        run.saved_at = time.monotonic()
        return
    judged = state.evaluated == state.epoch and state.batch == 0
    metrics = (state.metrics or {}) if judged else {}
    try:
        try:
            saved = _write(run, kind, metrics, generators[1:])
        except DiskFull:
            _thin_out(run, keep_best=min(1, keep.keep_best), keep_latest=1)
            saved = _write(run, kind, metrics, generators[1:])
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


def _write(run: Run, kind: str, metrics: dict[str, float], random_of_others: Sequence[Any]) -> checkpoint.Saved:
    state = run.state
    return checkpoint.save(
        run.checkpoints,
        epoch=state.epoch,
        step=state.step,
        kind=kind,
        metrics=metrics,
        weights=state.weights(),
        state=state.tree(random_of_others),
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
