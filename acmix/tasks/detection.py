"""Detection: boxes of objects, and their masks where the head makes them."""

# Shapes: N objects of an image, H W image

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from acmix.datasets._contract import Dataset, ImageFacts
from acmix.errors import OptionInvalid
from acmix.spec import FlatChoice
from acmix.tasks._coco import FIGURES, CocoScore
from acmix.tasks._contract import Batch, Evaluation, Transform
from acmix.tasks._examples import Examples
from acmix.tasks._named import Named, Shown, runs_of

LEAST_OVERLAP = 0.5  # with an object of its class, for a box not to be wrong
Channels = Annotated[int, Field(ge=8, le=1024, description="of the pyramid network and, in proportion, of the head")]


class Detection:
    """Boxes of objects, and their masks with a head that makes them; judged as COCO does.

    The backbone is a feature pyramid (strides 4 to 32) under torchvision's RetinaNet or Mask R-CNN, or under a
    cascade of three box and mask stages. Crowds are not trained on, and forgiving when judged.
    """

    name: ClassVar[str] = "detection"
    label_smoothing = None
    mixes = False
    masks_for: ClassVar[Mapping[str, Sequence[str]]] = {"head": ("mask_rcnn", "cascade_mask_rcnn")}
    metrics: ClassVar[Sequence[str]] = tuple(f"{kind}_{figure}" for kind in ("box", "mask") for figure in FIGURES)

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float,  # noqa: ARG002  # the contract's; there is none in detection
        *,
        head: Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"] = "retinanet",
        channels: Channels = 256,
        proposals: Annotated[
            int, Field(ge=10, le=10_000, description="regions an image that the first of two stages proposes")
        ] = 1000,
        regions: Annotated[int, Field(ge=8, le=4096, description="of them, those that are trained on")] = 512,
        anchor_scale: Annotated[
            float,
            Field(
                ge=0.1, le=10, description="of anchors, whose sides are 32 to 512 pixels at 1 and strides of 4 to 32"
            ),
        ] = 1.0,
        box_convolutions: Annotated[
            bool, Field(description="four convolutions before the last linear of the cascade's boxes, as Swin's has")
        ] = False,
        frozen_norm: Annotated[
            bool, Field(description="batch norms of the backbone stay as they start: for small batches and weights")
        ] = False,
    ) -> None:
        self.classes = list(classes)
        self.head = head
        self.channels = channels
        self.proposals = proposals
        self.regions = regions
        self.anchor_scale = anchor_scale
        self.box_convolutions = box_convolutions
        self.frozen_norm = frozen_norm

    @property
    def num_outputs(self) -> None:
        return None

    @property
    def has_masks(self) -> bool:
        """Whether the head makes masks."""
        return self.head in self.masks_for["head"]

    def model(self, backbone: nn.Module, image_px: int) -> nn.Module:
        """torchvision's detector around the backbone."""
        from acmix.heads.detectors import detector, freeze_norms

        if self.frozen_norm:
            backbone = freeze_norms(backbone)
        return detector(
            self.head,
            backbone,
            len(self.classes),
            image_px,
            channels=self.channels,
            proposals=self.proposals,
            regions=self.regions,
            anchor_scale=self.anchor_scale,
            box_convolutions=self.box_convolutions,
        )

    def transforms(self, dataset: Dataset, augment: FlatChoice) -> tuple[Transform, Transform]:
        from acmix.training import augments
        from acmix.training.scenes import DetectionTransform

        if self.has_masks and not dataset.has_masks:
            raise OptionInvalid(f"head={self.head} needs masks, and {dataset.name} has none here; retinanet would do")
        steps = augments.steps(dataset, augment)
        return DetectionTransform(steps, dataset.mean, dataset.std), DetectionTransform((), dataset.mean, dataset.std)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the head's losses, and each of them."""
        images, targets = batch
        losses: dict[str, Tensor] = model(images, [self._learned(target) for target in targets])
        loss = torch.stack(list(losses.values())).sum()
        return loss, {"loss": loss.detach(), **{name: each.detach() for name, each in losses.items()}}

    def made_up(self, images: int, image_px: int, *, mixed: bool) -> Batch:  # noqa: ARG002  # nothing is mixed
        """Square images, and no targets: what is learned of them is made up by `rehearse`."""
        return torch.empty(images, 3, image_px, image_px), []

    def rehearse(self, model: nn.Module, batch: Batch) -> Tensor:
        """As if every image had as many regions as are trained on, a quarter of them on objects."""
        from acmix.heads.rehearsal import of_anchors, of_regions

        images_B3HW, _ = batch
        return of_regions(model, images_B3HW, self.regions) if self.has_masks else of_anchors(model, images_B3HW)

    def tally(self) -> "DetectionTally":
        return DetectionTally(self)

    def predict(self, model: nn.Module, shown: Shown, images: ImageFacts, *, min_score: float) -> Named:
        """Objects of at least that score, the most confident first; boxes are left, top, right and bottom."""
        from acmix.training.scenes import normalized

        [found] = model([normalized(shown.image, images.mean, images.std)])
        named = self.named(found)
        order_N = named["scores"].argsort(descending=True)
        kept_N = order_N[named["scores"][order_N] >= min_score]
        target = {name: each[kept_N] for name, each in named.items()}
        boxes = target["boxes"].float() * torch.tensor([*shown.scale, *shown.scale])
        columns = zip(target["labels"].tolist(), target["scores"].tolist(), boxes.tolist(), strict=True)
        said: list[dict[str, Any]] = [
            {"class": self.classes[label], "score": score, "box": box} for label, score, box in columns
        ]
        for each, mask_HW in zip(said, target.get("masks", ()), strict=False):
            each["mask"] = runs_of(mask_HW, shown.size)
        on_top_last = {name: each.flip(0) for name, each in target.items()}
        return Named(
            {"objects": said}, on_top_last, texts=[f"{each['class']} {each['score']:.2f}" for each in reversed(said)]
        )

    def named(self, found: dict[str, Tensor]) -> dict[str, Any]:
        """A detection with classes by index and masks of 0 and 1, (N, H, W)."""
        named: dict[str, Any] = {**found, "labels": found["labels"] - self._first_label}
        if self.has_masks:
            named["masks"] = found["masks"][:, 0] >= 0.5
        return named

    @property
    def _first_label(self) -> int:
        """In the two-stage heads, 0 is no object."""
        return 0 if self.head == "retinanet" else 1

    def _learned(self, target: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the head is to learn of an image: all objects but crowds."""
        single_N = ~target["crowd"]
        learned = {"boxes": target["boxes"][single_N], "labels": target["labels"][single_N] + self._first_label}
        return {**learned, "masks": target["masks"][single_N]} if self.has_masks else learned


class DetectionTally:
    """COCO's average precisions over every image once, in the pixels of the data set's images."""

    def __init__(self, task: Detection) -> None:
        self._task = task
        self._score = CocoScore(task.classes, masks=task.has_masks)
        self._examples = Examples()

    def add(self, model: nn.Module, batch: Batch, first: int) -> None:
        images, targets = batch
        for index, (found, target) in enumerate(zip(model(images), targets, strict=True), start=first):
            named = self._task.named(found)
            self._note_wrong(index, named, target)
            self._score.add(index, named, target)

    def told(self) -> dict[str, Any]:
        return {"score": self._score.told(), "examples": self._examples.told()}

    def take(self, told: Mapping[str, Any]) -> None:
        self._score.take(told["score"])
        self._examples.take(told["examples"])

    def evaluation(self) -> Evaluation:
        return self._score.evaluation(self._examples.most_confident_first())

    def _note_wrong(self, index: int, found: dict[str, Any], target: dict[str, Tensor]) -> None:
        """Boxes of an image that meet no object of their class by half."""
        from torchvision.ops import box_iou

        if not len(found["boxes"]):
            return
        overlap_NM = box_iou(found["boxes"].float(), target["boxes"])
        overlap_NM = overlap_NM * (found["labels"][:, None] == target["labels"][None])
        most_N = overlap_NM.amax(dim=1) if overlap_NM.shape[1] else overlap_NM.new_zeros(len(overlap_NM))
        columns = (found["labels"], found["scores"], found["boxes"], most_N)
        for label, score, box, overlap in zip(*(column.tolist() for column in columns), strict=True):
            if overlap < LEAST_OVERLAP:
                self._examples.add(index, score, named=self._task.classes[label], overlap=overlap, box=box)
