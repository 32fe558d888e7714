"""Cascade Mask R-CNN: three box and mask stages, each trained on the boxes of the one before, on torchvision's parts.

Source: "Cascade R-CNN: Delving into High Quality Object Detection", Cai and Vasconcelos, CVPR 2018, and the extended
"Cascade R-CNN: High Quality Object Detection and Instance Segmentation", TPAMI 2019: stages at an overlap of 0.5, 0.6
and 0.7, class-agnostic box regression, a mask head a stage, scores and masks averaged over the stages.
"""

# Shapes: R regions of all images, K classes with none, B images

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import boxes as box_ops

from acmix.backbones._pyramid import FeaturePyramid
from acmix.heads.mask_rcnn import (
    BOX_SIDE,
    HIDDEN_OF_CHANNELS,
    MASK_CONVOLUTIONS,
    MASK_SIDE,
    MaskRCNN,
    pooled,
)

OVERLAPS = (0.5, 0.6, 0.7)
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
FOUR_CONVOLUTIONS = 4

Targets = list[dict[str, Tensor]]
Sizes = list[tuple[int, int]]


class CascadeMaskRCNN(MaskRCNN):
    """A Mask R-CNN whose regions go through three stages."""

    def __init__(
        self,
        body: FeaturePyramid,
        num_classes: int,
        image_px: int,
        *,
        channels: int,
        proposals: int,
        regions: int,
        anchor_scale: float,
        four_convolutions: bool,
    ) -> None:
        """`four_convolutions` puts four convolutions and one linear in the place of a box stage's two linears."""
        of_regions = {"channels": channels, "proposals": proposals, "regions": regions}
        super().__init__(body, num_classes, image_px, anchor_scale=anchor_scale, **of_regions)
        single: Any = self.roi_heads
        stages = (
            _stage(single, channels, num_classes + 1, regions, index, four_convolutions=four_convolutions)
            for index in range(len(OVERLAPS))
        )
        self.roi_heads: nn.Module = CascadeRoIHeads(stages)


class ClassAgnosticPredictor(nn.Module):
    """Scores of every class, and one box for all of them, given out once a class as RoIHeads wants it."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, K) and (R, 4K)."""
        return self.cls_score(x), self.bbox_pred(x).repeat(1, self.num_classes)


class CascadeRoIHeads(nn.Module):
    """In the place of torchvision's RoIHeads: several, one after the other."""

    def __init__(self, stages: Iterable[RoIHeads]) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(stages)  # torchvision ships no types

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections an image, none while training; and losses, none while judging."""
        if self.training:
            assert targets is not None, "training takes targets"
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (stage, weight) in enumerate(zip(self.stages, LOSS_WEIGHTS, strict=True), start=1):
            sampled, matched, labels, wanted = stage.select_training_samples(list(proposals), targets)
            logits_RK, regression = _boxes(stage, features, sampled, image_shapes)
            classified, regressed = fastrcnn_loss(logits_RK, regression, labels, wanted)
            masked = _mask_loss(stage, features, sampled, matched, labels, image_shapes, targets)
            parts = {"classifier": classified, "box_reg": regressed, "mask": masked}
            losses |= {f"loss_{name}_{number}": weight * loss for name, loss in parts.items()}
            proposals = refined(stage, regression, sampled, image_shapes)
        return losses

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes
    ) -> list[dict[str, Tensor]]:
        logits, regression = [], proposals[0].new_empty(0)
        for number, stage in enumerate(self.stages):
            if number:
                proposals = refined(self.stages[number - 1], regression, proposals, image_shapes)
            logits_RK, regression = _boxes(stage, features, proposals, image_shapes)
            logits.append(logits_RK)
        last = self.stages[-1]
        mean_RK = torch.stack(logits).mean(dim=0)
        found = last.postprocess_detections(mean_RK, regression, proposals, image_shapes)
        detections = [
            {"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*found, strict=True)
        ]
        for detection, masks in zip(detections, self._masks(features, detections, image_shapes), strict=True):
            detection["masks"] = masks
        return detections

    def _masks(
        self, features: dict[str, Tensor], detections: Sequence[dict[str, Tensor]], image_shapes: Sizes
    ) -> Sequence[Tensor]:
        """Of every image, the mean of what the stages say of each box."""
        boxes = [detection["boxes"] for detection in detections]
        labels = [detection["labels"] for detection in detections]
        by_stage = []
        for stage in self.stages:
            pooled_features = stage.mask_roi_pool(features, boxes, image_shapes)
            by_stage.append(maskrcnn_inference(stage.mask_predictor(stage.mask_head(pooled_features)), labels))
        return [torch.stack(of_image).mean(dim=0) for of_image in zip(*by_stage, strict=True)]


def refined(stage: RoIHeads, regression: Tensor, proposals: list[Tensor], image_shapes: Sizes) -> list[Tensor]:
    """The proposals moved as a stage says, within their images; nothing is learned through them."""
    moved = stage.box_coder.decode(regression[:, :4].detach(), proposals)[:, 0]
    by_image = moved.split([len(each) for each in proposals])
    return [box_ops.clip_boxes_to_image(boxes, shape) for boxes, shape in zip(by_image, image_shapes, strict=True)]


def _stage(
    like: RoIHeads, channels: int, num_classes: int, regions: int, index: int, *, four_convolutions: bool
) -> RoIHeads:
    """A stage with the thresholds of torchvision's only one, but for the overlap."""
    hidden = HIDDEN_OF_CHANNELS * channels
    return RoIHeads(
        pooled(BOX_SIDE),
        _box_head(channels, hidden, four_convolutions=four_convolutions),
        ClassAgnosticPredictor(hidden, num_classes),
        fg_iou_thresh=OVERLAPS[index],
        bg_iou_thresh=OVERLAPS[index],
        batch_size_per_image=regions,
        positive_fraction=0.25,
        bbox_reg_weights=BOX_WEIGHTS[index],
        score_thresh=like.score_thresh,
        nms_thresh=like.nms_thresh,
        detections_per_img=like.detections_per_img,
        mask_roi_pool=pooled(MASK_SIDE),
        mask_head=MaskRCNNHeads(channels, [channels] * MASK_CONVOLUTIONS, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
    )


def _box_head(channels: int, hidden: int, *, four_convolutions: bool) -> nn.Module:
    size = (channels, BOX_SIDE, BOX_SIDE)
    head: nn.Module
    if four_convolutions:
        head = FastRCNNConvFCHead(size, [channels] * FOUR_CONVOLUTIONS, [hidden], norm_layer=nn.BatchNorm2d)
    else:
        head = TwoMLPHead(channels * BOX_SIDE**2, hidden)
    return head


def _boxes(stage: RoIHeads, features: dict[str, Tensor], regions: list[Tensor], image_shapes: Sizes) -> Any:
    """Class logits (R, K) and box regression (R, 4K) of the regions."""
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, regions, image_shapes)))


def _mask_loss(
    stage: RoIHeads,
    features: dict[str, Tensor],
    regions: list[Tensor],
    matched: list[Tensor],
    labels: list[Tensor],
    image_shapes: Sizes,
    targets: Targets,
) -> Tensor:
    """Of the regions that hold an object."""
    holding = [torch.where(each > 0)[0] for each in labels]
    boxes = [region[held] for region, held in zip(regions, holding, strict=True)]
    objects = [match[held] for match, held in zip(matched, holding, strict=True)]
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, image_shapes)))
    masks, classes = [each["masks"] for each in targets], [each["labels"] for each in targets]
    loss: Tensor = maskrcnn_loss(logits, boxes, masks, classes, objects)
    return loss
