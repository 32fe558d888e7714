"""Scenes composed of real images: cut-outs, such as scans of digits, painted on crops of photographs.

Which cut-outs, where, how large, in which colours and on which crop: all derives from a scene's split and number, so a
scene is the same for ever and is made when it is asked for. The photographs are the two that scikit-learn brings.
"""

# Shapes: S cut-outs, N objects of a scene, H W scene

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import SplitName
from acmix.errors import DatasetMissing

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
MOST_OBJECTS = 4
SIDES = (0.22, 0.45)  # of a cut-out, over the scene's
BRIGHTNESS = 0.45  # of the photographs, over what they have; cut-outs are light on them
OPAQUE = 0.5  # from this opacity on, a pixel belongs to the object
MOST_OVERLAP = 0.1  # of two objects' squares, over the smaller one's
COLOURS = (155, 255)  # the channels of a cut-out's colour
TRIES = 20  # to find a place, else the scene has one object less


ScenePx = Annotated[int, Field(ge=32, le=2048, description="side of the scenes")]
Count = Annotated[int, Field(ge=1, le=1_000_000, description="how many scenes the split has")]


@dataclass(frozen=True)
class CutOuts:
    """What scenes of one split are made of: opacities (S, side, side) and shades (S, side, side), both from 0 to 255,
    and labels (S,)."""

    opacities: NDArray[np.uint8]
    shades: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """An image, uint8 (3, H, W); which object each pixel shows, uint8 (H, W), 0 none, else its number from 1; and the
    label of each object, int64 (N,)."""

    image: Tensor
    numbers: Tensor
    labels: Tensor


class Scenes:
    """The scenes of a split, by index."""

    def __init__(self, name: str, split: SplitName, cut_outs: CutOuts, count: int, image_px: int) -> None:
        """`name` is of the data set: scenes of others are other ones."""
        self.name, self.split, self.cut_outs, self.count, self.image_px = name, split, cut_outs, count, image_px

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """The scene of that number; the same whenever and wherever it is composed."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        seed = hashlib.sha256(f"{self.name} {self.split} {index}".encode()).digest()
        return _Composition(np.random.RandomState(list(seed)), self.image_px).of(self.cut_outs)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The scene as a sample of a task (acmix.datasets._contract.Split)."""
        raise NotImplementedError

    def source(self, index: int) -> str:
        return f"scene {index} of {self.split}"


class BoxScenes(Scenes):
    """For detection: boxes around what is seen of each object, and its mask."""

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        scene = self.scene(index)
        numbers_N = torch.arange(1, len(scene.labels) + 1, dtype=torch.uint8)
        masks_NHW = (scene.numbers == numbers_N[:, None, None]).to(torch.uint8)
        return scene.image, {
            "boxes": _boxes(masks_NHW),
            "labels": scene.labels,
            "masks": masks_NHW,
            "areas": masks_NHW.sum((1, 2)).float(),
            "crowd": torch.zeros(len(masks_NHW), dtype=torch.bool),
        }


class LabelScenes(Scenes):
    """For segmentation: 0 is the background, the class of an object one more than its label."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scene(index)
        classes = torch.cat([torch.zeros(1, dtype=torch.int64), scene.labels + 1]).to(torch.uint8)
        return scene.image, classes[scene.numbers.long()]


class _Composition:
    """One scene in the making."""

    def __init__(self, random: np.random.RandomState, image_px: int) -> None:
        self.random, self.image_px = random, image_px
        self.canvas = self._background()
        self.numbers_HW = np.zeros((image_px, image_px), np.uint8)
        self.squares: list[tuple[int, int, int]] = []  # left, top, side
        self.labels: list[int] = []

    def of(self, cut_outs: CutOuts) -> Scene:
        for _ in range(self.random.randint(1, MOST_OBJECTS + 1)):
            index = self.random.randint(len(cut_outs.labels))
            place = self._place()
            if place:
                self._paint(cut_outs, index, place)
        image_HW3 = self.canvas.round().clip(0, 255).astype(np.uint8)
        return Scene(
            torch.from_numpy(image_HW3).permute(2, 0, 1).contiguous(),
            torch.from_numpy(self.numbers_HW),
            torch.tensor(self.labels, dtype=torch.int64),
        )

    def _background(self) -> NDArray[np.float64]:
        """A square of a photograph, mirrored or not, at the scene's size."""
        photograph = photographs()[self.random.randint(len(PHOTOGRAPHS))]
        side = self.random.randint(photograph.height // 4, photograph.height + 1)
        left = self.random.randint(photograph.width - side + 1)
        top = self.random.randint(photograph.height - side + 1)
        size = (self.image_px, self.image_px)
        square = photograph.resize(size, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        canvas = BRIGHTNESS * np.asarray(square, np.float64)
        mirrored: bool = self.random.rand() < 0.5
        return canvas[:, ::-1].copy() if mirrored else canvas

    def _place(self) -> tuple[int, int, int] | None:
        """Left, top and side of a square that hardly meets another; None where none is found."""
        for _ in range(TRIES):
            side = max(4, round(self.image_px * self.random.uniform(*SIDES)))
            left, top = self.random.randint(0, self.image_px - side + 1, size=2).tolist()
            if all(_overlap((left, top, side), other) <= MOST_OVERLAP for other in self.squares):
                return left, top, side
        return None

    def _paint(self, cut_outs: CutOuts, index: int, square: tuple[int, int, int]) -> None:
        """In the shades of a light colour at random."""
        left, top, side = square
        opacity_HW, shade_HW = (_enlarged(each[index], side) for each in (cut_outs.opacities, cut_outs.shades))
        here = (slice(top, top + side), slice(left, left + side))
        colour = shade_HW[..., None] * self.random.uniform(*COLOURS, size=3)
        shown_HW1 = opacity_HW[..., None]
        self.canvas[here] = (1 - shown_HW1) * self.canvas[here] + shown_HW1 * colour
        self.squares.append(square)
        self.labels.append(int(cut_outs.labels[index]))
        self.numbers_HW[here][opacity_HW >= OPAQUE] = len(self.labels)


def _enlarged(cut_out: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Or made smaller, to that side; from 0 to 1."""
    return np.asarray(Image.fromarray(cut_out).resize((side, side), Image.Resampling.BILINEAR), np.float64) / 255


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Of two squares' common area, over that of the smaller."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[2], other[1] + other[2]) - max(one[1], other[1])
    return max(0, width) * max(0, height) / min(one[2], other[2]) ** 2


def _boxes(masks_NHW: Tensor) -> Tensor:
    """Around each mask, float32 (N, 4)."""
    rows, columns = masks_NHW.any(2), masks_NHW.any(1)
    height, width = masks_NHW.shape[1:]
    left, top = columns.int().argmax(1), rows.int().argmax(1)
    right = width - columns.flip(1).int().argmax(1)
    bottom = height - rows.flip(1).int().argmax(1)
    return torch.stack([left, top, right, bottom], dim=1).float()


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The two that scikit-learn brings, 640 x 427 px each; DatasetMissing."""
    package = find_spec("sklearn")
    folder = Path(package.origin or "").parent / "datasets" / "images" if package else Path()
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise DatasetMissing(f"scikit-learn's photograph {missing[0]} is not there", hint="install scikit-learn anew")
    return tuple(Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS)
