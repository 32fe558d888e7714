"""ImageNet's photographs as its challenge of 2012 publishes them.

Source: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge".
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below, leads_below, read_text
from acmix.datasets._images import SUFFIXES
from acmix.datasets._side_by_side import SideBySide
from acmix.datasets.image_folder import Files, FileSplit, check_image, class_files, class_names, completed
from acmix.errors import DatasetCorrupt, DatasetMissing

SOLUTION = "LOC_val_solution.csv"
ANNOTATIONS = "val_annotations.txt"
MAPPING = "LOC_synset_mapping.txt"
WORDS = "words.txt"


class ImageNet(Dataset):
    """ImageNet, or any part of it in its layout: train/<wnid>/<image>, with val by wnid too or flat with its list.

    `folder` is a path below the data root. A flat val needs its labels: LOC_val_solution.csv in the folder, or
    val_annotations.txt there or in val, with an image and its wnid a line. The development kit's own list is not read:
    what its numbers stand for is in a MATLAB file alone. val serves as test, since the labels of ImageNet's test are
    not public, and a tenth of train is cut as val by a seed that never changes. Classes are named by
    LOC_synset_mapping.txt or words.txt in the folder, else by their wnids. Images are resized and cropped to
    `image_px`.
    """

    name = "imagenet"
    task = "classification"
    num_classes = None
    default_image_px = 224
    in_memory = False
    default_augment = "resized_crop"

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)],
        image_px: Annotated[int, Field(ge=8, le=1024)] = 224,
    ) -> None:
        self.image_px = image_px
        self.place = place = folder_below(root, folder)
        for part in ("train", "val"):
            if not (place / part).is_dir():
                raise DatasetMissing(f"{place / part} is not a folder", hint="images of train lie in train/<wnid>/")
        wnids = class_names(place / "train")
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        with SideBySide() as faults:
            with faults.noting(place / "train"):
                train = class_files(root, place / "train", labels)
            with faults.noting(place / "val"):
                val = _val(root, place, labels)
        found = {"train": train, "val": val}
        self.classes = _named(root, place, wnids)
        self._splits = completed(found, place)

    def split(self, name: SplitName) -> FileSplit:
        return FileSplit(self._splits[name], self.place)


def _val(root: Path, place: Path, labels: Mapping[str, int]) -> Files:
    """By class, or flat with a list of labels."""
    names = class_names(place / "val")
    if not any(Path(name).suffix.lower() in SUFFIXES for name in names):
        return class_files(root, place / "val", labels)
    if not leads_below(root, place / "val"):
        raise DatasetCorrupt(f"{place / 'val'} is a link out of the data root")
    path, wnid_of = _solution(root, place)
    images = [name for name in names if place / "val" / name != path]
    found: list[tuple[str, int]] = []
    with SideBySide() as faults:
        for missing in sorted(wnid_of.keys() - {Path(name).stem for name in images}):
            told = f"{path} has a label of {missing[:100]!r}, which is not in {place / 'val'}"
            faults.add(DatasetMissing(told, file=path))
        for name in images:
            with faults.noting(place / "val" / name):
                found.append(_labelled(root, place / "val" / name, labels, path, wnid_of))
    return found


def _labelled(
    root: Path, image: Path, labels: Mapping[str, int], path: Path, wnid_of: Mapping[str, str]
) -> tuple[str, int]:
    check_image(root, image)
    wnid = wnid_of.get(image.stem)
    if wnid is None:
        raise DatasetCorrupt(f"{image} has no label in {path}")
    if wnid not in labels:
        raise DatasetCorrupt(f"{path} has {image.stem} in {wnid[:40]!r}, a class that train lacks")
    return str(image), labels[wnid]


def _solution(root: Path, place: Path) -> tuple[Path, dict[str, str]]:
    """The list of val's labels, and the wnid by image, without suffix."""
    if (place / SOLUTION).is_file():
        path = place / SOLUTION
        rows = [(name, boxes.split()[:1]) for name, boxes in _two_columns(path, csv.reader(_lines(root, path)[1:]))]
    else:
        found = [path for path in (place / ANNOTATIONS, place / "val" / ANNOTATIONS) if path.is_file()]
        if not found:
            raise DatasetMissing(
                f"{place / 'val'} is flat, and neither {SOLUTION} nor {ANNOTATIONS} is there with its labels",
                hint="sort the images of val into a folder a wnid",
            )
        path = found[0]
        rows = [(name, [wnid]) for name, wnid in _two_columns(path, (line.split() for line in _lines(root, path)))]
    wnids = {Path(name).stem: wnid[0] for name, wnid in rows if wnid}
    if len(wnids) < len(rows):
        raise DatasetCorrupt(f"{path} labels an image twice or not at all")
    return path, wnids


def _lines(root: Path, path: Path) -> list[str]:
    return [line for line in read_text(root, path).splitlines() if line.strip()]


def _two_columns(path: Path, rows: Iterable[Sequence[str]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if len(row) < 2:
            raise DatasetCorrupt(f"{path} has the line {str(row[:1])[:60]}; each needs an image and its class")
        yield row[0], row[1]


def _named(root: Path, place: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Names by the file that is there, in the order of the wnids; of two that are alike each with its wnid."""
    paths = [path for path in (place / MAPPING, place / WORDS) if path.is_file()]
    rows = [line.split(maxsplit=1) for line in _lines(root, paths[0])] if paths else []
    name_of = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    names = [name_of.get(wnid, wnid) for wnid in wnids]
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))
