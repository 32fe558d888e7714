"""Your own segmented images: folders of images and masks, in which every pixel's value is its class."""

# Shapes: V values of a 16-bit mask

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from acmix.datasets._contract import MOST_LABELS, Dataset, SplitName
from acmix.datasets._files import folder_below, read_text
from acmix.datasets._label_maps import VALUES, read_label_map
from acmix.datasets._pairs import Pair, PairSplit, class_of_values, completed, pairs_of_parts
from acmix.datasets._side_by_side import SideBySide
from acmix.errors import DatasetCorrupt, DatasetMissing

MASKS = ("masks", "labels", "annotations")
NAMES = "classes.txt"


class MaskFolder(Dataset):
    """Your own segmented images: train/images and train/masks, with val and test beside train if you have them.

    images/train and masks/train will do as well, and the masks' folder may be called labels or annotations. `folder`
    is a path below the data root. A mask is a PNG of one channel, grey or with a palette, of its image's name and size;
    its values are the classes from 0 on, and `ignore_value` for a pixel of none. Where `zero_is` "ignored" so is 0, and
    classes begin at 1. classes.txt in the folder names them, one a line; without it they are the values up to train's
    highest. Without test, val serves as test; a val that is missing or so used is cut from train, a tenth by a seed
    that never changes, and so is a test where there is neither. Training crops images to `image_px`.
    """

    name = "mask_folder"
    task = "segmentation"
    num_classes = None
    default_image_px = 512
    in_memory = False
    default_augment = "scale_crop"

    mean = (0.485, 0.456, 0.406)  # ImageNet's, as is the custom
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)],
        image_px: Annotated[int, Field(ge=8, le=2048)] = 512,
        ignore_value: Annotated[int, Field(ge=0, lt=VALUES)] = 255,
        zero_is: Literal["class", "ignored"] = "class",
    ) -> None:
        self.image_px = image_px
        self.place = place = folder_below(root, folder)
        found = pairs_of_parts(root, place, dict(_parts(place)))
        first, ignored = (1, {0, ignore_value}) if zero_is == "ignored" else (0, {ignore_value})
        if (place / NAMES).exists():
            self.classes = _named(root, place / NAMES)
        else:
            self.classes = tuple(map(str, range(first, _highest(place, found["train"], ignored, first) + 1)))
        self._classes_V = class_of_values(len(self.classes), first=first, ignored=ignored)
        self._splits = completed(found, place)

    def split(self, name: SplitName) -> PairSplit:
        return PairSplit(self.place, self._splits[name], self._classes_V)


def _parts(place: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """The parts that are there, with the folders of their images and masks."""
    for part in ("train", "val", "test"):
        layouts = [(f"{part}/images", f"{part}/{masks}") for masks in MASKS]
        layouts += [(f"images/{part}", f"{masks}/{part}") for masks in MASKS]
        whole = [(images, masks) for images, masks in layouts if _folders(place / images, place / masks)]
        if whole:
            yield part, whole[0]
        elif part == "train" or (place / part).exists() or (place / "images" / part).exists():
            raise DatasetMissing(
                f"{place} has no images and masks of {part}",
                hint="they lie in train/images and train/masks, or in images/train and masks/train",
            )


def _folders(*paths: Path) -> bool:
    return all(path.is_dir() for path in paths)


def _named(root: Path, path: Path) -> tuple[str, ...]:
    names = tuple(line.strip() for line in read_text(root, path).strip().splitlines())
    if "" in names or not 0 < len(names) <= MOST_LABELS or len(set(names)) < len(names):
        raise DatasetCorrupt(f"{path} must name 1 to {MOST_LABELS} different classes, one a line without empty ones")
    return names


def _highest(place: Path, pairs: Sequence[Pair], ignored: Collection[int], first: int) -> int:
    """The highest value of all masks that stands for a class."""
    highest = -1
    with SideBySide() as faults:
        for _, mask in pairs:
            with faults.noting(place / mask):
                pixels_V = np.bincount(read_label_map(place / mask).reshape(-1), minlength=VALUES)
                pixels_V[list(ignored)] = 0
                own = max(np.flatnonzero(pixels_V)[-1:].tolist(), default=-1)
                if own - first >= MOST_LABELS:
                    raise DatasetCorrupt(
                        f"{place / mask} has a pixel of value {own}; there may be {MOST_LABELS} classes",
                        hint="name the value of pixels without a class in ignore_value, or renumber the classes",
                    )
                highest = max(highest, own)
    if highest < first:
        raise DatasetCorrupt(f"the masks of train of {place} have no pixel of a class")
    return highest
