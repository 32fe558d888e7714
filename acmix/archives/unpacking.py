"""Unpacking an archive of any of the four forms, and finding the data in what came out."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from acmix.archives.forms import BEGINNING_BYTES, form_of
from acmix.archives.limits import Limits, Tally, Tell
from acmix.archives.parts import Parts
from acmix.archives.streams import Stream, gzip_content, zstd_content
from acmix.archives.tar import unpack_tar
from acmix.archives.tree import Tree
from acmix.archives.zip import unpack_zip
from acmix.errors import ArchiveRefused

DEFAULTS = Limits()


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive; macOS's own files are passed over."""

    form: str
    files: int
    size_bytes: int
    passed_over: int


def unpack(
    archive: Path | Sequence[Path],
    into: Path,
    *,
    limits: Limits = DEFAULTS,
    tell: Tell = lambda _done, _of: None,
    clock: Callable[[], float] = time.monotonic,
) -> Unpacked:
    """Unpack an archive, one file or parts that follow one another, into a folder that is there and empty.

    Files are made with mode 0600 and folders with 0700. `tell` is called with the bytes of the archive read so far and
    their number in all.

    Raises:
        ArchiveRefused: the archive is damaged or holds something that is not unpacked; the folder is empty again.
        FileExistsError: the folder is not empty.
    """
    paths = [archive] if isinstance(archive, Path) else archive
    with Parts(paths) as parts:
        tally = Tally(limits, parts.size_bytes, tell, clock)
        with Tree(into, tally) as tree:
            form = _unpack(parts, tree, limits, tally)
            if not tree.files:
                raise ArchiveRefused("the archive holds no file; pack the data set's files")
        return Unpacked(form, tree.files, tree.size_bytes, tree.passed_over)


def content_root(folder: Path, *, layout: Collection[str] = ()) -> Path:
    """The folder that really holds the data: below folders that hold one folder and nothing else.

    A folder named in `layout` is part of the data and not a wrapping.
    """
    while len(entries := list(folder.iterdir())) == 1:
        only = entries[0]
        if only.name in layout or only.is_symlink() or not only.is_dir():
            break
        folder = only
    return folder


def _unpack(parts: Parts, tree: Tree, limits: Limits, tally: Tally) -> str:
    """The archive's form, known by its content."""
    form = form_of(parts.read(0, BEGINNING_BYTES))
    chunks = tally.reading(parts.chunks())
    if form == "zip":
        unpack_zip(parts, tree, limits, tally)
    elif form == "gzip":
        unpack_tar(Stream(tally.giving(gzip_content(chunks))), tree, limits)
    elif form == "zstd":
        unpack_tar(Stream(tally.giving(zstd_content(chunks, limits.window_bytes))), tree, limits)
    elif form == "tar":
        unpack_tar(Stream(tally.giving(chunks)), tree, limits)
    else:
        what = f"a file of the form {form}" if form else "no archive"
        raise ArchiveRefused(f"what was uploaded is {what}; zip, tar, tar.gz and tar.zst are unpacked")
    return {"gzip": "tar.gz", "zstd": "tar.zst"}.get(form, form)
