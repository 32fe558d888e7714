"""Image files from outside: five formats, checked before they are decoded, in RGB, turned as their labels mean them."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from acmix.errors import DatasetCorrupt, DatasetMissing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
Size = tuple[int, int]  # width and height
MANY_BYTES = 2**20
MAX_SIDE_RATIO = 20  # a longer strip would be huge once its short side is scaled up


def read_image(path: Path) -> Tensor:
    """The first frame of an image file, uint8 (3, H, W): turned as its EXIF says, its alpha dropped, 16 bits cut to 8.

    DatasetCorrupt, and DatasetMissing where the file is gone, name the file. More pixels than Pillow's limit against
    decompression bombs (89 million) are refused before they are decoded.
    """
    return _read(path, ImageOps.exif_transpose)


def read_annotated_image(path: Path, size: Size, *, told_by: str) -> Tensor:
    """The same, turned only where that alone gives the width and height in pixels that its annotations mean.

    Annotations refer to pixels as stored or as seen, by the tool that made them; their own size tells which. Where
    both have it, as of a square, they mean those stored. DatasetCorrupt names what told another size: `told_by`.
    """
    return _read(path, lambda image: _of_size(image, size, path, told_by))


def stored_size(path: Path) -> Size:
    """Width and height of an image file in pixels before anything is turned; errors as of read_image."""
    with opened(path) as image:
        return image.size


@contextmanager
def opened(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[ImageFile.ImageFile]:
    """An image file of those formats, not yet decoded; what goes wrong within is told as read_image tells it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not spoil an image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _Contents(path) as contents, Image.open(contents, formats=formats) as image:
                _check_sides(image)
                yield image
    except FileNotFoundError:
        raise DatasetMissing(f"{path} is not there any more") from None
    except (MemoryError, DatasetCorrupt):
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DatasetCorrupt(
            f"{path} cannot be read as an image: {error}", hint=f"formats: {', '.join(formats)}"
        ) from None


class _Contents(io.BufferedReader):
    """An open file of which no more is read than it holds.

    Pillow asks for as much as a chunk claims to have, up to 4 GB, and Python has room made for all of it first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._path = path
        self._size_bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MANY_BYTES:
            size = min(size, max(0, self._size_bytes - self.tell()))
        return super().read(size)

    def __repr__(self) -> str:
        return repr(str(self._path))  # as Pillow names a file in its sentences


def _read(path: Path, turned: Callable[[Image.Image], Image.Image]) -> Tensor:
    with opened(path) as image:
        rgb = _as_rgb(turned(image))
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _of_size(image: Image.Image, size: Size, path: Path, told_by: str) -> Image.Image:
    if image.size == size:
        return image
    turned = ImageOps.exif_transpose(image)
    if turned.size != size:
        raise DatasetCorrupt(f"{path} has {_sides(image.size)} px where {told_by} says {_sides(size)}")
    return turned


def _sides(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


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
