"""A detector's training step in shapes alone: no number decides what is computed, as anchors, overlaps and suppression
decide in a real one. For plans.

Left out is what keeps nothing for the backward pass: matching, sampling and suppression.
"""

# Shapes: B images, R regions of all images, K classes

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align, sigmoid_focal_loss

from acmix.heads.cascade_mask_rcnn import CascadeRoIHeads
from acmix.heads.mask_rcnn import BOX_SIDE, MASK_SIDE

SHARE_ON_OBJECTS = 0.25  # of the regions trained on


def of_anchors(model: Any, images_B3HW: Tensor) -> Tensor:
    """Of a RetinaNet."""
    outputs = model.head(list(model.backbone(images_B3HW).values()))
    logits, regression = outputs["cls_logits"], outputs["bbox_regression"]
    classified = sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")
    loss: Tensor = classified + regression.abs().sum()
    return loss


def of_regions(model: Any, images_B3HW: Tensor, regions: int) -> Tensor:
    """Of a Mask R-CNN or a cascade, with so many regions an image."""
    features: Mapping[str, Tensor] = model.backbone(images_B3HW)
    objectness, moves = model.rpn.head(list(features.values()))
    proposed = sum(F.softplus(each).sum() for each in objectness) + sum(each.abs().sum() for each in moves)
    heads = model.roi_heads
    stages = heads.stages if isinstance(heads, CascadeRoIHeads) else [heads]
    total = torch.as_tensor(proposed)
    for stage in stages:
        total = total + _stage(stage, next(iter(features.values())), regions * len(images_B3HW))
    return total


def _stage(stage: Any, map_BCHW: Tensor, regions: int) -> Tensor:
    """Regions as if all came from the finest map: what is pooled has one size, whatever the map."""
    logits_RK, regression = stage.box_predictor(stage.box_head(_pooled(map_BCHW, regions, BOX_SIDE)))
    loss = F.cross_entropy(logits_RK, torch.zeros(regions, dtype=torch.int64)) + regression.abs().sum()
    on_objects = max(1, int(regions * SHARE_ON_OBJECTS))
    masks = stage.mask_predictor(stage.mask_head(_pooled(map_BCHW, on_objects, MASK_SIDE)))
    total: Tensor = loss + F.softplus(masks[:, 0]).sum()
    return total


def _pooled(map_BCHW: Tensor, regions: int, side: int) -> Tensor:
    pooled: Tensor = roi_align(map_BCHW, torch.zeros(regions, 5), (side, side), sampling_ratio=2)
    return pooled
