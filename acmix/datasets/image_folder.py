"""Labelled photographs in folders, one a class, in ImageNet's layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below, leads_below
from acmix.datasets._images import FORMATS, SUFFIXES, read_image
from acmix.datasets._split import cut, tenth
from acmix.errors import DatasetCorrupt, DatasetMissing

Files = Sequence[tuple[str, int]]  # strings: a Path takes five times the memory, and there may be millions


class FileSplit:
    """Images read from their files when asked for."""

    def __init__(self, files: Files, place: Path) -> None:
        self.files = files
        self.place = place

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return read_image(Path(path)), label

    def source(self, index: int) -> str:
        return Path(self.files[index][0]).relative_to(self.place).as_posix()


class ImageFolder(Dataset):
    """Your own labelled images: a folder of train/<class>/<image>, with val and test beside train if you have them.

    `folder` is a path below the data root. Without test, val serves as test; a val that is missing or so used is cut
    from train, a tenth by a seed that never changes, and so is a test where there is neither. Formats: JPEG, PNG,
    WEBP, BMP, TIFF. Images are resized and cropped to `image_px`. Names that begin with a dot are passed over.
    """

    name = "image_folder"
    task = "classification"
    num_classes = None
    default_image_px = 224
    in_memory = False
    default_augment = "resized_crop"

    mean = (0.485, 0.456, 0.406)  # ImageNet's, as is the custom
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)],
        image_px: Annotated[int, Field(ge=8, le=1024)] = 224,
    ) -> None:
        self.image_px = image_px
        self.place = place = folder_below(root, folder)
        if not (place / "train").is_dir():
            raise DatasetMissing(f"{place / 'train'} is not a folder", hint="images lie in train/<class>/")
        self.classes = tuple(_names(place / "train"))
        labels = {name: label for label, name in enumerate(self.classes)}
        found = {name: _files(root, place / name, labels) for name in _names(place) if name in {"train", "val", "test"}}
        self._splits = _complete(found, place)

    def split(self, name: SplitName) -> FileSplit:
        return FileSplit(self._splits[name], self.place)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _files(root: Path, place: Path, labels: Mapping[str, int]) -> Files:
    """Files and labels of one split, by class and name."""
    if not leads_below(root, place) or not place.is_dir():
        raise DatasetCorrupt(f"{place} is not a folder below the data root")
    names = _names(place)
    if not names:
        raise DatasetCorrupt(f"{place} has no classes", hint=f"images lie in {place.name}/<class>/")
    if strange := [name for name in names if name not in labels]:
        raise DatasetCorrupt(f"{place / strange[0]} is a class that train lacks")
    return [(str(path), labels[name]) for name in names for path in _images(root, place / name)]


def _images(root: Path, folder: Path) -> list[Path]:
    """The images of one class."""
    if not leads_below(root, folder) or not folder.is_dir():
        raise DatasetCorrupt(f"{folder} is not a folder below the data root", hint="images lie in a folder a class")
    images = [folder / name for name in _names(folder)]
    if not images:
        raise DatasetCorrupt(f"{folder} is an empty class", hint="remove the folder or add images")
    for path in images:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DatasetCorrupt(f"{path} is no image file; read are {', '.join(FORMATS)}")
        if path.is_symlink() and not leads_below(root, path):
            raise DatasetCorrupt(f"{path} is a link out of the data root")
    return images


def _complete(found: Mapping[str, Files], place: Path) -> Mapping[str, Files]:
    """All three splits: what is there, and the rest cut from train."""
    splits = dict(found)
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    missing = [name for name in ("test", "val") if name not in splits]
    train = splits["train"]
    if len(train) <= len(missing):
        raise DatasetCorrupt(
            f"{place / 'train'} has {len(train)} images; too few to cut {' and '.join(missing)} from it"
        )
    parts = cut([label for _, label in train], [tenth(len(train))] * len(missing))
    for name, indices in zip([*missing, "train"], parts, strict=True):
        splits[name] = [train[index] for index in indices.tolist()]
    return splits
