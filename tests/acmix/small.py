"""A run that takes a second: a narrow ResNet of four swapped blocks on a few batches of digits."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from acmix import spec
from acmix.datasets import digits
from acmix.events import Event
from acmix.spec import JobSpec
from acmix.tasks._contract import Batch, Evaluation, Task
from acmix.training.run import run


def small_spec(
    *, options: dict[str, Any] | None = None, checkpoints: dict[str, Any] | None = None, **training: Any
) -> JobSpec:
    defaults = {"epochs": 2, "batch_size": 32, "limit_train_batches": 4, "optimizer": {"name": "sgd", "lr": 0.05}}
    return spec.parse(
        {
            "backbone": {
                "name": "resnet",
                "options": {"depths": [1, 1, 1, 1], "stem": "small", "width": 0.125, **(options or {})},
            },
            "swaps": [{"layers": "*"}],
            "dataset": {"name": "digits"},
            "training": {**defaults, **training},
            "trace": {"every_steps": 3},
            "checkpoints": checkpoints or {},
        }
    )


def evaluated(task: Task, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """What a task makes of all these batches."""
    tally, first = task.tally(), 0
    for batch in batches:
        tally.add(model, batch, first)
        first += len(batch[0])
    return tally.evaluation()


@contextmanager
def few_digits_judged(samples: int) -> Iterator[None]:
    """So many in val and in test: judging all 540 takes longer than training eight steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "VAL_SAMPLES", samples)
        patch.setattr(digits, "TEST_SAMPLES", samples)
        yield


def run_all(job: JobSpec, folder: Path) -> list[Event]:
    return list(run(job, folder))


def points(events: Sequence[Event]) -> dict[tuple[str, int], float]:
    """Every metric by name and step."""
    return {
        (name, step): value
        for event in events
        if event.type == "metrics"
        for name, column in event.data["values"].items()
        for step, value in zip(event.data["step"], column, strict=True)
    }


def of_type(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event.type == kind]
