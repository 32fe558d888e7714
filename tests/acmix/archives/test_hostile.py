"""Archives that mean harm: each refused with its reason, nothing written outside, nothing left behind."""

import gzip
import itertools
import re
import time
from pathlib import Path

import pytest
import zstandard

from acmix.archives import ArchiveRefused, Limits, unpack
from tests.acmix.archives.hostile_streams import STREAMS
from tests.acmix.archives.hostile_tars import TARS
from tests.acmix.archives.hostile_zips import ZIPS
from tests.acmix.archives.tars import header, member, pax, tar
from tests.acmix.archives.zips import STORED, Member, zip_of

DEFAULTS = Limits()
MOST_SECONDS = 20  # a case takes milliseconds, a bomb a second; one that hangs takes for ever
CASES = {
    **{f"tar: {what}": case for what, case in TARS.items()},
    **{f"tar.gz: {what}": (gzip.compress(plain, mtime=0), says) for what, (plain, says) in TARS.items()},
    **{f"tar.zst: {what}": (zstandard.compress(plain), says) for what, (plain, says) in TARS.items()},
    **{f"zip: {what}": case for what, case in ZIPS.items()},
    **STREAMS,
}


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A folder with one to unpack into and, beside it, one that links in archives point to."""
    (tmp_path / "watched/into").mkdir(parents=True)
    (tmp_path / "watched/outside").mkdir()
    (tmp_path / "watched/outside/planted.txt").write_text("untouched")
    return tmp_path / "watched"


def _refusal(watched: Path, archive: bytes, limits: Limits = DEFAULTS, **rest) -> str:
    """What the refusal says; the folder and everything around it are as they were."""
    file = watched.parent / "archive"
    file.write_bytes(archive)
    before = _everything(watched)
    begun = time.monotonic()
    with pytest.raises(ArchiveRefused) as caught:
        unpack(file, watched / "into", limits=limits, **rest)
    assert time.monotonic() - begun < MOST_SECONDS
    assert _everything(watched) == before
    return caught.value.message


def _everything(place: Path) -> dict[str, object]:
    return {
        path.relative_to(place).as_posix(): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in [place, *place.rglob("*")]
    }


@pytest.mark.parametrize(("archive", "says"), CASES.values(), ids=CASES.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(watched: Path, archive: bytes, says: str) -> None:
    message = _refusal(watched, archive)
    assert re.search(says, message)
    assert message.isprintable()
    assert len(message) < 400


def test_hostile_archives_are_many_and_no_two_are_the_same() -> None:
    assert len({archive for archive, _ in CASES.values()}) == len(CASES) > 600


# Limits, lowered so that little passes them

MANY = [b"%d.txt" % number for number in range(11)]
FAMILIES = {
    "tar": lambda files: tar(*(member(name, content) for name, content in files)),
    "tar.gz": lambda files: gzip.compress(tar(*(member(name, content) for name, content in files))),
    "tar.zst": lambda files: zstandard.compress(tar(*(member(name, content) for name, content in files))),
    "zip": lambda files: zip_of(*(Member(name, content, method=STORED) for name, content in files)),
}


@pytest.mark.parametrize("pack", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize(
    ("limits", "files", "says"),
    [
        (Limits(entries=10), [(name, b"x") for name in MANY], "10 are the most|more than 10 files"),
        (Limits(entries=10), [(b"._%d" % number, b"x") for number in range(11)], "10 are the most|more than 10 files"),
        (Limits(entries=10), [(b"a/b/c/d/e/f/g/h/i/j/k", b"x")], "more than 10 files"),
        (Limits(file_bytes=1000), [(b"a", bytes(1001))], "larger than 1000 bytes"),
        (Limits(total_bytes=10_000), [(name, bytes(1000)) for name in MANY], "more than 10000 bytes"),
        (Limits(total_bytes=10_000), [(b"._a", bytes(10_001))], "more than 10000 bytes"),
        (Limits(depth=2), [(b"a/b/c", b"x")], "more than 2 folders deep"),
        (Limits(part_bytes=5), [(b"abcdef", b"x")], "longer than 5 bytes"),
        (Limits(path_bytes=5), [(b"ab/cde", b"x")], "longer than 5 bytes"),
    ],
    ids=[
        "entries",
        "passed over",
        "folders of no entry",
        "one file",
        "all files",
        "passed over bytes",
        "depth",
        "part",
        "path",
    ],
)
def test_every_limit_holds_in_every_form(watched: Path, pack, limits: Limits, files, says: str) -> None:
    assert re.search(says, _refusal(watched, pack(files), limits))


@pytest.mark.parametrize("pack", FAMILIES.values(), ids=FAMILIES.keys())
def test_an_archive_that_takes_too_long_is_refused(watched: Path, pack) -> None:
    """By a clock on which every look takes a second."""
    archive = pack([(name, b"x" * 1000) for name in MANY])
    message = _refusal(watched, archive, Limits(seconds=5), clock=itertools.count().__next__)
    assert "takes longer than 5 s" in message


@pytest.mark.parametrize(
    "archive",
    [
        gzip.compress(tar(member(b"a", bytes(10**6)))),
        zstandard.compress(tar(member(b"a", bytes(10**6)))),
        zip_of(Member(b"a", bytes(10**6))),
        zip_of(*(Member(b"%d" % number, bytes(10**5)) for number in range(10))),
        gzip.compress(tar(*(pax({b"comment": bytes(10**5)}) + header(b"%d" % number) for number in range(10)))),
    ],
    ids=["tar.gz", "tar.zst", "zip", "zip of many", "pax headers"],
)
def test_what_unpacks_to_far_more_than_its_size_is_refused_above_a_floor(watched: Path, archive: bytes) -> None:
    limits = Limits(ratio=20, ratio_floor_bytes=500_000)
    assert "more than 20 times its size" in _refusal(watched, archive, limits)
    assert unpack(watched.parent / "archive", watched / "into", limits=Limits(ratio_floor_bytes=2 * 10**6)).files


def test_a_folder_that_is_not_empty_is_left_alone(watched: Path) -> None:
    (watched / "archive").write_bytes(tar(member(b"planted.txt", b"other")))
    with pytest.raises(FileExistsError, match="not empty"):
        unpack(watched / "archive", watched / "outside")
    assert (watched / "outside/planted.txt").read_text() == "untouched"


def test_a_folder_that_is_a_link_is_not_unpacked_into(watched: Path) -> None:
    (watched / "archive").write_bytes(tar(member(b"a")))
    (watched / "elsewhere").mkdir()
    (watched / "link").symlink_to(watched / "elsewhere")
    with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
        unpack(watched / "archive", watched / "link")
    assert not list((watched / "elsewhere").iterdir())
