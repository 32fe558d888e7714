"""CIFAR-10 and CIFAR-100 from their binary version.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
torchvision's readers are not used: theirs is the Python version, which is pickled, and no pickle is read from outside.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch
from torch import Tensor

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below
from acmix.datasets._split import TensorSplit, cut, tenth
from acmix.errors import DatasetCorrupt, DatasetMissing

IMAGE_PX = 32
IMAGE_BYTES = 3 * IMAGE_PX * IMAGE_PX
MAX_FILE_SAMPLES = 50_000


class _Cifar(Dataset):
    """What both have in common: records of label bytes, then red, green and blue planes."""

    task = "classification"
    num_classes: ClassVar[int]
    default_image_px = IMAGE_PX
    in_memory = True
    default_augment = "flip_crop"
    image_px = IMAGE_PX

    url: ClassVar[str]
    md5: ClassVar[str]
    folder: ClassVar[str]  # in the archive
    names_file: ClassVar[str]
    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    label_bytes: ClassVar[int]  # before each image; the last of them is the class

    def __init__(self, root: Path, *, download: bool = False) -> None:
        if download and not (root / "cifar" / self.folder).is_dir():
            self._download(root / "cifar")
        hint = f"unpack {self.url} there, or set download to true where there is a network"
        place = folder_below(root, f"cifar/{self.folder}", hint=hint)
        self.classes = self._read_names(place / self.names_file)
        images_S3HW, labels_S = self._read(place, self.train_files)
        val, train = cut(labels_S.tolist(), [tenth(len(labels_S))])
        self._splits = {
            "train": TensorSplit(images_S3HW[train], labels_S[train]),
            "val": TensorSplit(images_S3HW[val], labels_S[val]),
            "test": TensorSplit(*self._read(place, self.test_files)),
        }

    def split(self, name: SplitName) -> TensorSplit:
        return self._splits[name]

    def _read_names(self, path: Path) -> tuple[str, ...]:
        names = tuple(_read_bytes(path, limit_bytes=100_000).decode("ascii", "replace").split())
        if len(names) != self.num_classes:
            raise DatasetCorrupt(f"{path} names {len(names)} classes; there are {self.num_classes}")
        return names

    def _read(self, place: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Images (S, 3, 32, 32) and labels (S,) of these files, one after another."""
        images, labels = zip(*(self._read_file(place / name) for name in names), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _read_file(self, path: Path) -> tuple[Tensor, Tensor]:
        record_bytes = self.label_bytes + IMAGE_BYTES
        content = _read_bytes(path, limit_bytes=MAX_FILE_SAMPLES * record_bytes)
        if not content or len(content) % record_bytes:
            raise DatasetCorrupt(f"{path} has {len(content)} bytes; that is no number of {record_bytes}-byte records")
        records = torch.frombuffer(content, dtype=torch.uint8).view(-1, record_bytes)
        labels_S = records[:, self.label_bytes - 1].long()
        if labels_S.max() >= self.num_classes:
            raise DatasetCorrupt(f"{path} has label {int(labels_S.max())}; labels are 0 to {self.num_classes - 1}")
        return records[:, self.label_bytes :].reshape(-1, 3, IMAGE_PX, IMAGE_PX), labels_S

    def _download(self, place: Path) -> None:
        """Fetches and unpacks the archive beside its place, then moves it in: two that download do not meet."""
        from torchvision.datasets.utils import download_and_extract_archive

        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place, prefix="download-") as temporary:
            try:
                download_and_extract_archive(self.url, temporary, md5=self.md5)
            except (OSError, RuntimeError) as error:  # no network; another archive than the md5's
                raise DatasetMissing(f"{self.url} could not be downloaded to {place}: {error}") from None
            if not (place / self.folder).exists():
                (Path(temporary) / self.folder).rename(place / self.folder)


class Cifar10(_Cifar):
    """60,000 photographs of animals and vehicles, 32x32 colour, in 10 classes; from their binary files.

    45,000 train, 5,000 val (cut from the published train by a seed that never changes) and the published 10,000 test,
    in `cifar/cifar-10-batches-bin` below the data root. With `download` they are fetched, 170 MB, where there is a
    network.
    """

    name = "cifar10"
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    folder = "cifar-10-batches-bin"
    names_file = "batches.meta.txt"
    train_files = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    test_files = ("test_batch.bin",)
    label_bytes = 1


class Cifar100(_Cifar):
    """60,000 photographs of everyday things, 32x32 colour, in 100 classes; from their binary files.

    45,000 train, 5,000 val (cut from the published train by a seed that never changes) and the published 10,000 test,
    in `cifar/cifar-100-binary` below the data root; the labels are the fine ones. With `download` they are fetched,
    170 MB, where there is a network.
    """

    name = "cifar100"
    num_classes = 100
    mean = (0.5071, 0.4866, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    md5 = "03b5dce01913d631647c71ecec9e9cb8"
    folder = "cifar-100-binary"
    names_file = "fine_label_names.txt"
    train_files = ("train.bin",)
    test_files = ("test.bin",)
    label_bytes = 2  # coarse, fine


def _read_bytes(path: Path, *, limit_bytes: int) -> bytearray:
    if not path.is_file():
        raise DatasetMissing(f"{path} is not there")
    if path.stat().st_size > limit_bytes:
        raise DatasetCorrupt(f"{path} has {path.stat().st_size} bytes; at most {limit_bytes} are read")
    return bytearray(path.read_bytes())
