"""Classification: one label an image."""

# Shapes: B batch, C classes

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.datasets._contract import Dataset, ImageFacts
from acmix.spec import FlatChoice
from acmix.tasks._contract import Batch, Evaluation, Transform, floating
from acmix.tasks._examples import Examples
from acmix.tasks._named import Named, Shown

MOST_NAMED = 5


class Classification:
    """One label an image: cross-entropy, accuracy, per-class recall and precision, confusion matrix."""

    name: ClassVar[str] = "classification"
    label_smoothing = 0.1
    mixes = True
    masks_for: ClassVar[Mapping[str, Sequence[str]]] = {}
    metrics: ClassVar[Sequence[str]] = ("accuracy", "top5_accuracy", "loss")

    def __init__(self, classes: Sequence[str], label_smoothing: float) -> None:
        self.classes = list(classes)
        self.smoothing = label_smoothing

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def model(self, backbone: nn.Module, image_px: int) -> nn.Module:  # noqa: ARG002  # the contract's
        """The backbone itself."""
        return backbone

    def transforms(self, dataset: Dataset, augment: FlatChoice) -> tuple[Transform, Transform]:
        from acmix.training.augment import evaluation_transform, training_transform

        return training_transform(dataset, augment), evaluation_transform(dataset)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend and what a training step shows: 0-d tensors, left on the device.

        Labels may be shares of the classes, (B, C), as mixed images have; the largest then counts for the accuracy.
        """
        images, labels = batch
        logits_BC = floating(model(images))
        loss = F.cross_entropy(logits_BC, labels, label_smoothing=self.smoothing)
        labels_B = labels if labels.ndim == 1 else labels.argmax(dim=1)
        accuracy = (logits_BC.detach().argmax(dim=1) == labels_B).to(logits_BC.dtype).mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    def made_up(self, images: int, image_px: int, *, mixed: bool) -> Batch:
        labels = torch.empty(images, len(self.classes)) if mixed else torch.empty(images, dtype=torch.int64)
        return torch.empty(images, 3, image_px, image_px), labels

    def rehearse(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.step(model, batch)[0]

    def tally(self) -> "ClassificationTally":
        return ClassificationTally(self.classes)

    def predict(self, model: nn.Module, shown: Shown, images: ImageFacts, *, min_score: float) -> Named:  # noqa: ARG002  # of objects
        """The five most probable classes."""
        from acmix.training.augment import prediction_transform

        image_3HW = prediction_transform(images)(shown.image)
        best = model(image_3HW[None]).float().softmax(dim=1)[0].topk(min(MOST_NAMED, len(self.classes)))
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        said = [{"class": self.classes[label], "probability": probability} for label, probability in pairs]
        legend = [(label, f"{self.classes[label]} {probability:.2f}") for label, probability in pairs]
        return Named({"classes": said}, pairs[0][0], legend=legend)


class ClassificationTally:
    """Metrics over every sample once. The loss is plain cross-entropy, whatever the label smoothing."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._confusion_CC = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self._losses: list[float] = []  # sums of batches: an exact sum of them depends on no order
        self._top5_hits = 0
        self._samples = 0
        self._examples = Examples()

    def add(self, model: nn.Module, batch: Batch, first: int) -> None:
        images, labels_B = batch
        count = len(self.classes)
        logits_BC = floating(model(images))
        pairs_B = labels_B * count + logits_BC.argmax(dim=1)
        counts_CC = torch.bincount(pairs_B, minlength=count * count).reshape(count, count)
        self._confusion_CC = self._confusion_CC.to(counts_CC.device) + counts_CC
        self._top5_hits += int((logits_BC.topk(min(5, count)).indices == labels_B[:, None]).sum())
        self._losses.append(float(F.cross_entropy(logits_BC, labels_B, reduction="sum")))
        self._samples += len(labels_B)
        self._note_wrong(first, logits_BC, labels_B)

    def told(self) -> dict[str, Any]:
        return {
            "confusion": self._confusion_CC.tolist(),
            "losses": self._losses,
            "top5_hits": self._top5_hits,
            "samples": self._samples,
            "examples": self._examples.told(),
        }

    def take(self, told: Mapping[str, Any]) -> None:
        self._confusion_CC = self._confusion_CC + self._confusion_CC.new_tensor(told["confusion"])
        self._losses += told["losses"]
        self._top5_hits += told["top5_hits"]
        self._samples += told["samples"]
        self._examples.take(told["examples"])

    def evaluation(self) -> Evaluation:
        confusion_CC, samples = self._confusion_CC, self._samples
        metrics = {
            "accuracy": float(confusion_CC.diagonal().sum()) / samples,
            "top5_accuracy": self._top5_hits / samples,
            "loss": math.fsum(self._losses) / samples,
        }
        wrong = self._examples.most_confident_first()
        return Evaluation(metrics, self._per_class(confusion_CC), confusion_CC.tolist(), samples, wrong)

    def _note_wrong(self, first: int, logits_BC: Tensor, labels_B: Tensor) -> None:
        confidence_B, named_B = logits_BC.softmax(dim=1).max(dim=1)
        for place in (named_B != labels_B).nonzero()[:, 0].tolist():
            named, true = self.classes[int(named_B[place])], self.classes[int(labels_B[place])]
            self._examples.add(first + place, float(confidence_B[place]), named=named, true=true)

    def _per_class(self, confusion_CC: Tensor) -> list[dict[str, Any]]:
        """Recall and precision of each class; null where there is nothing to divide by. Rows are the truth."""
        hits_C, true_C, named_C = confusion_CC.diagonal(), confusion_CC.sum(dim=1), confusion_CC.sum(dim=0)
        return [
            {
                "class": name,
                "samples": int(true),
                "recall": float(hits / true) if true else None,
                "precision": float(hits / named) if named else None,
            }
            for name, hits, true, named in zip(self.classes, hits_C, true_C, named_C, strict=True)
        ]
