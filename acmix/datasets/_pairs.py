"""Images with a mask each, found by their common name, and what the masks' values mean."""

# Shapes: H W image, V values of a 16-bit mask

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acmix.datasets._contract import IGNORED, SplitName
from acmix.datasets._files import leads_below
from acmix.datasets._images import SUFFIXES, read_annotated_image
from acmix.datasets._label_maps import VALUES, read_label_map
from acmix.datasets._side_by_side import SideBySide
from acmix.datasets._split import complete
from acmix.errors import DatasetCorrupt, DatasetMissing

Pair = tuple[str, str]  # an image and its mask, below the data set's folder
Classes = NDArray[np.int16]  # by value of a mask: the class, IGNORED, or -1 where a mask may not have it


class PairSplit:
    """Images and label maps, read from their files when asked for."""

    def __init__(self, place: Path, pairs: Sequence[Pair], classes_V: Classes) -> None:
        self.place = place
        self.pairs = pairs
        self.classes_V = classes_V

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (self.place / name for name in self.pairs[index])
        labels_HW = self._labels(mask)
        height, width = labels_HW.shape
        return read_annotated_image(image, (width, height), told_by=str(mask)), labels_HW

    def source(self, index: int) -> str:
        return self.pairs[index][0]

    def _labels(self, mask: Path) -> Tensor:
        values_HW = read_label_map(mask)
        labels_HW = self.classes_V[values_HW]
        if (labels_HW < 0).any():
            value, known = values_HW[labels_HW < 0][0], np.flatnonzero(self.classes_V >= 0)
            raise DatasetCorrupt(f"{mask} has a pixel of value {value}; values here are {_told(known)}")
        return torch.from_numpy(labels_HW.astype(np.uint8))


def class_of_values(classes: int, *, first: int, ignored: Collection[int]) -> Classes:
    """Values from `first` on are the classes in order, whatever else is ignored or unknown."""
    classes_V = np.full(VALUES, -1, dtype=np.int16)
    classes_V[first : first + classes] = np.arange(classes)
    classes_V[list(ignored)] = IGNORED
    return classes_V


def completed(found: Mapping[str, Sequence[Pair]], place: Path) -> dict[SplitName, list[Pair]]:
    """All three splits: what is there, and the rest cut from train."""
    splits = complete({part: [0] * len(pairs) for part, pairs in found.items()}, f"train of {place}")
    return {name: [found[part][index] for index in indices] for name, (part, indices) in splits.items()}


def pairs_of_parts(root: Path, place: Path, folders: Mapping[str, tuple[str, str]]) -> dict[str, list[Pair]]:
    """By part those of its folders, of images and of masks; errors as of pairs_of."""
    found: dict[str, list[Pair]] = {}
    with SideBySide() as faults:
        for part, (images, masks) in folders.items():
            with faults.noting():
                found[part] = pairs_of(root, place, images, masks)
    return found


def pairs_of(root: Path, place: Path, images: str, masks: str) -> list[Pair]:
    """Every image of a folder with the mask of its name in another, both below the place, by name.

    DatasetMissing names an image or mask that is alone, DatasetCorrupt what is no image, or a link out of the root.
    """
    with SideBySide() as faults:
        with faults.noting():
            image_of = _by_stem(root, place, images, SUFFIXES)
        mask_of = _by_stem(root, place, masks, {".png"})
    if not image_of:
        raise DatasetCorrupt(f"{place / images} has no images")
    with SideBySide() as faults:
        for stem in sorted(image_of.keys() ^ mask_of.keys()):
            path = place / (image_of.get(stem) or mask_of[stem])
            mate = (
                f"mask {stem}.png in {place / masks}" if stem in image_of else f"image of that name in {place / images}"
            )
            faults.add(DatasetMissing(f"{path} has no {mate}", file=path))
    return [(image_of[stem], mask_of[stem]) for stem in sorted(image_of)]


def _by_stem(root: Path, place: Path, folder: str, suffixes: Collection[str]) -> dict[str, str]:
    """The files of a folder by their names without suffix; names that begin with a dot are passed over."""
    if not leads_below(root, place / folder):
        raise DatasetCorrupt(f"{place / folder} is a link out of the data root")
    with os.scandir(place / folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    found: dict[str, str] = {}
    with SideBySide() as faults:
        for entry in visible:
            path = Path(entry.path)
            with faults.noting(path):
                if entry.is_symlink() and not leads_below(root, path):
                    raise DatasetCorrupt(f"{path} is a link out of the data root")
                if path.suffix.lower() not in suffixes or not entry.is_file():
                    raise DatasetCorrupt(f"{path} is no file with a suffix read here: {', '.join(sorted(suffixes))}")
                if path.stem in found:
                    other = place / found[path.stem]
                    raise DatasetCorrupt(f"{path} and {other} have one name; keep the one that is meant")
                found[path.stem] = f"{folder}/{entry.name}"
    return found


def _told(values: NDArray[np.intp]) -> str:
    """Rising numbers as ranges: 0 to 149 and 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return " and ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
