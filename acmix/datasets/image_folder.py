"""Labelled photographs in folders, one a class, in ImageNet's layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below, leads_below
from acmix.datasets._images import FORMATS, SUFFIXES, read_image
from acmix.datasets._side_by_side import SideBySide
from acmix.datasets._split import complete
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
        self.classes = tuple(class_names(place / "train"))
        labels = {name: label for label, name in enumerate(self.classes)}
        found: dict[str, Files] = {}
        with SideBySide() as faults:
            for part in class_names(place):
                if part in {"train", "val", "test"}:
                    with faults.noting(place / part):
                        found[part] = class_files(root, place / part, labels)
        self._splits = completed(found, place)

    def split(self, name: SplitName) -> FileSplit:
        return FileSplit(self._splits[name], self.place)


def class_names(folder: Path) -> list[str]:
    """What lies in a split's folder, in order; names that begin with a dot are passed over."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def class_files(root: Path, place: Path, labels: Mapping[str, int]) -> Files:
    """Files and labels of one split, by class and name; DatasetCorrupt names all that is of another shape."""
    if not leads_below(root, place) or not place.is_dir():
        raise DatasetCorrupt(f"{place} is not a folder below the data root")
    names = class_names(place)
    if not names:
        raise DatasetCorrupt(f"{place} has no classes", hint=f"images lie in {place.name}/<class>/")
    found: list[tuple[str, int]] = []
    with SideBySide() as faults:
        for name in names:
            with faults.noting(place / name):
                if name not in labels:
                    raise DatasetCorrupt(f"{place / name} is a class that train lacks")
                found += [(str(path), labels[name]) for path in _images(root, place / name)]
    return found


def check_image(root: Path, path: Path) -> None:
    """DatasetCorrupt names what is no image file by its suffix, or a link out of the root."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise DatasetCorrupt(f"{path} is no image file; read are {', '.join(FORMATS)}")
    if path.is_symlink() and not leads_below(root, path):
        raise DatasetCorrupt(f"{path} is a link out of the data root")


def completed(found: Mapping[str, Files], place: Path) -> Mapping[SplitName, Files]:
    """All three splits: what is there, and the rest cut from train."""
    labels = {part: [label for _, label in files] for part, files in found.items()}
    splits = complete(labels, str(place / "train"))
    return {name: [found[part][index] for index in indices] for name, (part, indices) in splits.items()}


def _images(root: Path, folder: Path) -> list[Path]:
    """The images of one class."""
    if not leads_below(root, folder) or not folder.is_dir():
        raise DatasetCorrupt(f"{folder} is not a folder below the data root", hint="images lie in a folder a class")
    images = [folder / name for name in class_names(folder)]
    if not images:
        raise DatasetCorrupt(f"{folder} is an empty class", hint="remove the folder or add images")
    with SideBySide() as faults:
        for path in images:
            with faults.noting(path):
                check_image(root, path)
    return images
