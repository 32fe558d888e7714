"""What a model names in an image, as JSON values in the pixels of the image that was sent."""

# Shapes: H W image

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from acmix.datasets._contract import Target

Size = tuple[int, int]  # width and height


@dataclass(frozen=True)
class Shown:
    """An image, uint8 (3, H, W), and the width and height of the one that it was scaled down from, if it was."""

    image: Tensor
    size: Size

    @property
    def scale(self) -> tuple[float, float]:
        """From a pixel's place in `image` to its place in the image that was sent, x and y."""
        height, width = self.image.shape[-2:]
        return self.size[0] / width, self.size[1] / height


@dataclass(frozen=True)
class Named:
    """What was named: as JSON values, and as what can be drawn on the shown image (acmix.drawing)."""

    said: dict[str, Any]
    target: Target
    texts: Sequence[str] = ()
    legend: Sequence[tuple[int, str]] = ()


def runs_of(mask_HW: Tensor, size: Size) -> dict[str, Any]:
    """A mask of 0 and 1, scaled to that size, in COCO's words: `size`, height first, and `counts`, compressed runs.

    Source: https://github.com/cocodataset/cocoapi, maskApi.h
    """
    from faster_coco_eval.core import mask as runs

    scaled = Image.fromarray(mask_HW.byte().cpu().numpy()).resize(size, Image.Resampling.NEAREST)
    encoded = runs.encode(np.asfortranarray(np.asarray(scaled)))
    counts = encoded["counts"]
    return {"size": [size[1], size[0]], "counts": counts.decode() if isinstance(counts, bytes) else counts}
