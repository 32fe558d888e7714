"""COCO's instances files: read once, checked, and kept as a few tensors."""

# Shapes: I images, A annotations, O numbers of all outlines

import gc
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acmix.datasets._files import read_text
from acmix.datasets._images import Size
from acmix.datasets._objects import Objects, clipped, objects
from acmix.datasets._segments import mask, packed, slim
from acmix.datasets._side_by_side import SideBySide
from acmix.errors import DatasetCorrupt

MAX_BYTES = 2**31
MAX_SIDE_PX = 2**15
MAX_ID = 2**63 - 1
_LARGEST = 1e100
Images = Mapping[int, tuple[str, Size]]  # by id: the file below the folder of images, width and height
_TOP = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Index:
    """What one instances file says. Labels are numbers of `categories`; outlines lie one after another."""

    path: Path
    files: Sequence[str]  # of the images, below their folder
    sizes: Tensor  # int64 (I, 2): width and height
    objects: Objects
    ids: Tensor  # int64 (A,)
    outline_starts: Tensor  # int64 (A + 1,)
    outlines: Tensor  # int32 (O,)

    def size(self, image: int) -> Size:
        width, height = self.sizes[image].tolist()
        return width, height

    def mask(self, row: int, size: Size) -> Tensor | None:
        """The mask of that annotation, uint8 (H, W), or None where it has no outline."""
        outline = self.outlines[int(self.outline_starts[row]) : int(self.outline_starts[row + 1])]
        return torch.from_numpy(np.ascontiguousarray(mask(outline.numpy(), size))) if len(outline) else None

    def has_outlines(self) -> bool:
        """Whether every object has an outline; crowds may lack theirs."""
        return not ((self.outline_starts.diff() == 0) & ~self.objects.crowd).any()


def read_document(root: Path, path: Path) -> dict[str, Any]:
    """The file's object, with the polygons of its annotations in arrays; DatasetCorrupt names the file."""
    text = read_text(root, path, limit_bytes=MAX_BYTES)
    try:
        with _uncollected():
            document = json.loads(text, object_hook=_slimmed)
    except RecursionError:
        raise DatasetCorrupt(f"{path} is nested too deep to be an instances file") from None
    except ValueError as error:
        raise DatasetCorrupt(f"{path} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise DatasetCorrupt(f"{path} holds a {type(document).__name__}, not an object of {', '.join(_TOP)}")
    for key in _TOP:
        rows = document.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DatasetCorrupt(f"{path} has no list of objects named {key}")
        if not rows and key != "annotations":
            raise DatasetCorrupt(f"{path} has an empty list of {key}")
    return document


def categories(path: Path, document: Mapping[str, Any]) -> dict[int, str]:
    """Names by id, in the order of the ids, which may have gaps."""
    found: dict[int, str] = {}
    with SideBySide() as faults:
        for row in document["categories"]:
            with faults.noting():
                number, name = _id(path, "category", row), row.get("name")
                if not isinstance(name, str) or not name.strip() or not name.isprintable():
                    told = f"{path}: category {number} has the name {shortened(name)}; it needs a printable text"
                    raise DatasetCorrupt(told)
                if number in found:
                    raise DatasetCorrupt(f"{path}: category id {number} stands there twice")
                found[number] = name
    return dict(sorted(found.items()))


def read_images(path: Path, document: Mapping[str, Any]) -> Images:
    """File names and sizes by id, in the order of the ids; DatasetCorrupt names the ids of what cannot be."""
    found: dict[int, tuple[str, Size]] = {}
    with SideBySide() as faults:
        for row in document["images"]:
            try:
                number, name, size = _image(path, row)
                if number in found:
                    raise DatasetCorrupt(f"{path}: image id {number} stands there twice")
                found[number] = name, size
            except DatasetCorrupt as error:
                faults.add(error)
    return dict(sorted(found.items()))


def read_index(
    path: Path, document: Mapping[str, Any], images: Images, labels: Mapping[int, int], *, drop_empty: bool
) -> Index:
    """The images with the document's annotations; `labels` gives the class of a category's id.

    DatasetCorrupt names the file, the id and the value of what cannot be; `drop_empty` passes over boxes without area.
    """
    numbers = {identity: number for number, identity in enumerate(images)}
    annotations = _Annotations(path, document["annotations"], numbers, labels)
    files, sizes = zip(*images.values(), strict=True)
    return annotations.index(files, np.array(sizes, dtype=np.int64), drop_empty=drop_empty)


def _image(path: Path, row: Mapping[str, Any]) -> tuple[int, str, Size]:
    """Id, file name and size."""
    number, name, size = _id(path, "image", row), row.get("file_name"), (row.get("width"), row.get("height"))
    if not isinstance(name, str):
        raise DatasetCorrupt(f"{path}: image {number} has no file_name")
    if not all(type(side) is int and 0 < side <= MAX_SIDE_PX for side in size):
        raise DatasetCorrupt(
            f"{path}: image {number} is {shortened(size[0])} wide and {shortened(size[1])} high; "
            f"width and height are whole numbers from 1 to {MAX_SIDE_PX}"
        )
    return number, name, (row["width"], row["height"])


class _Annotations:
    """The columns of `annotations`, as the file has them, each value checked by itself."""

    def __init__(
        self,
        path: Path,
        rows: Sequence[Mapping[str, Any]],
        numbers: Mapping[int, int],  # of images, by id
        labels: Mapping[int, int],  # by category's id
    ) -> None:
        self.path = path
        self.ids, self.images, self.labels = array("q"), array("q"), array("q")
        self.crowd, self.boxes, self.areas = array("b"), array("d"), array("d")
        self.segmentations: list[Any] = []
        with SideBySide() as faults:
            for row in rows:
                try:
                    self._append(row, numbers, labels)
                except DatasetCorrupt as error:
                    faults.add(error)
            ids, times = np.unique(_column(self.ids), return_counts=True)
            for identity in ids[times > 1].tolist():
                faults.add(DatasetCorrupt(f"{path}: annotation id {identity} stands there twice"))

    def index(self, files: Sequence[str], sizes_I2: NDArray[np.int64], *, drop_empty: bool) -> Index:
        """Rows in the order of the images, boxes cut to their images, outlines packed."""
        images_A, crowd_A = _column(self.images), _column(self.crowd).astype(np.bool_)
        boxes_A4 = np.array(self.boxes).reshape(-1, 4)
        boxes_A4[:, 2:] += boxes_A4[:, :2]
        with SideBySide() as faults:

            def refuse(row: int, sentence: str) -> None:
                hint = "correct or remove it, or set the option empty_boxes to drop"
                faults.add(self._fault(self.ids[row], sentence, hint))

            boxes_A4, real_A = clipped(boxes_A4, sizes_I2[images_A], refuse, forgiven_A=crowd_A | drop_empty)
            order_A = np.argsort(images_A, kind="stable")
            rows_A = order_A[real_A[order_A]]
            outlines = self._outlines(rows_A, list(map(tuple, sizes_I2.tolist())), faults)
        starts_A = np.cumsum([0, *map(len, outlines)]) // 4
        areas_A = _completed(_column(self.areas)[rows_A], boxes_A4[rows_A], np.diff(starts_A))
        labels_A = _column(self.labels)[rows_A]
        return Index(
            path=self.path,
            files=files,
            sizes=torch.from_numpy(sizes_I2),
            objects=objects(images_A[rows_A], boxes_A4[rows_A], labels_A, areas_A, crowd_A[rows_A], images=len(files)),
            ids=torch.from_numpy(_column(self.ids)[rows_A]),
            outline_starts=torch.from_numpy(starts_A),
            outlines=torch.from_numpy(np.frombuffer(bytearray(b"".join(outlines)), dtype=np.int32)),
        )

    def _append(self, row: Mapping[str, Any], numbers: Mapping[int, int], labels: Mapping[int, int]) -> None:
        """All of a row or nothing of it."""
        identity = _id(self.path, "annotation", row)
        image, label = self._known(row, "image_id", numbers), self._known(row, "category_id", labels)
        crowd, box, area = self._crowd(row), self._box(row), self._area(row)
        self.ids.append(identity)
        self.images.append(image)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.boxes.extend(box)
        self.areas.append(area)
        self.segmentations.append(row.get("segmentation"))

    def _known(self, row: Mapping[str, Any], key: str, known: Mapping[int, int]) -> int:
        value = row.get(key)
        if type(value) is not int or value not in known:
            what = "images" if key == "image_id" else "categories"
            self._refuse(row["id"], f"{key} {shortened(value)} is none of {what}")
        return known[value]

    def _crowd(self, row: Mapping[str, Any]) -> int:
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            self._refuse(row["id"], f"iscrowd is {shortened(crowd)}; it is 0 or 1")
        return int(crowd)

    def _box(self, row: Mapping[str, Any]) -> list[float]:
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            self._refuse(row["id"], f"bbox {shortened(box)} is not four finite numbers: left, top, width, height")
        return box

    def _area(self, row: Mapping[str, Any]) -> float:
        area = row.get("area")
        if area is None:
            return math.nan
        if not _finite(area) or area < 0:
            self._refuse(row["id"], f"area {shortened(area)} is no finite number from 0 on")
        return float(area)

    def _outlines(self, rows_A: NDArray[np.intp], sizes: Sequence[Size], faults: SideBySide) -> list[bytes]:
        """Of those rows, packed; those that cannot be are among the faults."""
        found = []
        for row in rows_A.tolist():
            segmentation, self.segmentations[row] = self.segmentations[row], None  # not kept twice
            try:
                found.append(packed(segmentation, sizes[self.images[row]]))
            except ValueError as error:
                faults.add(self._fault(self.ids[row], str(error)))
        return found

    def _refuse(self, identity: int, sentence: str) -> NoReturn:
        raise self._fault(identity, sentence)

    def _fault(self, identity: int, sentence: str, hint: str | None = None) -> DatasetCorrupt:
        return DatasetCorrupt(f"{self.path}: annotation {identity}: {sentence}", hint=hint)


def _completed(
    areas_A: NDArray[np.float64], boxes_A4: NDArray[np.float64], outline_numbers_A: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Where the file gives none, the box's area; left open where the outline will tell."""
    box_areas_A = (boxes_A4[:, 2:] - boxes_A4[:, :2]).prod(axis=1)
    return np.where(np.isnan(areas_A) & (outline_numbers_A == 0), box_areas_A, areas_A)


def _id(path: Path, what: str, row: Mapping[str, Any]) -> int:
    value = row.get("id")
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise DatasetCorrupt(
            f"{path}: a{'n' * (what[0] in 'ai')} {what} has the id {shortened(value)}; ids are whole numbers from 0 on"
        )
    return value


def _finite(value: object) -> bool:
    return type(value) in {int, float} and abs(value) <= _LARGEST  # type: ignore[arg-type]  # not so for NaN either


def _column(values: "array[Any]") -> NDArray[Any]:
    return np.asarray(values)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: nothing that is parsed is garbage, and it would be searched over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _slimmed(row: dict[str, Any]) -> dict[str, Any]:
    """As they are parsed: the lists of a whole file's numbers would take gigabytes."""
    if "segmentation" in row:
        row["segmentation"] = slim(row["segmentation"])
    return row
