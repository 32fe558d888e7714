"""From images with boxes, masks or label maps to batches, by steps whose random numbers derive from a sample's seed."""

# Shapes: B batch, N objects of an image, H W image

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from acmix.tasks._contract import Batch
from acmix.training.augment import column
from acmix.training.dense_augment import Steps

SMALLEST_PX = 1e-3  # of a box's side


@dataclass(frozen=True)
class DetectionTransform:
    """Images of any size, normalised, and the boxes and masks that are left of their objects."""

    steps: Steps
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def collate(self, samples: Sequence[tuple[Tensor, Any]], seeds: Sequence[int]) -> Batch:
        """Images, float32 (3, H, W) each, and targets as acmix.datasets._contract.Split has them."""
        changed = _changed([_with_boxes(*sample) for sample in samples], seeds, self.steps)
        return [normalized(image, self.mean, self.std) for image, _ in changed], [_plain(each) for _, each in changed]


@dataclass(frozen=True)
class SegmentationTransform:
    """Images and label maps: `stacked` where the steps make all of one size, else in lists."""

    steps: Steps
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stacked: bool = False

    def collate(self, samples: Sequence[tuple[Tensor, Any]], seeds: Sequence[int]) -> Batch:
        """Images, float32 (B, 3, H, W), and labels, uint8 (B, H, W), or lists of them without B."""
        changed = _changed([_with_labels(*sample) for sample in samples], seeds, self.steps)
        images = [normalized(image, self.mean, self.std) for image, _ in changed]
        labels = [target.as_subclass(Tensor) for _, target in changed]
        return (torch.stack(images), torch.stack(labels)) if self.stacked else (images, labels)


def normalized(image_3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float32, with the data set's mean at 0 and its deviation at 1."""
    return image_3HW.as_subclass(Tensor).float().sub(column(mean)).div_(column(std))


def _changed(samples: Sequence[tuple[Any, Any]], seeds: Sequence[int], steps: Steps) -> Sequence[tuple[Any, Any]]:
    """Every sample after all steps, torch's generator seeded for each and put back afterwards."""
    if not steps:
        return samples
    with torch.random.fork_rng(devices=[]):
        return [_one(sample, seed, steps) for sample, seed in zip(samples, seeds, strict=True)]


def _one(sample: tuple[Any, Any], seed: int, steps: Steps) -> tuple[Any, Any]:
    torch.default_generator.manual_seed(seed)
    for step in steps:
        sample = step(*sample)
    return sample


def _with_boxes(image_3HW: Tensor, target: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    height, width = image_3HW.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
    typed = {**target, "boxes": boxes}
    if "masks" in target:
        typed["masks"] = tv_tensors.Mask(target["masks"])
    return tv_tensors.Image(image_3HW), typed


def _with_labels(image_3HW: Tensor, labels_HW: Tensor) -> tuple[Any, Any]:
    return tv_tensors.Image(image_3HW), tv_tensors.Mask(labels_HW)


def _plain(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors, without objects of which no box is left."""
    boxes = target["boxes"]
    left_N = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST_PX).all(dim=1).as_subclass(Tensor)
    return {name: each.as_subclass(Tensor)[left_N] for name, each in target.items()}
