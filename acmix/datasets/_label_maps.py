"""Label maps from outside: PNG files whose pixels are numbers, not colours."""

# Shapes: H W image

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from acmix.datasets._images import opened

VALUES = 2**16  # of a mask of 16 bits
# Grey values of fewer than eight bits are stretched to 0..255 when they are decoded; this undoes it.
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_label_map(path: Path) -> NDArray[np.uint16]:
    """The numbers (H, W) of a PNG of one channel: indices into its palette, or its grey values of 1 to 16 bits.

    As stored: whatever EXIF says, nothing is turned. DatasetCorrupt and DatasetMissing name the file.
    """
    with opened(path, ("PNG",)) as image:
        return _numbers(image)


def _numbers(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    if image.mode not in {"1", "L", "P"} and not image.mode.startswith("I"):
        raise ValueError(
            f"its pixels are colours (mode {image.mode}), and a mask's are numbers; "
            "save it as a grey or palette PNG of one channel whose values are the classes"
        )
    stretch = _STRETCHED.get(str(image.tile[0].args), 1)  # the tile is gone once the pixels are loaded
    return (np.asarray(image) // stretch).astype(np.uint16)
