"""What the training loop asks of a task."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a split. `metrics` by name without the split's prefix; rows of the matrix are the truth."""

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion_matrix: list[list[int]] | None
    samples: int


class Task(Protocol):
    """A class with a `name` in acmix/tasks. Constructed with (classes, label_smoothing, *, options).

    The first of `metrics` is what `best` is chosen by unless the spec names another; of those whose name ends
    in "loss" the smallest is best, of all others the largest.
    """

    name: ClassVar[str]
    metrics: ClassVar[Sequence[str]]

    @property
    def num_outputs(self) -> int: ...

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation: ...


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether `value`, come later, beats `than` on this metric. Of equals the later is better: it trained longer."""
    if than is None:
        return True
    return value <= than if metric.endswith("loss") else value >= than
