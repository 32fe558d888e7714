"""Image files from outside: five formats, checked before they are decoded, upright and in RGB."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from acmix.errors import DatasetCorrupt, DatasetMissing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_SIDE_RATIO = 20  # a longer strip would be huge once its short side is scaled up


def read_image(path: Path) -> Tensor:
    """The first frame of an image file, uint8 (3, H, W): turned as its EXIF says, its alpha dropped, 16 bits cut to 8.

    DatasetCorrupt, and DatasetMissing where the file is gone, name the file. More pixels than Pillow's limit against
    decompression bombs (89 million) are refused before they are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not spoil an image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_sides(image)
                rgb = _as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise DatasetMissing(f"{path} is not there any more") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DatasetCorrupt(
            f"{path} cannot be read as an image: {error}", hint=f"formats: {', '.join(FORMATS)}"
        ) from None
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _check_sides(image: Image.Image) -> None:
    short, long = sorted(image.size)
    if long > MAX_SIDE_RATIO * short:
        raise ValueError(f"its sides are {long} and {short} px; one may be {MAX_SIDE_RATIO} times the other")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; 8 and 16 bits a channel are read")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB Pillow warns
    return image.convert("RGB")
