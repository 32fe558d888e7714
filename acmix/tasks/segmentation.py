"""Segmentation: a class for every pixel."""

# Shapes: B batch, O classes, H W image

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from acmix.datasets._contract import IGNORED, Dataset, ImageFacts
from acmix.spec import FlatChoice
from acmix.tasks._contract import Batch, Evaluation, Transform, floating
from acmix.tasks._examples import Examples
from acmix.tasks._named import Named, Shown, runs_of

PUBLISHED_CHANNELS = {"semantic_fpn": 256, "upernet": 512}
AUXILIARY_SHARE = 0.4  # of the auxiliary head's loss
CLASSES_AT_A_TIME = 8
MOST_IN_LEGEND = 12
STRIDE_SHARE = 2 / 3  # of a window, between the windows of sliding evaluation


class Segmentation:
    """A class for every pixel: mean intersection over union, mean and overall accuracy, by class, confusion matrix.

    Trained on crops of the data set's `image_px`. Judged on whole images, or by sliding a window of that side over
    them; in the pixels of the data set's label maps, without those that are to be ignored.
    """

    name: ClassVar[str] = "segmentation"
    label_smoothing = 0.0
    mixes = False
    masks_for: ClassVar[Mapping[str, Sequence[str]]] = {}
    metrics: ClassVar[Sequence[str]] = ("miou", "macc", "aacc", "loss")

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float,
        *,
        head: Literal["semantic_fpn", "upernet"] = "semantic_fpn",
        channels: Annotated[
            int | None, Field(ge=8, le=1024, description="of the decoder; null: 256 of semantic_fpn, 512 of upernet")
        ] = None,
        auxiliary: Annotated[
            bool, Field(description="a second head on the map before the coarsest, to train by")
        ] = False,
        evaluation: Annotated[
            Literal["whole", "slide"], Field(description="whole images, or windows of the crop's side over them")
        ] = "whole",
    ) -> None:
        self.classes = list(classes)
        self.smoothing = label_smoothing
        self.head = head
        self.channels = channels or PUBLISHED_CHANNELS[head]
        self.auxiliary = auxiliary
        self.evaluation = evaluation
        self.window_px = 0

    @property
    def num_outputs(self) -> None:
        return None

    def model(self, backbone: nn.Module, image_px: int) -> nn.Module:
        """The decoder around the backbone."""
        from acmix.heads.segmenter import Segmenter, decoder

        self.window_px = image_px
        built: Any = backbone
        made = decoder(self.head, built.feature_channels, len(self.classes), channels=self.channels)
        return Segmenter(built, made, len(self.classes), auxiliary=self.auxiliary)

    def transforms(self, dataset: Dataset, augment: FlatChoice) -> tuple[Transform, Transform]:
        from acmix.training import augments
        from acmix.training.dense_augment import fitted
        from acmix.training.scenes import SegmentationTransform

        steps = augments.steps(dataset, augment)
        training = SegmentationTransform(steps, dataset.mean, dataset.std, stacked=True)
        return training, SegmentationTransform(fitted(dataset), dataset.mean, dataset.std)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over the pixels that are not ignored, the auxiliary head's with a share; and the accuracy."""
        images, labels = batch
        labels_BHW = labels.long()
        first_BOHW, *others = (floating(each) for each in model(images))
        loss = self._loss(first_BOHW, labels_BHW)
        figures = {"loss": loss.detach(), "accuracy": _accuracy(first_BOHW.detach(), labels_BHW)}
        for logits_BOHW in others:
            auxiliary = self._loss(logits_BOHW, labels_BHW)
            figures["loss_auxiliary"] = auxiliary.detach()
            loss = loss + AUXILIARY_SHARE * auxiliary
        return loss, figures

    def made_up(self, images: int, image_px: int, *, mixed: bool) -> Batch:  # noqa: ARG002  # nothing is mixed
        labels_BHW = torch.empty(images, image_px, image_px, dtype=torch.uint8)
        return torch.empty(images, 3, image_px, image_px), labels_BHW

    def rehearse(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.step(model, batch)[0]

    def tally(self) -> "SegmentationTally":
        return SegmentationTally(self)

    def predict(self, model: nn.Module, shown: Shown, images: ImageFacts, *, min_score: float) -> Named:  # noqa: ARG002  # of objects
        """The classes that are there, those of the most pixels first, each with its mask."""
        from acmix.training.dense_augment import fitting
        from acmix.training.scenes import normalized

        image_3HW = normalized(fitting(images.image_px)(shown.image), images.mean, images.std)
        size = shown.image.shape[-2:]
        map_HW = _most_likely(self.logits(model, image_3HW[None], image_3HW.shape[-2:]), size)
        counts = torch.bincount(map_HW.flatten(), minlength=len(self.classes))
        shares = [(label, int(counts[label]) / map_HW.numel()) for label in counts.argsort(descending=True).tolist()]
        there = [(label, share) for label, share in shares if share]
        said = [
            {"class": self.classes[label], "share": share, "mask": runs_of(map_HW == label, shown.size)}
            for label, share in there
        ]
        legend = [(label, f"{self.classes[label]} {share:.0%}") for label, share in there[:MOST_IN_LEGEND]]
        return Named({"classes": said}, map_HW, legend=legend)

    def _loss(self, logits_BOHW: Tensor, labels_BHW: Tensor) -> Tensor:
        """0 where every pixel is ignored: the mean of none would not be a number."""
        total = F.cross_entropy(
            logits_BOHW, labels_BHW, ignore_index=IGNORED, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / (labels_BHW != IGNORED).sum().clamp(min=1)

    def logits(self, model: nn.Module, images_B3HW: Tensor, size: Sequence[int]) -> Tensor:
        """What a model in evaluation mode says of every pixel, at the size of the label maps, (B, O, H, W)."""
        if self.evaluation == "slide":
            logits_BOHW = slid(model, images_B3HW, self.window_px)
        else:
            logits_BOHW = floating(model(images_B3HW)[0])
        if logits_BOHW.shape[-2:] != tuple(size):
            logits_BOHW = F.interpolate(logits_BOHW, size=list(size), mode="bilinear")
        return logits_BOHW


class SegmentationTally:
    """Metrics over every pixel once; of the mean ones, over the classes that are there or were named."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        count = len(task.classes)
        self._confusion_OO = torch.zeros(count, count, dtype=torch.int64)
        self._losses: list[float] = []  # sums of batches: an exact sum of them depends on no order
        self._samples = 0
        self._examples = Examples()

    def add(self, model: nn.Module, batch: Batch, first: int) -> None:
        for stacked, labels_BHW in _alike(*batch):
            logits_BOHW = self._task.logits(model, stacked, labels_BHW.shape[-2:])
            named_BHW = logits_BOHW.argmax(dim=1)
            self._confusion_OO += _confusion(named_BHW, labels_BHW, len(self._task.classes)).cpu()
            loss = F.cross_entropy(logits_BOHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
            self._losses.append(float(loss))
            self._note_wrong(first, logits_BOHW, labels_BHW)
            self._samples += len(stacked)
            first += len(stacked)

    def told(self) -> dict[str, Any]:
        return {
            "confusion": self._confusion_OO.tolist(),
            "losses": self._losses,
            "samples": self._samples,
            "examples": self._examples.told(),
        }

    def take(self, told: Mapping[str, Any]) -> None:
        self._confusion_OO += torch.tensor(told["confusion"])
        self._losses += told["losses"]
        self._samples += told["samples"]
        self._examples.take(told["examples"])

    def evaluation(self) -> Evaluation:
        loss_sum = math.fsum(self._losses)
        return _evaluation(self._task.classes, self._confusion_OO, loss_sum, self._samples, self._examples)

    def _note_wrong(self, first: int, logits_BOHW: Tensor, labels_BHW: Tensor) -> None:
        """Images by how confident the model is, on the mean, of the pixels that it names wrongly."""
        confidence_BHW, named_BHW = logits_BOHW.softmax(dim=1).max(dim=1)
        wrong_BHW = (named_BHW != labels_BHW) & (labels_BHW != IGNORED)
        counts_B = wrong_BHW.sum((1, 2))
        mean_B = (confidence_BHW * wrong_BHW).sum((1, 2)) / counts_B.clamp(min=1)
        for place in counts_B.nonzero()[:, 0].tolist():
            share = float(wrong_BHW[place].float().mean())
            self._examples.add(first + place, float(mean_B[place]), wrong_share=share)


def slid(model: nn.Module, images_B3HW: Tensor, window_px: int) -> Tensor:
    """Logits of images from windows of that side, the mean where they overlap, (B, O, H, W)."""
    batch, _, height, width = images_B3HW.shape
    stride = max(1, round(window_px * STRIDE_SHARE))
    total: Tensor | None = None
    counts = images_B3HW.new_zeros(1, 1, height, width)
    for top in _starts(height, window_px, stride):
        for left in _starts(width, window_px, stride):
            part = (..., slice(top, top + window_px), slice(left, left + window_px))
            logits = floating(model(images_B3HW[part])[0])
            total = logits.new_zeros(batch, logits.shape[1], height, width) if total is None else total
            total[part] += logits
            counts[part] += 1
    assert total is not None
    return total / counts


def _most_likely(logits_1OHW: Tensor, size: Sequence[int]) -> Tensor:
    """The classes with the largest logits at another size, uint8 (H, W); some classes at a time, to spare memory."""
    scaled = (
        F.interpolate(part, size=list(size), mode="bilinear") for part in torch.split(logits_1OHW, CLASSES_AT_A_TIME, 1)
    )
    largest, map_HW = next(scaled)[0].max(dim=0)
    for number, part_1OHW in enumerate(scaled, start=1):
        larger, named = part_1OHW[0].max(dim=0)
        map_HW = torch.where(larger > largest, named + number * CLASSES_AT_A_TIME, map_HW)
        largest = torch.maximum(larger, largest)
    return map_HW.byte()


def _starts(side: int, window_px: int, stride: int) -> list[int]:
    """Where windows begin along a side: the last one ends with it."""
    last = max(0, side - window_px)
    return sorted({*range(0, last, stride), last})


def _accuracy(logits_BOHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Of the pixels that are not ignored, those whose own class has the largest logit; an argmax takes far longer."""
    counted_BHW = labels_BHW != IGNORED
    own_BHW = logits_BOHW.gather(1, (labels_BHW * counted_BHW)[:, None])[:, 0]
    hits = ((own_BHW >= logits_BOHW.amax(dim=1)) & counted_BHW).sum()
    return hits / counted_BHW.sum().clamp(min=1)


def _alike(images: Sequence[Tensor], labels: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of a batch, (B, 3, H, W), with their labels, int64 (B, H, W): all at once where all are of a size."""
    if len({(each.shape, of.shape) for each, of in zip(images, labels, strict=True)}) == 1:
        yield torch.stack(list(images)), torch.stack(list(labels)).long()
        return
    for image_3HW, labels_HW in zip(images, labels, strict=True):
        yield image_3HW[None], labels_HW[None].long()


def _confusion(named: Tensor, labels: Tensor, count: int) -> Tensor:
    """Pixels by true and by named class, (O, O)."""
    counted = labels != IGNORED
    pairs = labels[counted] * count + named[counted]
    return torch.bincount(pairs, minlength=count * count).reshape(count, count)


def _evaluation(
    classes: Sequence[str], confusion_OO: Tensor, loss_sum: float, samples: int, examples: Examples
) -> Evaluation:
    hits_O, true_O, named_O = confusion_OO.diagonal(), confusion_OO.sum(dim=1), confusion_OO.sum(dim=0)
    either_O = true_O + named_O - hits_O
    pixels = max(1, int(true_O.sum()))
    per_class: list[dict[str, Any]] = [
        {
            "class": name,
            "pixels": int(true),
            "iou": float(hits / either) if either else None,
            "accuracy": float(hits / true) if true else None,
        }
        for name, hits, true, either in zip(classes, hits_O, true_O, either_O, strict=True)
    ]
    metrics = {
        "miou": _mean([row["iou"] for row in per_class]),
        "macc": _mean([row["accuracy"] for row in per_class]),
        "aacc": float(hits_O.sum()) / pixels,
        "loss": loss_sum / pixels,
    }
    return Evaluation(metrics, per_class, confusion_OO.tolist(), samples, examples.most_confident_first())


def _mean(values: Sequence[float | None]) -> float:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else 0.0
