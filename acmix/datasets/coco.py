"""Objects in photographs, in the layout and the file format of COCO.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context"; the "Data format" page of cocodataset.org.
"""

# Shapes: N objects of an image, H W image

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from acmix.datasets._coco_index import Index, categories, read_document, read_images, read_index
from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import check_files, folder_below
from acmix.datasets._images import Size, read_annotated_image
from acmix.datasets._side_by_side import SideBySide
from acmix.datasets._split import complete
from acmix.errors import DatasetCorrupt, DatasetMissing

# what a part's own name may be; the first is the one that messages tell
PARTS = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "val2017", "val2014", "valid"),
    "test": ("test", "test2017", "test2014"),
}


class Part(NamedTuple):
    """A part that is there: its index and its folder of images, below the data set's."""

    instances: Index
    images: str


class CocoSplit:
    """Some of the images of a part, read from their files when asked for."""

    def __init__(self, place: Path, part: Part, indices: Sequence[int], *, has_masks: bool) -> None:
        self.place = place
        self.index, self.images = part
        self.indices = indices
        self.has_masks = has_masks

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.indices[index]
        size = self.index.size(number)
        image = read_annotated_image(self.place / self.source(index), size, told_by=str(self.index.path))
        target = self.index.objects.target(number)
        open_areas_N = target["areas"].isnan()
        if self.has_masks or open_areas_N.any():
            masks = self._masks(number, size)
            target["areas"][open_areas_N] = masks.sum(dim=(1, 2)).float()[open_areas_N]
            if self.has_masks:
                target["masks"] = masks
        return image, target

    def source(self, index: int) -> str:
        return f"{self.images}/{self.index.files[self.indices[index]]}"

    def _masks(self, number: int, size: Size) -> Tensor:
        """uint8 (N, H, W). What has no outline fills its box."""
        rows = self.index.objects.rows(number)
        masks = [self._mask(row, size) for row in range(rows.start, rows.stop)]
        return torch.stack(masks) if masks else torch.zeros((0, size[1], size[0]), dtype=torch.uint8)

    def _mask(self, row: int, size: Size) -> Tensor:
        drawn = self.index.mask(row, size)
        if drawn is None:
            left, top, right, bottom = self.index.objects.boxes[row].tolist()
            drawn = torch.zeros((size[1], size[0]), dtype=torch.uint8)
            drawn[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
        return drawn


class Coco(Dataset):
    """Objects with boxes, and masks where there are any, in COCO's layout: images and one JSON file a part.

    `folder` is a path below the data root with train2017, val2017 and annotations/instances_train2017.json, as COCO is
    published; or train, val and annotations/train.json or instances_train.json; or train/_annotations.coco.json among
    the images of train. Without test, val serves as test; a val that is missing or so used is cut from train, a tenth
    by a seed that never changes, and so is a test where there is neither. The shorter side is resized to `image_px`.

    A box without area is refused, and named by its annotation's id, unless `empty_boxes` is "drop": COCO's own
    train2017 has two. Of a crowd it is passed over. Masks are given if each object has an outline, crowds aside.
    """

    name = "coco"
    task = "detection"
    num_classes = None
    default_image_px = 800
    in_memory = False
    default_augment = "flip_resize"

    mean = (0.485, 0.456, 0.406)  # ImageNet's, as is the custom
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)],
        image_px: Annotated[int, Field(ge=32, le=2048)] = 800,
        empty_boxes: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        self.image_px = image_px
        self.place = place = folder_below(root, folder)
        names: dict[int, str] = {}
        self._parts: dict[str, Part] = {}
        with SideBySide() as faults:
            for part in PARTS:
                with faults.noting():
                    if files := _files(place, part):
                        names, self._parts[part] = _read(root, place, *files, names, drop_empty=empty_boxes == "drop")
        if not len(self._parts["train"].instances.ids):
            raise DatasetCorrupt(f"{self._parts['train'].instances.path} has no annotations")
        self.classes = tuple(names.values())
        self.has_masks = all(part.instances.has_outlines() for part in self._parts.values())
        labels = {part: found.instances.objects.commonest_labels() for part, found in self._parts.items()}
        self._splits = complete(labels, f"train of {place}")

    def split(self, name: SplitName) -> CocoSplit:
        part, indices = self._splits[name]
        return CocoSplit(self.place, self._parts[part], indices, has_masks=self.has_masks)


def _files(place: Path, part: str) -> tuple[Path, str] | None:
    """The part's instances file and its folder of images, below the place; None where it has no such file."""
    found = [
        (file, name)
        for name in PARTS[part]
        for file in (
            place / name / "_annotations.coco.json",
            place / "annotations" / f"{name}.json",
            place / "annotations" / f"instances_{name}.json",
        )
        if file.is_file()
    ]
    if len(found) > 1:
        raise DatasetCorrupt(f"both {found[0][0]} and {found[1][0]} are there; leave the one that is meant")
    if not found:
        if part == "train":
            raise DatasetMissing(
                f"{place} has no instances file of train",
                hint="one is annotations/instances_train2017.json, annotations/train.json or "
                "train/_annotations.coco.json",
            )
        return None
    file, name = found[0]
    for images in (name, f"images/{name}", "images"):
        if (place / images).is_dir():
            return file, images
    raise DatasetMissing(f"{place / name}, with the images of {file}, is not a folder")


def _read(
    root: Path, place: Path, file: Path, images: str, names: Mapping[int, str], *, drop_empty: bool
) -> tuple[dict[int, str], Part]:
    """Names of categories by id, those of train where there are such already, and the part."""
    with SideBySide() as faults, faults.noting(file):
        document = read_document(root, file)
        own = categories(file, document)
        names = dict(names) or own
        _check_same(file, own, names)
        labels, found = {number: label for label, number in enumerate(names)}, read_images(file, document)
        with faults.noting(file):
            index = read_index(file, document, found, labels, drop_empty=drop_empty)
        check_files(root, place / images, (name for name, _ in found.values()), told_by=str(file))
    return names, Part(index, images)


def _check_same(file: Path, own: Mapping[int, str], names: Mapping[int, str]) -> None:
    """Whether a part's categories are those of train."""
    with SideBySide() as faults:
        for number, name in own.items():
            if names.get(number) != name:
                told = f"{file}: category {number} is {name!r}; in train it is {names.get(number)!r}"
                faults.add(DatasetCorrupt(told))
