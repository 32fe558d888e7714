"""Annotation files of Pascal VOC: one XML file an image, read without trust."""

import math
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from acmix.datasets._files import read_bytes
from acmix.datasets._images import Size
from acmix.datasets._side_by_side import SideBySide
from acmix.errors import DatasetCorrupt


class VocObject(NamedTuple):
    """An object of an image: its class, its box in pixels, right and bottom not within it, and whether it is hard."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class Annotation(NamedTuple):
    """What one file says; the size is None where it says none."""

    size: Size | None
    objects: list[VocObject]


def read_annotation(root: Path, path: Path) -> Annotation:
    """The size and objects of an image; DatasetCorrupt and DatasetMissing name the file and the object."""
    try:
        tree: Element = fromstring(read_bytes(root, path))
    except DefusedXmlException:
        raise DatasetCorrupt(f"{path} defines entities, which no annotation needs; remove its DOCTYPE") from None
    except (ParseError, ValueError, LookupError) as error:  # LookupError: of an encoding
        raise DatasetCorrupt(f"{path} is no XML: {error}") from None
    if tree.tag != "annotation":
        raise DatasetCorrupt(f"{path} holds a {tree.tag[:40]!r}, not an annotation")
    with SideBySide() as faults:
        with faults.noting():
            size = _size(path, tree)
        objects = []
        for number, element in enumerate(tree.findall("object"), start=1):
            with faults.noting():
                objects.append(_object(path, number, element))
    return Annotation(size, objects)


def _size(path: Path, tree: Element) -> Size | None:
    """Some tools leave the size out, some write 0."""
    sides = [tree.findtext(f"size/{side}", "0").strip() for side in ("width", "height")]
    if not all(side.isascii() and side.isdigit() and len(side) < 10 for side in sides):
        raise DatasetCorrupt(f"{path} has the size {'x'.join(sides)[:40]}, which is not of whole numbers")
    width, height = map(int, sides)
    return (width, height) if width and height else None


def _object(path: Path, number: int, element: Element) -> VocObject:
    name = element.findtext("name", "").strip()
    if not name or not name.isprintable():
        _refuse(path, number, f"its name is {name[:40]!r}; it needs a printable text")
    left, top, right, bottom = (_side(path, number, element, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.findtext("difficult", "0").strip()
    if difficult not in {"0", "1"}:
        _refuse(path, number, f"difficult is {difficult[:20]!r}; it is 0 or 1")
    # pixels are counted from 1, and the last ones belong to the object
    return VocObject(name, (left - 1, top - 1, right, bottom), difficult == "1")


def _side(path: Path, number: int, element: Element, side: str) -> float:
    text = element.findtext(f"bndbox/{side}", "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _refuse(path, number, f"{side} is {text[:40]!r}, not a finite number")
    return value


def _refuse(path: Path, number: int, sentence: str) -> NoReturn:
    raise DatasetCorrupt(f"{path}: object {number}: {sentence}")
