"""What training, evaluation, predictions and plans ask of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from acmix.datasets._contract import Dataset, ImageFacts
from acmix.spec import FlatChoice
from acmix.tasks._named import Named, Shown

Batch = tuple[Any, Any]  # images and their targets, of one tensor or a list of tensors or dictionaries of them


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a split. `metrics` by name without the split's prefix; rows of the matrix are the truth."""

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion_matrix: list[list[int]] | None
    samples: int
    examples: Sequence[Mapping[str, Any]] = ()  # the most confidently wrong first: `index` of the split, `confidence`


class Tally(Protocol):
    """An evaluation under way, of a split or of a part of it. Several of one split become one evaluation, in which
    each sample counts once and which is the same to the last bit, however the samples were shared out."""

    def add(self, model: nn.Module, batch: Batch, first: int) -> None:
        """Judge a model, in evaluation mode, by a batch whose first sample has that index of its split."""
        ...

    def told(self) -> dict[str, Any]:
        """All that was added, as JSON values."""
        ...

    def take(self, told: Mapping[str, Any]) -> None:
        """What a tally of other samples of the same split told."""
        ...

    def evaluation(self) -> Evaluation:
        """Over all that was added and taken, at least one sample."""
        ...


class Transform(Protocol):
    """From a data set's samples to a batch; what loader workers run."""

    def collate(self, samples: Sequence[tuple[Tensor, Any]], seeds: Sequence[int]) -> Batch:
        """A batch of samples, every random number from the seed that comes with its sample."""
        ...


class Task(Protocol):
    """A class with a `name` in acmix/tasks. Constructed with (classes, label_smoothing, *, options).

    The first of `metrics` is what `best` is chosen by unless the spec names another; of those whose name ends
    in "loss" the smallest is best, of all others the largest.
    """

    classes: Sequence[str]
    name: ClassVar[str]
    metrics: ClassVar[Sequence[str]]
    label_smoothing: ClassVar[float | None]  # what `auto` stands for; None where there is none
    masks_for: ClassVar[Mapping[str, Sequence[str]]]  # by option the values that need a data set with masks
    mixes: ClassVar[bool]  # whether images can be mixed by mixup and cutmix

    @property
    def num_outputs(self) -> int | None:
        """Classes of the backbone's own classifier; None where the task stands on its feature maps."""
        ...

    def model(self, backbone: nn.Module, image_px: int) -> nn.Module:
        """The backbone with what the task puts on it, drawn from torch's global generator."""
        ...

    def transforms(self, dataset: Dataset, augment: FlatChoice) -> tuple[Transform, Transform]:
        """For training and for evaluation; NameNotFound and OptionInvalid say what there is."""
        ...

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and what a training step shows: 0-d tensors, left on the device."""
        ...

    def made_up(self, images: int, image_px: int, *, mixed: bool) -> Batch:
        """A batch in the shapes of a training one, its numbers of no meaning; `mixed` as mixup makes it."""
        ...

    def rehearse(self, model: nn.Module, batch: Batch) -> Tensor:
        """A loss of made-up images by what a training step computes, in shapes that no number decides: for plans."""
        ...

    def tally(self) -> Tally:
        """An evaluation that is to begin."""
        ...

    def predict(self, model: nn.Module, shown: Shown, images: ImageFacts, *, min_score: float) -> Named:
        """What a model in evaluation mode names in one image, made like those that it was trained on."""
        ...


def floating(logits: Tensor) -> Tensor:
    """In float32 at least: the halves are too coarse for a loss, and float64 stays what it is."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether `value`, come later, beats `than` on this metric. Of equals the later is better: it trained longer."""
    if than is None:
        return True
    return value <= than if metric.endswith("loss") else value >= than
