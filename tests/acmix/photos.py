"""Folders of small pictures, no two alike, and zips of them."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, size=(12, 10)) -> Image.Image:
    """A picture like no other."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_photos(
    place: Path, *, splits: Iterable[str] = ("train", "val", "test"), images: int = 12, classes=("cat", "dog")
) -> Path:
    """So many different pictures in each class of each split."""
    seed = 0
    for split in splits:
        for name in classes:
            folder = place / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                seed += 1
                noise(seed).save(folder / f"{number}.png")
    return place


def zip_of(place: Path, file: Path, *, wrapped_in: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in place.rglob("*"):
            archive.write(path, Path(wrapped_in) / path.relative_to(place))
    return file
