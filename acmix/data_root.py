"""Folders and files of data sets: found below the data root and nowhere else."""

from pathlib import Path, PurePosixPath

from acmix.errors import DatasetMissing, OptionInvalid


def folder_below(
    root: Path, folder: str, *, hint: str = "the option folder is a path below the data root", option: str = "folder"
) -> Path:
    """The folder of that name below the root; `option` is what the message calls it.

    Raises:
        OptionInvalid: the name, or a link, leads out of the root.
        DatasetMissing: it is no folder.
    """
    parts = PurePosixPath(folder)
    if not folder or parts.is_absolute() or ".." in parts.parts or "\0" in folder:
        raise OptionInvalid(f"{option}={folder[:200]!r} must be a path below the data root, without '..'")
    path = root / parts
    if not leads_below(root, path):
        raise OptionInvalid(
            f"{option}={folder[:200]!r} is a link out of the data root; mount or copy the files instead"
        )
    if not _is_folder(path):
        raise DatasetMissing(f"{path} is not a folder", hint=hint)
    return path


def leads_below(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, ends below the root; links in a circle end nowhere."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system's
        return False
