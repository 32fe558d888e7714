"""From a data set's images to what a model reads: random changes for training, none for evaluation.

Every random number derives from the seed given with an image, so an image comes out the same in whatever batch and
process it is prepared.
"""

# Shapes: B batch, H W image; images of a list may differ in size

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import Dataset, ImageFacts
from acmix.errors import NameNotFound, unknown_name
from acmix.registry import check_options
from acmix.spec import FlatChoice

Probability = Annotated[float, Field(ge=0, le=1)]
SEEDS = 2**32  # as many as torch's generator tells apart
_STRIDE = 0x9E3779B9  # between the seeds of one image's steps, lest they draw alike


class Step(Protocol):
    """Changes uint8 images (3, H, W), each by random numbers of its own seed."""

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Sequence[Tensor]: ...


Steps = tuple[Step, ...]


@dataclass(frozen=True)
class ImageTransform:
    """Steps on uint8 images, after which all are of one size, then their normalisation, a whole batch at once."""

    steps: Steps
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def collate(self, samples: Sequence[tuple[Tensor, int]], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images, float32 (B, 3, image_px, image_px), and labels, int64 (B,)."""
        images, labels = zip(*samples, strict=True)
        return self.batch(images, seeds), torch.tensor(labels)

    def __call__(self, image: Tensor, seed: int = 0) -> Tensor:
        """One image: uint8 (3, H, W) -> float32 (3, image_px, image_px)."""
        return self.batch([image], [seed])[0]

    def batch(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        """Images, uint8 (3, H, W) each, with a seed each -> float32 (B, 3, image_px, image_px)."""
        for number, step in enumerate(self.steps):
            images = step(images, [(seed + number * _STRIDE) % SEEDS for seed in seeds])
        images_B3HW = torch.stack(list(images)).float()
        return images_B3HW.sub_(column(self.mean)).div_(column(self.std))


def training_transform(dataset: Dataset, augment: FlatChoice) -> ImageTransform:
    """The transform of that augment; NameNotFound and OptionInvalid say what there is."""
    if augment.name not in AUGMENTS:
        raise NameNotFound(unknown_name("augment", augment.name, list(AUGMENTS)))
    make = AUGMENTS[augment.name]
    options = check_options(make, augment.options, where=f"augment {augment.name}")
    return ImageTransform(make(dataset, **options), dataset.mean, dataset.std)


def evaluation_transform(dataset: Dataset) -> ImageTransform:
    """Nothing random: the image, where need be resized by its short side and cropped at its centre."""
    return ImageTransform(none(dataset), dataset.mean, dataset.std)


def prediction_transform(images: ImageFacts) -> ImageTransform:
    """For an image of any size what evaluation does to those of the data set; all of one that is in memory is seen."""
    of_px = images.image_px if images.in_memory else _short_side(images)
    return ImageTransform((_centre(images.image_px, of_px=of_px),), images.mean, images.std)


def default(dataset: Dataset) -> Steps:
    """What suits the data set: a shift for digits, crops and flips for photographs."""
    return AUGMENTS[dataset.default_augment](dataset)


def none(dataset: Dataset) -> Steps:
    """Images as they are; those from files resized by the short side and cropped at the centre (224 of 256)."""
    return () if dataset.in_memory else (_centre(dataset.image_px, of_px=_short_side(dataset)),)


def shift(dataset: Dataset, *, fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.125) -> Steps:
    """Moved at random by up to `fraction` of the side, black where nothing moves in."""
    return (*none(dataset), Translation(round(dataset.image_px * fraction)))


def crop(dataset: Dataset, *, padding_px: Annotated[int, Field(ge=0, le=512)] = 4, erase: Probability = 0.0) -> Steps:
    """Padded with black by `padding_px`, then cropped at random to the old size."""
    return (*none(dataset), Translation(padding_px), *_erasing(dataset, erase))


def flip_crop(
    dataset: Dataset, *, padding_px: Annotated[int, Field(ge=0, le=512)] = 4, erase: Probability = 0.0
) -> Steps:
    """Padded, cropped at random, and mirrored left to right every other time: the custom for CIFAR."""
    return (*none(dataset), Translation(padding_px, flip=True), *_erasing(dataset, erase))


def resized_crop(
    dataset: Dataset,
    *,
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.08,
    flip: Probability = 0.5,
    erase: Probability = 0.0,
) -> Steps:
    """A random part of at least `min_area` of the image, resized, and mirrored at random: the custom for ImageNet."""
    from torchvision.transforms import v2

    cropped = v2.RandomResizedCrop(dataset.image_px, scale=(min_area, 1.0))
    return (EachImage((cropped, v2.RandomHorizontalFlip(flip))), *_erasing(dataset, erase))


def randaugment(
    dataset: Dataset,
    *,
    operations: Annotated[int, Field(ge=1, le=10)] = 2,
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9,
    erase: Probability = 0.0,
) -> Steps:
    """The data set's default, then RandAugment: `operations` random changes of one `magnitude` (0 to 30).

    Source: Cubuk et al. 2019, arXiv 1909.13719.
    """
    from torchvision.transforms import v2

    changes = v2.RandAugment(operations, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
    return (*default(dataset), EachImage((changes,)), *_erasing(dataset, erase))


def trivialaugment(dataset: Dataset, *, erase: Probability = 0.0) -> Steps:
    """The data set's default, then TrivialAugment: one random change of a random magnitude.

    Source: Müller and Hutter 2021, arXiv 2103.10158.
    """
    from torchvision.transforms import v2

    changes = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    return (*default(dataset), EachImage((changes,)), *_erasing(dataset, erase))


AUGMENTS: Mapping[str, Callable[..., Steps]] = {
    make.__name__: make for make in (default, none, shift, crop, flip_crop, resized_crop, randaugment, trivialaugment)
}


@dataclass(frozen=True)
class Translation:
    """Moves images of one size by up to `most_px` either way, along both axes, and mirrors half of them if asked.

    The same as torchvision's RandomCrop with padding and RandomHorizontalFlip, which take 92 µs an image where this
    takes 10: the offsets are digits of the seed, and a crop is a view into the padded batch.
    """

    most_px: int
    flip: bool = False

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Sequence[Tensor]:
        images_B3HW = torch.stack(list(images))
        height, width = images_B3HW.shape[-2:]
        padded_B3HW = F.pad(images_B3HW, [self.most_px] * 4)
        moved = []
        for padded_3HW, seed in zip(padded_B3HW, seeds, strict=True):
            rest, top = divmod(seed, 2 * self.most_px + 1)
            rest, left = divmod(rest, 2 * self.most_px + 1)
            image_3HW = padded_3HW[:, top : top + height, left : left + width]
            moved.append(image_3HW.flip(-1) if self.flip and rest % 2 else image_3HW)
        return moved


@dataclass(frozen=True)
class EachImage:
    """torchvision transforms on one image after another, torch's generator seeded for each and put back afterwards."""

    transforms: tuple[Callable[[Any], Any], ...]

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Sequence[Tensor]:
        with torch.random.fork_rng(devices=[]):
            return [self._one(image, seed) for image, seed in zip(images, seeds, strict=True)]

    def _one(self, image: Tensor, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the GPUs' generators too
        for transform in self.transforms:
            image = transform(image)
        return image


def _short_side(images: Dataset | ImageFacts) -> int:
    """What an image of a file is resized to before its centre is cropped: the custom for ImageNet."""
    return round(images.image_px * 256 / 224)


def _centre(side_px: int, *, of_px: int) -> EachImage:
    """A square from the middle of the image, whose short side is resized to `of_px` before."""
    from torchvision.transforms import v2

    return EachImage((v2.Resize(of_px), v2.CenterCrop(side_px)))


def _erasing(dataset: Dataset, probability: float) -> Steps:
    """Random erasing with the mean colour, which is nearly 0 once normalised."""
    if not probability:
        return ()
    from torchvision.transforms import v2

    return (EachImage((v2.RandomErasing(probability, value=[255 * mean for mean in dataset.mean]),)),)


def column(values: Sequence[float]) -> Tensor:
    """Of 0..1 per channel, the same on the scale of uint8, (3, 1, 1)."""
    return torch.tensor(values).mul(255).view(-1, 1, 1)
