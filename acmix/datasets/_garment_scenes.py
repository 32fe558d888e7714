"""What detection and segmentation of garments have in common: Fashion-MNIST's images as cut-outs of scenes."""

from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._scenes import Count, CutOuts, ScenePx, Scenes
from acmix.datasets.fashion_mnist import FashionMnist

CLASSES = FashionMnist.classes
OPAQUE = 48  # of 255: what is lighter belongs to the garment
DARKEST = 90  # of 255: of a garment's shades

cached = cache(FashionMnist)


class GarmentScenes(Dataset):
    """A data set of scenes of clothing; which kind of samples they make is the task's."""

    default_image_px = 128
    in_memory = True
    mean = (0.259, 0.251, 0.228)  # at 128 px
    std = (0.207, 0.182, 0.194)

    scenes: ClassVar[type[Scenes]]

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)] | None = None,
        image_px: ScenePx = 128,
        train_scenes: Count = 1000,
        val_scenes: Count = 100,
        test_scenes: Count = 200,
    ) -> None:
        self.image_px = image_px
        self._counts = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        self._cut_outs = {name: cut_outs(root, folder, name) for name in ("train", "val", "test")}

    def split(self, name: SplitName) -> Scenes:
        return self.scenes("fashion_mnist", name, self._cut_outs[name], self._counts[name], self.image_px)


def cut_outs(root: Path, folder: str | None, split: SplitName) -> CutOuts:
    """The images of the split of that name of the data set `fashion_mnist`: none is in the scenes of two splits."""
    images = cached(root, folder=folder).split(split)
    light = images.images_SCHW[:, 0].numpy()
    opacities = (light.astype(np.float32) * 255 / OPAQUE).clip(0, 255).astype(np.uint8)
    shades = (DARKEST + (255 - DARKEST) / 255 * light).astype(np.uint8)
    return CutOuts(opacities, shades, np.asarray(images.labels, np.int64))
