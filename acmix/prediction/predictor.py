"""A checkpoint's model, read from its file alone, and asked about image files."""

# Shapes: H W image

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acmix import spec, weights
from acmix.datasets._contract import ImageFacts
from acmix.datasets._images import read_image
from acmix.drawing import drawn
from acmix.errors import AcmixError, CheckpointIncompatible, DatasetCorrupt, ImageUnreadable
from acmix.model import build
from acmix.spec import JobSpec
from acmix.tasks._named import Named, Shown
from acmix.training.setup import task_of

MOST_PIXELS = 2_000_000  # what a model is shown is scaled down to so many: a hundred masks take a gigabyte then
MIN_SCORE = 0.5
SMALLEST_PX, LARGEST_PX = 512, 2048  # the long side of a drawn picture


@dataclass(frozen=True)
class Prediction:
    """What was named in an image, and what it was named on."""

    said: dict[str, Any]
    shown: Shown
    named: Named

    def picture(self) -> Image.Image:
        """The image with what was named in it drawn in."""
        longest_px = min(max(*self.shown.size, SMALLEST_PX), LARGEST_PX)
        named = self.named
        return drawn(self.shown.image, named.target, longest_px=longest_px, texts=named.texts, legend=named.legend)


class Predictor:
    """The model of a checkpoint's file, in evaluation mode.

    Raises:
        CheckpointIncompatible: the file is none of ours, or does not tell what images it was trained on.
        WeightsMissing: it is not there.
    """

    def __init__(self, file: Path) -> None:
        tensors, (trained, classes, images) = weights.read(file), _told(file)
        self.images = images
        self.task = task_of(trained, classes)
        plain = trained.backbone.model_copy(update={"weights": None})
        backbone = build(plain, trained.swaps, num_classes=self.task.num_outputs, image_px=images.image_px)
        self.model = self.task.model(backbone, images.image_px).eval()
        try:
            self.model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointIncompatible(f"the file does not fit the model that it tells of: {error}"[:1000]) from None

    def predict(self, image: Path, *, min_score: float = MIN_SCORE) -> Prediction:
        """Of an image file, turned as its EXIF says; places and masks are told in its own pixels.

        Args:
            min_score: objects of a lower score are left out. Detectors keep none below 0.05.

        Raises:
            ImageUnreadable: it is no image that is read here.
        """
        shown = _shown(image)
        with torch.inference_mode():
            named = self.task.predict(self.model, shown, self.images, min_score=min_score)
        width, height = shown.size
        said = {"task": self.task.name, "image": {"width": width, "height": height}, **named.said}
        return Prediction(said, shown, named)


def _told(file: Path) -> tuple[JobSpec, list[str], ImageFacts]:
    """What the file says of itself: by what spec it was trained, on which classes, on what images."""
    told = weights.about(file)
    try:
        images = ImageFacts(**told["images"])
        return spec.parse(told["spec"]), list(told["classes"]), images
    except (KeyError, TypeError, AcmixError):
        raise CheckpointIncompatible(
            f"{file.name} does not say by what it was trained; a checkpoint of this version would"
        ) from None


def _shown(file: Path) -> Shown:
    try:
        image_3HW = read_image(file)
    except DatasetCorrupt as error:
        told = error.message.replace(f" {str(file)!r}", "").replace(str(file), "what was sent")
        raise ImageUnreadable(told, hint=error.hint) from None
    height, width = image_3HW.shape[-2:]
    return Shown(_within(image_3HW, MOST_PIXELS), (width, height))


def _within(image_3HW: Tensor, most: int) -> Tensor:
    """An image of at most so many pixels, scaled down if need be."""
    height, width = image_3HW.shape[-2:]
    scale = (most / (height * width)) ** 0.5
    if scale >= 1:
        return image_3HW
    size = [max(1, int(height * scale)), max(1, int(width * scale))]
    scaled = F.interpolate(image_3HW[None].float(), size=size, mode="bilinear", antialias=True)
    return scaled[0].round().clamp(0, 255).byte()
