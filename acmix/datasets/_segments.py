"""COCO's outlines of objects, polygons and run lengths, checked and packed into whole numbers, and drawn as masks.

Source: the "Data format" page of cocodataset.org; the letters of compressed run lengths are those of its maskApi.
A packed outline is: how many polygons, the numbers of coordinates of each, then x and y of each corner in thousandths
of a pixel, which decimal files round trip exactly; or 0, then the run lengths. One that is empty is no outline.
"""

# Shapes: H W image, R run lengths, D digits

from array import array
from contextlib import suppress
from itertools import accumulate, pairwise
from reprlib import repr as shortened
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from acmix.datasets._images import Size

PARTS_OF_PIXEL = 1000
_CODE = "i"  # of array: four bytes


def slim(segmentation: Any) -> Any:
    """The same with its polygons in arrays, a quarter of the memory, where they are of numbers; else as it is."""
    with suppress(TypeError, ValueError):
        return [_numbers(polygon) for polygon in segmentation]
    return segmentation


def packed(segmentation: Any, size: Size) -> bytes:
    """The outline of an annotation of an image of that width and height; ValueError says what is wrong with it."""
    if segmentation in (None, [], [[]]):
        return b""
    if isinstance(segmentation, dict):
        return array(_CODE, [0, *_run_lengths(segmentation, size)]).tobytes()
    if not isinstance(segmentation, list):
        raise ValueError("segmentation must be a list of polygons or an object of size and counts")
    return _polygons([_numbers(polygon) for polygon in segmentation], size)


def mask(outline: NDArray[np.int32], size: Size) -> NDArray[np.uint8]:
    """The packed outline drawn, uint8 (H, W) of 0 and 1, as COCO's own tools draw it."""
    width, height = size
    polygons = int(outline[0])
    if not polygons:
        inside_R = np.arange(len(outline) - 1, dtype=np.uint8) % 2
        return np.repeat(inside_R, outline[1:]).reshape(width, height).T
    starts = accumulate(outline[1 : 1 + polygons].tolist(), initial=1 + polygons)
    corners = [(outline[start:end] / PARTS_OF_PIXEL).tolist() for start, end in pairwise(starts)]
    drawn: NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(corners, height, width)))
    return drawn


def _numbers(polygon: Any) -> "array[float]":
    if isinstance(polygon, array):
        return polygon
    if not isinstance(polygon, list):
        raise ValueError("segmentation must be a list of polygons or an object of size and counts")
    if not {*map(type, polygon)} <= {int, float}:
        raise ValueError("a polygon has a coordinate that is not a number")
    try:
        return array("d", polygon)
    except OverflowError:
        raise ValueError("a polygon has a coordinate without end") from None


def _polygons(polygons: "list[array[float]]", size: Size) -> bytes:
    lengths = [len(polygon) for polygon in polygons]
    for length in lengths:
        if length < 6 or length % 2:
            raise ValueError(f"a polygon has {length} numbers; it needs x and y of three corners or more")
    values = np.concatenate(polygons) if len(polygons) > 1 else np.asarray(polygons[0])
    # A corner far outside would be drawn in as many steps as it is away. NaN is not within either.
    if not np.abs(values).max() <= 2 * max(size):
        raise ValueError(f"a polygon has a coordinate beyond twice the image's longer side, {max(size)} px")
    thousandths: NDArray[np.int32] = np.rint(values * PARTS_OF_PIXEL).astype(np.int32)
    return array(_CODE, [len(lengths), *lengths]).tobytes() + thousandths.tobytes()


def _run_lengths(segmentation: dict[str, Any], size: Size) -> list[int]:
    width, height = size
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"run lengths of size {shortened(segmentation.get('size'))}; height and width are {height}, {width}"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or not {*map(type, counts)} <= {int}:
        raise ValueError("counts of run lengths must be whole numbers or a string")
    if any(count < 0 for count in counts):
        raise ValueError(f"a run length is {min(counts)}; none may be negative")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths sum to {sum(counts)}; the image has {height * width} pixels")
    return counts


def _uncompressed(letters: str) -> list[int]:
    """Counts from their letters: five bits each, lowest first, a sixth where more follow, the last's highest a sign.

    From the fourth on a count is written as its difference to the one before the last.
    """
    digits_D = np.frombuffer(letters.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    if not len(digits_D) or digits_D.min() < 0 or digits_D.max() > 63 or digits_D[-1] & 32:
        raise ValueError(f"counts {shortened(letters)} are no compressed run lengths")
    last_R = np.flatnonzero(~digits_D & 32)
    first_R = np.concatenate([[0], last_R[:-1] + 1])
    place_D = np.arange(len(digits_D)) - np.repeat(first_R, last_R - first_R + 1)
    if place_D.max() > 6:  # 35 bits: more than any image has pixels
        raise ValueError(f"counts {shortened(letters)} are no compressed run lengths: a number does not end")
    values_R = np.add.reduceat((digits_D & 31) << (5 * place_D), first_R)
    negative_R = (digits_D[last_R] & 16) > 0
    values_R -= negative_R * (np.int64(1) << (5 * (last_R - first_R + 1)))
    values_R[1::2] = values_R[1::2].cumsum()
    values_R[2::2] = values_R[2::2].cumsum()
    counts: list[int] = values_R.tolist()
    return counts
