"""Fashion-MNIST from its IDX files, as Debian packages them or as their authors publish them.

Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; the IDX format: http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below
from acmix.datasets._split import TensorSplit, cut, tenth
from acmix.errors import DatasetCorrupt, DatasetMissing

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
MAX_SAMPLES = 1_000_000
_UINT8 = 0x08  # IDX's code of the element type
_PREFIX = {"train": "train", "test": "t10k"}


class FashionMnist(Dataset):
    """70,000 photographs of clothing, 28x28 grey, in 10 classes; read from Debian's dataset-fashion-mnist or a folder.

    54,000 train, 6,000 val (cut from the published train by a seed that never changes) and the published 10,000 test.
    `folder` is a path below the data root with the four IDX files, gzipped or plain.
    """

    name = "fashion_mnist"
    task = "classification"
    num_classes = 10
    default_image_px = 28
    in_memory = True
    default_augment = "crop"

    classes = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    image_px = 28
    mean = (0.2860, 0.2860, 0.2860)
    std = (0.3530, 0.3530, 0.3530)

    def __init__(
        self, root: Path, *, folder: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    ) -> None:
        place = DEBIAN_FOLDER if folder is None else folder_below(root, folder)
        images_S1HW, labels_S = self._read(place, "train")
        val, train = cut(labels_S.tolist(), [tenth(len(labels_S))])
        self._splits = {
            "train": TensorSplit(images_S1HW[train], labels_S[train]),
            "val": TensorSplit(images_S1HW[val], labels_S[val]),
            "test": TensorSplit(*self._read(place, "test")),
        }

    def split(self, name: SplitName) -> TensorSplit:
        return self._splits[name]

    def _read(self, place: Path, part: str) -> tuple[Tensor, Tensor]:
        """Images (S, 1, 28, 28) and labels (S,) of a published part."""
        images_path = _find(place, f"{_PREFIX[part]}-images-idx3-ubyte")
        labels_path = _find(place, f"{_PREFIX[part]}-labels-idx1-ubyte")
        images_SHW = read_idx(images_path, sides=(self.image_px, self.image_px))
        labels_S = read_idx(labels_path).long()
        if len(images_SHW) != len(labels_S):
            raise DatasetCorrupt(f"{labels_path} has {len(labels_S)} labels for {len(images_SHW)} images")
        if labels_S.max() >= self.num_classes:
            raise DatasetCorrupt(f"{labels_path} has label {int(labels_S.max())}; labels are 0 to 9")
        return images_SHW.unsqueeze(1), labels_S


def read_idx(path: Path, *, sides: tuple[int, ...] = ()) -> Tensor:
    """The uint8 array (S, *sides) of an IDX file, gzipped if it ends in .gz; DatasetCorrupt where it is another."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read_array(file, path, sides)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DatasetCorrupt(f"{path} cannot be unzipped: {error}") from None


def _find(place: Path, name: str) -> Path:
    for path in (place / f"{name}.gz", place / name):
        if path.is_file():
            return path
    raise DatasetMissing(
        f"neither {place / name}.gz nor {name} is there",
        hint="install Debian's package dataset-fashion-mnist, or name a folder below the data root",
    )


def _read_array(file: BinaryIO | gzip.GzipFile, path: Path, sides: tuple[int, ...]) -> Tensor:
    """Reads no more than the header promises, and the header no more than is expected: a zip bomb stays small."""
    dims = 1 + len(sides)
    header = file.read(4 * (1 + dims))
    magic = bytes([0, 0, _UINT8, dims])
    if header[:4] != magic or len(header) < 4 * (1 + dims):
        raise DatasetCorrupt(
            f"{path} begins with {header[:4].hex()}; an IDX file of {dims} dimensions with {magic.hex()}"
        )
    samples, *found = np.frombuffer(header, dtype=">u4", offset=4).tolist()
    if tuple(found) != sides or not 0 < samples <= MAX_SAMPLES:
        raise DatasetCorrupt(f"{path} has shape {(samples, *found)}; expected are up to {MAX_SAMPLES} of {sides}")
    size_bytes = samples * math.prod(sides)
    content = bytearray(file.read(size_bytes + 1))
    if len(content) != size_bytes:
        than = "fewer" if len(content) < size_bytes else "more"
        raise DatasetCorrupt(f"{path} holds {than} bytes than the {size_bytes} that its header promises")
    return torch.frombuffer(content, dtype=torch.uint8).view(samples, *sides)
