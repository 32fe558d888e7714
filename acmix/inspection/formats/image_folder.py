"""Labelled images in folders, one a class, for classification."""

from collections.abc import Iterator
from pathlib import Path

from acmix.inspection.faults import Fault
from acmix.inspection.formats._contract import Format


class ImageFolder(Format):
    """train/<class>/<image>, with val and test beside train if there are."""

    name = "image_folder"
    task = "classification"
    layout = frozenset({"train", "val", "test"})
    expected = (
        "train/<class>/<image>, and val/<class>/<image> and test/<class>/<image> if there are such splits;\n"
        "nothing but images (JPEG, PNG, WEBP, BMP, TIFF) in a class; names that begin with a dot are passed over"
    )

    @classmethod
    def layout_faults(cls, root: Path) -> Iterator[Fault]:
        classes = set(_names(root / "train"))
        for split in sorted(cls.layout):
            for name in _names(root / split):
                folder = root / split / name
                if name not in classes:
                    yield _fault(root, folder, "is a class that train lacks")
                elif not folder.is_dir():
                    yield _fault(root, folder, "is not a folder below the data root; images lie in a folder a class")
                else:
                    yield from _faults_of_class(root, folder)


def _faults_of_class(root: Path, folder: Path) -> Iterator[Fault]:
    from acmix.datasets._images import FORMATS, SUFFIXES

    names = _names(folder)
    if not names:
        yield _fault(root, folder, "is an empty class; remove the folder or add images")
    for name in names:
        if Path(name).suffix.lower() not in SUFFIXES or not (folder / name).is_file():
            yield _fault(root, folder / name, f"is no image file; read are {', '.join(FORMATS)}")


def _names(folder: Path) -> list[str]:
    """What the data set class looks at, in its order."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _fault(root: Path, path: Path, what: str) -> Fault:
    file = path.relative_to(root).as_posix()
    return Fault(file, "dataset_corrupt", f"{file} {what}")
