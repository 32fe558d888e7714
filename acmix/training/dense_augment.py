"""Augments of detection and segmentation: steps that change an image with its boxes and masks or its label map.

Every step takes and gives both; they are torchvision's transforms on its typed tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from acmix.datasets._contract import IGNORED, LONGEST_RATIO, Dataset

SCALES = 10  # sizes that a random one is drawn from

Steps = tuple[Callable[..., Any], ...]
Scale = Annotated[float, Field(ge=0.1, le=4)]
Probability = Annotated[float, Field(ge=0, le=1)]


def flip_resize(dataset: Dataset, *, flip: Probability = 0.5) -> Steps:
    """The short side at the data set's image_px, and mirrored at random."""
    from torchvision.transforms import v2

    return (v2.RandomHorizontalFlip(flip), *_resize(dataset))


def multi_scale(dataset: Dataset, *, flip: Probability = 0.5, min_side: Scale = 0.6, max_side: Scale = 1.0) -> Steps:
    """The short side at random between two multiples of the data set's image_px, and mirrored: multi-scale training."""
    from torchvision.transforms import v2

    sizes = _between(dataset.image_px, min_side, max_side)
    longest = round(max(sizes) * LONGEST_RATIO)
    return (v2.RandomHorizontalFlip(flip), v2.RandomShortestSize(sizes, max_size=longest))


def scale_crop(
    dataset: Dataset,
    *,
    min_scale: Scale = 0.5,
    max_scale: Scale = 2.0,
    flip: Probability = 0.5,
    distort: Annotated[bool, Field(description="change brightness, contrast, saturation and hue at random")] = False,
) -> Steps:
    """Scaled at random, cropped to the data set's image_px, mirrored: the custom for segmentation."""
    from torchvision.transforms import v2

    colours = (v2.RandomPhotometricDistort(),) if distort else ()
    sizes = _between(dataset.image_px, min_scale, max_scale)
    return (v2.RandomShortestSize(sizes), *_crop(dataset), v2.RandomHorizontalFlip(flip), *colours)


def unscaled_crop(dataset: Dataset, *, flip: Probability = 0.5) -> Steps:
    """Cropped at random to the data set's image_px from images of whatever size, and mirrored."""
    from torchvision.transforms import v2

    return (*_crop(dataset), v2.RandomHorizontalFlip(flip))


def detection_default(dataset: Dataset) -> Steps:
    """What suits the data set."""
    return DETECTION[dataset.default_augment](dataset)


def detection_none(dataset: Dataset) -> Steps:
    """Nothing random: the short side at the data set's image_px."""
    return _resize(dataset)


def segmentation_default(dataset: Dataset) -> Steps:
    """What suits the data set."""
    return SEGMENTATION[dataset.default_augment](dataset)


def segmentation_none(dataset: Dataset) -> Steps:
    """Nothing random but the place of the crop."""
    return _crop(dataset)


def fitted(dataset: Dataset) -> Steps:
    """For judging segmentation: the image's short side at image_px; the label map stays as it is."""
    if dataset.in_memory:
        return ()
    (resize,) = _resize(dataset)
    return (ImageAlone(resize),)


@dataclass(frozen=True)
class ImageAlone:
    """A step that leaves what is drawn on the image as it is."""

    step: Callable[..., Any]

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        return self.step(image), target


DETECTION: Mapping[str, Callable[..., Steps]] = {
    "default": detection_default,
    "none": detection_none,
    "flip_resize": flip_resize,
    "multi_scale": multi_scale,
}
SEGMENTATION: Mapping[str, Callable[..., Steps]] = {
    "default": segmentation_default,
    "none": segmentation_none,
    "scale_crop": scale_crop,
    "unscaled_crop": unscaled_crop,
}


def _resize(dataset: Dataset) -> Steps:
    return () if dataset.in_memory else (fitting(dataset.image_px),)


def fitting(image_px: int) -> Callable[[Any], Any]:
    """Resizes the short side to `image_px`, or to less where the long side would be too long."""
    from torchvision.transforms import v2

    resize: Callable[[Any], Any] = v2.Resize(image_px, max_size=round(image_px * LONGEST_RATIO))
    return resize


def _crop(dataset: Dataset) -> Steps:
    """At random; what is missing is filled with the mean colour and pixels to be ignored."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    colour = tuple(round(255 * mean) for mean in dataset.mean)
    fill = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORED}
    return (v2.RandomCrop(dataset.image_px, pad_if_needed=True, fill=fill),)


def _between(side_px: int, least: float, most: float) -> list[int]:
    """Sizes between two multiples of a side, evenly."""
    low, high = sorted((least, most))
    return sorted({max(1, round(side_px * (low + (high - low) * step / (SCALES - 1)))) for step in range(SCALES)})
