"""Objects in photographs, in the layout and the file format of Pascal VOC.

Source: Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", and its development kit.
"""

# Shapes: I images, A objects of all images, N objects of one image, H W image

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import check_files, folder_below, read_text
from acmix.datasets._images import SUFFIXES, Size, read_annotated_image, stored_size
from acmix.datasets._label_maps import read_label_map
from acmix.datasets._objects import Objects, clipped, objects
from acmix.datasets._side_by_side import SideBySide
from acmix.datasets._split import complete
from acmix.datasets._voc_annotations import Annotation, read_annotation
from acmix.errors import DatasetCorrupt, DatasetMissing

Annotations = Mapping[str, Annotation]  # by image file
VOID = 255
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class Part:
    """The image files of a list, their sizes, and their objects."""

    files: Sequence[str]  # in JPEGImages
    sizes: Sequence[Size]
    objects: Objects


class VocSplit:
    """Some of the images of a part, read from their files when asked for."""

    def __init__(self, place: Path, part: Part, indices: Sequence[int], *, has_masks: bool) -> None:
        self.place = place
        self.part = part
        self.indices = indices
        self.has_masks = has_masks

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.indices[index]
        name, size = Path(self.part.files[number]).stem, self.part.sizes[number]
        told_by = str(self.place / "Annotations" / f"{name}.xml")
        image = read_annotated_image(self.place / self.source(index), size, told_by=told_by)
        target = self.part.objects.target(number)
        if self.has_masks:
            masks = _masks(self.place / "SegmentationObject" / f"{name}.png", size, len(target["labels"]))
            target["masks"] = masks
            target["areas"] = masks.sum(dim=(1, 2)).float()
            target["crowd"] |= target["areas"] == 0
        return image, target

    def source(self, index: int) -> str:
        return f"JPEGImages/{self.part.files[self.indices[index]]}"


class Voc(Dataset):
    """Objects with boxes, and with `masks` their masks, in Pascal VOC's layout.

    `folder` is a path below the data root, VOCdevkit/VOC2012 say, with JPEGImages, Annotations and the lists in
    ImageSets/Main. Without train.txt, trainval.txt is train. Without test, val serves as test; a val that is missing or
    so used is cut from train, a tenth by a seed that never changes, and so is a test where there is neither. Classes
    are VOC's twenty, or if there are others those found, sorted. Objects marked difficult are neither trained on nor
    judged, unless `difficult` is "keep". The shorter side is resized to `image_px`.

    With `masks`, images are those of the lists in ImageSets/Segmentation, and object i of an annotation is value i in
    the image's PNG in SegmentationObject; an object without a pixel there is taken for a difficult one.
    """

    name = "voc"
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
        difficult: Literal["ignore", "keep"] = "ignore",
        masks: bool = False,
    ) -> None:
        self.image_px = image_px
        self.has_masks = masks
        self.place = place = folder_below(root, folder)
        lists = _lists(place / "ImageSets" / ("Segmentation" if masks else "Main"))
        files = _files(place / "JPEGImages")
        found: dict[str, Annotations] = {}
        with SideBySide() as faults:
            for part, path in lists.items():
                with faults.noting(path):
                    found[part] = _read(root, place, path, files, masks=masks)
        self.classes = _classes(found.values())
        if not self.classes:
            raise DatasetCorrupt(f"the annotations of {place} have no objects")
        labels = {name: label for label, name in enumerate(self.classes)}
        self._parts: dict[str, Part] = {}
        with SideBySide() as faults:
            for part, one in found.items():
                with faults.noting():
                    self._parts[part] = _part(place, one, labels, ignore=difficult == "ignore")
        commonest = {part: one.objects.commonest_labels() for part, one in self._parts.items()}
        self._splits = complete(commonest, f"train of {place}")

    def split(self, name: SplitName) -> VocSplit:
        part, indices = self._splits[name]
        return VocSplit(self.place, self._parts[part], indices, has_masks=self.has_masks)


def _lists(folder: Path) -> dict[str, Path]:
    """The list of every part that is there."""
    files = {part: folder / f"{part}.txt" for part in ("train", "val", "test")}
    if not files["train"].is_file():
        files = {"train": folder / "trainval.txt", "test": files["test"]}  # val is part of trainval
    if not files["train"].is_file():
        raise DatasetMissing(f"neither {folder / 'train.txt'} nor trainval.txt is there")
    return {part: path for part, path in files.items() if path.is_file()}


def _files(folder: Path) -> dict[str, str]:
    """Image files by name without suffix."""
    if not folder.is_dir():
        raise DatasetMissing(f"{folder} is not a folder")
    return {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _read(root: Path, place: Path, path: Path, files: Mapping[str, str], *, masks: bool) -> Annotations:
    """The annotations of a list, in its order. What it names must lie in every folder."""
    names = [line.strip() for line in read_text(root, path).splitlines() if line.strip()]
    if not names:
        raise DatasetCorrupt(f"{path} lists no images")
    images = {name: files.get(name, f"{name}.jpg") for name in names}
    with SideBySide() as faults:
        for name, times in Counter(names).items():
            if times > 1:
                faults.add(DatasetCorrupt(f"{path} lists {name[:100]!r} twice"))
        with faults.noting():
            check_files(root, place / "JPEGImages", images.values(), told_by=str(path))
        with faults.noting():
            check_files(root, place / "Annotations", (f"{name}.xml" for name in images), told_by=str(path))
        if masks:
            check_files(root, place / "SegmentationObject", (f"{name}.png" for name in images), told_by=str(path))
    found: dict[str, Annotation] = {}
    with SideBySide() as faults:
        for name, image in images.items():
            path = place / "Annotations" / f"{name}.xml"
            with faults.noting(path):
                found[image] = read_annotation(root, path)
    return found


def _classes(parts: Iterable[Annotations]) -> tuple[str, ...]:
    names = {each.name for part in parts for annotation in part.values() for each in annotation.objects}
    return CLASSES if names and names <= set(CLASSES) else tuple(sorted(names))


def _part(place: Path, annotations: Annotations, labels: Mapping[str, int], *, ignore: bool) -> Part:
    """Boxes cut to their images; one that is then empty is named by its file and its place there."""
    files = list(annotations)
    sizes = [one.size or stored_size(place / "JPEGImages" / file) for file, one in annotations.items()]
    found = [
        (image, number, each)
        for image, one in enumerate(annotations.values())
        for number, each in enumerate(one.objects, 1)
    ]
    images_A = np.array([image for image, _, _ in found], dtype=np.int64)

    boxes_A4 = np.array([each.box for *_, each in found], dtype=np.float64).reshape(-1, 4)
    sizes_A2 = np.array(sizes, dtype=np.int64)[images_A]
    with SideBySide() as faults:

        def refuse(row: int, sentence: str) -> None:
            image, number, _ = found[row]
            path = (place / "Annotations" / files[image]).with_suffix(".xml")
            faults.add(DatasetCorrupt(f"{path}: object {number}: {sentence}", file=path))

        boxes_A4, _ = clipped(boxes_A4, sizes_A2, refuse, forgiven_A=np.zeros(len(found), dtype=np.bool_))
    return Part(
        files,
        sizes,
        objects(
            images_A,
            boxes_A4,
            np.array([labels[each.name] for *_, each in found], dtype=np.int64),
            (boxes_A4[:, 2:] - boxes_A4[:, :2]).prod(axis=1),
            np.array([ignore and each.difficult for *_, each in found], dtype=np.bool_),
            images=len(sizes),
        ),
    )


def _masks(path: Path, size: Size, count: int) -> Tensor:
    """uint8 (N, H, W): of object i the pixels of value i, counted from 1."""
    values_HW = read_label_map(path)
    height, width = values_HW.shape
    if (width, height) != size:
        raise DatasetCorrupt(f"{path} has {width}x{height} px; its annotation says {size[0]}x{size[1]}")
    for value in np.unique(values_HW).tolist():
        if value > count and value != VOID:
            raise DatasetCorrupt(f"{path} has a pixel of value {value}; the annotation has {count} objects")
    numbers_N11 = np.arange(1, count + 1)[:, None, None]
    return torch.from_numpy(((values_HW == numbers_N11) & (numbers_N11 != VOID)).astype(np.uint8))
