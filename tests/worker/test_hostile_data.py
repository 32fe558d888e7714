"""P13: strangers' archives and images, given to the child as the housekeeper gives them, stay where they belong.

Each is refused with its reason or told as it is; nothing is written outside, nothing crashes, memory and time are
bounded. What a refusal says is the business of tests/acmix/archives/test_hostile.py.
"""

import gzip
import hashlib
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from tests.acmix.archives.hostile_tars import TARS
from tests.acmix.archives.tars import header, member, tar
from tests.acmix.archives.test_hostile import CASES
from tests.acmix.archives.zips import STORED, Member, zip_of
from tests.acmix.photos import noise
from tests.worker import measured_inspect
from tests.worker.hostile_images import Picture, pictures, saved
from worker.inspection_child import InspectionChild, InspectionFailed, Ready, Rejected, Unpacked

Archives = dict[str, bytes]

MEASURED = (sys.executable, str(Path(measured_inspect.__file__)), "inspect")
HOSTILE_ARCHIVES, DAMAGED_ARCHIVES = 360, 80
PICTURES_A_TREE = 20  # as many faults as a report tells
MOST_BYTES = 1500 * 2**20  # torch takes half of it
MOST_BYTES_WITHOUT_TORCH = 200 * 2**20
MOST_SECONDS = 120.0
OUTSIDE = [Path("/tmp/evil.txt"), Path("/tmp/evil")]  # where some of the archives lead


@dataclass
class Ingest:
    """A folder that the child may write to, in surroundings that it may not."""

    surroundings: Path
    verdicts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    slowest_seconds: float = 0.0
    _number: int = 0

    def __post_init__(self) -> None:
        for place in (".", "a", "a/b", "a/b/outside"):
            (self.surroundings / place).mkdir(parents=True, exist_ok=True)
            (self.surroundings / place / "planted.txt").write_text("untouched")
        self._before = everything(self.surroundings)

    def look(self, what: str, archive: bytes, *more: str) -> Ready | Rejected | None:
        """What the child says of it; None, and a line of `broken`, where it gives no verdict."""
        self._number += 1
        into = self.surroundings / "a" / "b" / f"into-{self._number}"
        into.mkdir()
        (into / "archive").write_bytes(archive)
        arguments = ["--archive", str(into / "archive"), "--into", str(into)]
        began = time.monotonic()
        child = InspectionChild(MEASURED, [*arguments, "--task", "classification", "--format", "image_folder", *more])
        try:
            ended = child.has_ended(MOST_SECONDS)
            found = child.found() if ended else None
            self._settle(what, found, into, time.monotonic() - began)
        except InspectionFailed as error:
            found = None
            self.broken.append(f"{what}: {error}")
        finally:
            child.close()
        self._check_surroundings(what, into)
        return found if isinstance(found, Ready | Rejected) else None

    def _settle(self, what: str, found: object, into: Path, seconds: float) -> None:
        memory = into.with_name(f"{into.name}-{measured_inspect.MEMORY}")
        self.peak_bytes = max(self.peak_bytes, int(memory.read_text()))
        memory.unlink()
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        self.verdicts[getattr(found, "status", "none")] += 1
        files = [path for path in (into / "content").rglob("*") if not path.is_dir()]
        if any(path.is_symlink() or not path.is_file() for path in files):
            self.broken.append(f"{what}: something that is no file came out")
        if isinstance(found, Ready):
            told, there = (found.files, found.size_bytes), (len(files), sum(path.stat().st_size for path in files))
            if told != there:
                self.broken.append(f"{what}: {told} files and bytes are told, {there} are there")
        elif not isinstance(found, Rejected | Unpacked):
            self.broken.append(f"{what}: no verdict within {MOST_SECONDS:g} s")
        elif isinstance(found, Rejected) and (not found.faults or not found.faults[0].message):
            self.broken.append(f"{what}: rejected without a reason")

    def _check_surroundings(self, what: str, into: Path) -> None:
        """What a case did outside is told once, for that case; what it left in its own folder goes."""
        after = {
            path: state for path, state in everything(self.surroundings).items() if into not in [path, *path.parents]
        }
        astray = {path for path in after.keys() | self._before.keys() if after.get(path) != self._before.get(path)}
        astray -= {into.with_name(f"{into.name}-{measured_inspect.MEMORY}")}
        astray |= {path for path in OUTSIDE if path.exists()}
        astray |= {path for path in into.iterdir() if path.name not in {"archive", "content", "samples.png"}}
        if astray:
            self.broken.append(f"{what}: written outside: {sorted(map(str, astray))}")
            self._before = after
        shutil.rmtree(into)


def everything(place: Path) -> dict[Path, tuple[int, str]]:
    """Every path with its mode and the hash of what is in it."""
    return {
        path: (path.lstat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in place.rglob("*")
    }


@pytest.fixture
def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """Its working folder is among the surroundings."""
    (tmp_path / "surroundings" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "surroundings" / "work")
    return Ingest(tmp_path / "surroundings")


def test_some_hostile_archives_stay_inside(ingest: Ingest) -> None:
    chosen = random.Random(3).sample([*CASES], 8)
    for what in chosen:
        ingest.look(what, CASES[what][0])
    assert ingest.broken == []
    assert ingest.verdicts == {"rejected": len(chosen)}


def test_what_an_ordinary_reader_unpacks_is_found_outside(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: tarfile in the place of our rules."""
    monkeypatch.setenv("PYTHON_INSPECT_WITHOUT_OUR_RULES", "1")
    through = tar(header(b"a", kind=b"2", link=b"../.."), member(b"a/outside/evil.txt"))
    for what, archive in {
        "name: parent": TARS["name: parent"][0],
        "a link and a file through it": through,
        "named pipe": TARS["named pipe"][0],
    }.items():
        ingest.look(what, archive, "--unpack-only")
    assert [line.partition(": written outside")[0] for line in ingest.broken if "written outside" in line] == [
        "name: parent",
        "a link and a file through it",
    ]
    assert any("named pipe" in line for line in ingest.broken)


@pytest.mark.release
def test_four_hundred_hostile_archives_stay_inside(ingest: Ingest) -> None:
    archives = [*random.Random(1).sample([*((name, case[0]) for name, case in CASES.items())], HOSTILE_ARCHIVES)]
    for what, archive in archives:
        assert not isinstance(ingest.look(what, archive), Ready), f"{what} was taken"
    tell(ingest, "hostile archives")
    assert ingest.verdicts["rejected"] == HOSTILE_ARCHIVES
    assert ingest.peak_bytes < MOST_BYTES_WITHOUT_TORCH
    for what, archive in damaged(random.Random(1), DAMAGED_ARCHIVES):
        ingest.look(what, archive)
    tell(ingest, "hostile and damaged archives")
    assert ingest.broken == []
    assert ingest.peak_bytes < MOST_BYTES
    assert ingest.slowest_seconds < MOST_SECONDS


@pytest.mark.release
def test_two_hundred_hostile_images_stay_inside(ingest: Ingest) -> None:
    """In trees of twenty, beside pictures that can be read."""
    made = pictures(seed=1)
    assert len({(picture.suffix, picture.content) for picture in made}) >= 200
    refused: Counter[bool] = Counter()
    for start in range(0, len(made), PICTURES_A_TREE):
        few = dict(enumerate(made[start : start + PICTURES_A_TREE], start))
        found = ingest.look(f"pictures {start} to {start + len(few) - 1}", tree(few))
        told = {fault.file: fault.message for fault in found.faults} if isinstance(found, Rejected) else {}
        for number, picture in few.items():
            file = name_of(number, picture)
            refused[file in told] += 1
            if picture.must_be_refused and file not in told:
                ingest.broken.append(f"{picture.what} was taken: {file}")
        astray = set(told) - {name_of(number, picture) for number, picture in few.items()}
        ingest.broken += [f"{file} is refused: {told[file]}" for file in astray]
    tell(ingest, f"{len(made)} hostile images, {refused[True]} refused and {refused[False]} read, in trees")
    assert ingest.broken == []
    assert ingest.peak_bytes < MOST_BYTES
    assert ingest.slowest_seconds < MOST_SECONDS


def name_of(number: int, picture: Picture) -> str:
    return f"train/cat/{number}.{picture.suffix}"


def tree(few: dict[int, Picture]) -> bytes:
    """A tar of these, and of two classes of pictures in each split."""
    good = {
        f"{split}/{kind}/good{number}.png": saved(noise(1000 * number + len(split + kind)), "PNG")
        for split in ("train", "val", "test")
        for kind in ("cat", "dog")
        for number in range(2)
    }
    hostile = {name_of(number, picture): picture.content for number, picture in few.items()}
    return tar(*(member(name.encode(), content) for name, content in {**good, **hostile}.items()))


def damaged(drawn: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Right archives in every form, with bytes of them changed, cut out, doubled or moved."""
    files = {
        f"train/{kind}/{number}.png": saved(noise(number), "PNG") for kind in ("cat", "dog") for number in range(3)
    }
    plain = tar(*(member(name.encode(), content) for name, content in files.items()))
    forms = {
        "tar": plain,
        "tar.gz": gzip.compress(plain, mtime=0),
        "tar.zst": zstandard.compress(plain),
        "zip": zip_of(*(Member(name.encode(), content, method=STORED) for name, content in files.items())),
    }
    for number in range(count):
        form = [*forms][number % len(forms)]
        yield f"damaged {form} {number}", bytes(_damage(bytearray(forms[form]), drawn, files))


def _damage(content: bytearray, drawn: random.Random, names: Sequence[str] | dict[str, bytes]) -> bytearray:
    place = drawn.randrange(len(content))
    match drawn.randrange(5):
        case 0:
            del content[place:]
        case 1:
            del content[place : place + drawn.choice([1, 100, 512, 1000])]
        case 2:
            content[place:place] = content[place : place + drawn.choice([1, 512, 1024])]
        case 3:
            for _ in range(drawn.choice([1, 10, 200])):
                content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        case _:
            old = drawn.choice([*names]).encode()
            new = drawn.choice([b"../../../evil.png", b"/tmp/evil.txt", b"train/cat/\0.png", b"train\\..\\evil.png"])
            content = content.replace(old, new.ljust(len(old), b"x")[: len(old)])
    return content


def tell(ingest: Ingest, what: str) -> None:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in ingest.verdicts.items())
    memory, seconds = f"{ingest.peak_bytes / 2**20:.0f} MiB", f"{ingest.slowest_seconds:.1f} s"
    print(f"\nP13 {what}: {verdicts}; {len(ingest.broken)} broken; at most {memory} and {seconds}", flush=True)
