"""What detection and segmentation of garments have in common: Fashion-MNIST's images as cut-outs of scenes."""

from functools import cache
from pathlib import Path

import numpy as np

from acmix.datasets._contract import SplitName
from acmix.datasets._scenes import CutOuts
from acmix.datasets.fashion_mnist import FashionMnist

CLASSES = FashionMnist.classes
OPAQUE = 48  # of 255: what is lighter belongs to the garment
DARKEST = 90  # of 255: of a garment's shades

cached = cache(FashionMnist)


def cut_outs(root: Path, folder: str | None, split: SplitName) -> CutOuts:
    """The images of the split of that name of the data set `fashion_mnist`: none is in the scenes of two splits."""
    images = cached(root, folder=folder).split(split)
    light = images.images_SCHW[:, 0].numpy()
    opacities = (light.astype(np.float32) * 255 / OPAQUE).clip(0, 255).astype(np.uint8)
    shades = (DARKEST + (255 - DARKEST) / 255 * light).astype(np.uint8)
    return CutOuts(opacities, shades, np.asarray(images.labels, np.int64))
