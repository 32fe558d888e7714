"""Annotated objects of many images in a few tensors: small, and shared by loader workers instead of copied to each."""

# Shapes: I images, A annotated objects of all images, N objects of one image

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Objects:
    """Those of image i are rows starts[i] to starts[i + 1]; the columns are those of a detection target."""

    starts: Tensor  # int64 (I + 1,)
    boxes: Tensor  # float32 (A, 4): left, top, right, bottom
    labels: Tensor  # int64 (A,)
    areas: Tensor  # float32 (A,)
    crowd: Tensor  # bool (A,)

    def rows(self, image: int) -> slice:
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def target(self, image: int) -> dict[str, Tensor]:
        """What the contract calls the target of detection, without masks. Copies: what is done to it stays its own."""
        rows = self.rows(image)
        return {
            "boxes": self.boxes[rows].clone(),
            "labels": self.labels[rows].clone(),
            "areas": self.areas[rows].clone(),
            "crowd": self.crowd[rows].clone(),
        }

    def commonest_labels(self) -> list[int]:
        """By image the class of most of its objects, which `cut` shares out; 0 where there is none."""
        labels, starts = self.labels.numpy(), self.starts.tolist()
        return [_commonest(labels[start:end]) for start, end in pairwise(starts)]


def _commonest(labels_N: NDArray[np.int64]) -> int:
    return int(np.bincount(labels_N).argmax()) if len(labels_N) else 0


def objects(
    images_A: Sequence[int] | NDArray[np.int64],
    boxes_A4: NDArray[np.float64],
    labels_A: NDArray[np.int64],
    areas_A: NDArray[np.float64],
    crowd_A: NDArray[np.bool_],
    *,
    images: int,
) -> Objects:
    """Of rows in the order of their images, which are given by number; `images` is how many there are."""
    counts = np.bincount(np.asarray(images_A, dtype=np.int64), minlength=images)
    return Objects(
        torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
        torch.from_numpy(boxes_A4.astype(np.float32)),
        torch.from_numpy(labels_A),
        torch.from_numpy(areas_A.astype(np.float32)),
        torch.from_numpy(crowd_A),
    )


def clipped(
    boxes_A4: NDArray[np.float64],
    sizes_A2: NDArray[np.int64],
    fail: Callable[[int, str], None],
    *,
    forgiven_A: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes cut to their images' width and height, and which of them have an area then.

    Those that have none and are not forgiven are told to `fail`, each by its row and in a sentence.
    """
    within_A4 = np.clip(boxes_A4, 0, np.tile(sizes_A2, 2))
    single_A4 = within_A4.astype(np.float32)  # as it is kept
    real_A: NDArray[np.bool_] = np.all(single_A4[:, 2:] > single_A4[:, :2], axis=1)
    for row in np.flatnonzero(~real_A & ~forgiven_A).tolist():
        fail(row, _why_empty(boxes_A4[row], sizes_A2[row]))
    return within_A4, real_A


def _why_empty(box_4: NDArray[np.float64], size_2: NDArray[np.int64]) -> str:
    if (box_4[2:] <= box_4[:2]).any():
        return f"box {_told(box_4)} has no area: right must be over left, bottom over top"
    return f"box {_told(box_4)} lies outside of its image of {size_2[0]}x{size_2[1]} px"


def _told(box_4: NDArray[np.float64]) -> str:
    left, top, right, bottom = box_4.tolist()
    return f"{left:g},{top:g} to {right:g},{bottom:g}"
