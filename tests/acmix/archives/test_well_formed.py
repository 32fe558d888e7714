"""Archives as programs write them: every byte comes out, in files and folders of the user alone."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import pack

import pytest
import zstandard

from acmix.archives import ArchiveRefused, Limits, Unpacked, content_root, unpack
from tests.acmix.archives.tars import GNU, OLD, header, long_name, member, pax, tar
from tests.acmix.archives.zips import FOLDER, NARROW_MOST, STORED, Member, deflated, descriptor, extra, wide_zip, zip_of

Files = Mapping[str, bytes]
FILES: Files = {
    "photos/train/cat/1.txt": b"one" * 5000,
    "photos/train/cat/empty.txt": b"",
    "photos/train/naïve café/Zürich 東京.txt": b"\0\1\2" * 700,
    "photos/train/🐈.txt": b"cat",
    "photos/val/cat/1.txt": bytes(range(256)) * 300,
    "photos/" + "/".join("deep") + "/x.txt": b"deep",
    "photos/" + "a long name " * 15 + "of a folder/" + "name" * 50 + ".txt": b"long",
    "photos/random.bin": random.Random(0).randbytes(700_000),
}


class _Pipe(io.RawIOBase):
    """Takes bytes and cannot seek: what is written to it has sizes after the data."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece) -> int:
        self.content += piece
        return len(piece)


def _tar(files: Files, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000.5
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _zip(files: Files, method: int = zipfile.ZIP_DEFLATED, **rest) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, **rest) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _piped_zip(files: Files, *, wide: bool) -> bytes:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=wide) as file:
                file.write(content)
    return bytes(pipe.content)


def _appended_zip(files: Files) -> bytes:
    file = io.BytesIO()
    for name, content in files.items():
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(name, content)
    return file.getvalue()


def _frames(content: bytes, *, step: int = 50_000) -> bytes:
    """zstd frames one after another, with checksum and size or without, and one that is skipped."""
    compressors = [
        zstandard.ZstdCompressor(level=level, write_checksum=level % 2 == 0, write_content_size=level % 3 == 0)
        for level in range(1, 7)
    ]
    pieces = [content[start : start + step] for start in range(0, len(content), step)]
    packed = [compressors[number % 6].compress(piece) for number, piece in enumerate(pieces)]
    return packed[0] + b"\x5a\x2a\x4d\x18" + pack("<I", 5) + b"notes" + b"".join(packed[1:])


def _long_distance(content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(content) + packer.flush()


def _members(content: bytes, *, step: int = 50_000) -> bytes:
    return b"".join(
        gzip.compress(content[start : start + step]) for start in range(0, len(content), step)
    ) + gzip.compress(b"")


def _named_gzip(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile("photos.tar", "wb", fileobj=file) as packed:
        packed.write(content)
    return file.getvalue()


FORMS: dict[str, tuple[str, Callable[[Files], bytes]]] = {
    "tar, pax": ("tar", _tar),
    "tar, GNU": ("tar", lambda files: _tar(files, tarfile.GNU_FORMAT)),
    "tar.gz": ("tar.gz", lambda files: gzip.compress(_tar(files))),
    "tar.gz with its name": ("tar.gz", lambda files: _named_gzip(_tar(files))),
    "tar.gz in members": ("tar.gz", lambda files: _members(_tar(files))),
    "tar.zst": ("tar.zst", lambda files: zstandard.compress(_tar(files))),
    "tar.zst, level 19": ("tar.zst", lambda files: zstandard.compress(_tar(files, tarfile.GNU_FORMAT), 19)),
    "tar.zst, level 22": ("tar.zst", lambda files: zstandard.compress(_tar(files), 22)),
    "tar.zst in frames": ("tar.zst", lambda files: _frames(_tar(files))),
    "tar.zst, window of 128 MiB": ("tar.zst", lambda files: _long_distance(_tar(files))),
    "zip": ("zip", _zip),
    "zip, stored": ("zip", lambda files: _zip(files, zipfile.ZIP_STORED)),
    "zip, sizes after the data": ("zip", lambda files: _piped_zip(files, wide=False)),
    "zip, wide sizes after the data": ("zip", lambda files: _piped_zip(files, wide=True)),
    "zip, appended to": ("zip", _appended_zip),
    "zip64": (
        "zip",
        lambda files: wide_zip(*(Member(name.encode(), content, flags=0x800) for name, content in files.items())),
    ),
}


def _unpack(tmp_path: Path, archive: bytes, **rest) -> tuple[Unpacked, Files]:
    """What came out, as told and as it lies there."""
    (tmp_path / "archive.bin").write_bytes(archive)
    (tmp_path / "into").mkdir(exist_ok=True)
    told = unpack(tmp_path / "archive.bin", tmp_path / "into", **rest)
    return told, _files(tmp_path / "into")


def _files(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("form", "pack_up"), FORMS.values(), ids=FORMS.keys())
def test_every_form_is_unpacked_byte_for_byte(tmp_path: Path, form: str, pack_up) -> None:
    told, found = _unpack(tmp_path, pack_up(FILES))
    assert found == FILES
    assert told == Unpacked(form, len(FILES), sum(map(len, FILES.values())), passed_over=0)


@pytest.mark.parametrize("form", ["tar, pax", "tar, GNU", "tar.gz", "tar.zst", "zip", "zip64"])
def test_many_files_are_unpacked(tmp_path: Path, form: str) -> None:
    many = {f"{number % 7}/{number}.txt": b"%d" % number for number in range(1200)}
    assert _unpack(tmp_path, FORMS[form][1](many))[1] == many


@pytest.mark.parametrize(("form", "pack_up"), FORMS.values(), ids=FORMS.keys())
def test_parts_are_read_as_one_file(tmp_path: Path, form: str, pack_up) -> None:
    archive = pack_up(FILES)
    cuts = sorted(random.Random(1).sample(range(1, len(archive)), 20))
    parts = [archive[start:end] for start, end in zip([0, *cuts], [*cuts, len(archive)], strict=True)]
    paths = [tmp_path / f"part-{number}" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    (tmp_path / "into").mkdir()
    assert unpack(paths, tmp_path / "into").form == form
    assert _files(tmp_path / "into") == FILES


def test_files_and_folders_are_their_users_alone(tmp_path: Path) -> None:
    _unpack(tmp_path, _tar(FILES))
    for path in (tmp_path / "into").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_progress_is_told_in_bytes_of_the_archive(tmp_path: Path) -> None:
    archive, told = gzip.compress(_tar(FILES)), []
    _unpack(tmp_path, archive, tell=lambda done, of: told.append((done, of)))
    assert told[-1] == (len(archive), len(archive))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("pack_up", [_tar, _zip])
def test_what_macos_keeps_for_itself_is_passed_over_and_counted(tmp_path: Path, pack_up) -> None:
    noise = {"__MACOSX/photos/._1.txt": b"x", "photos/.DS_Store": b"y", "photos/train/._1.txt": b"PK\3\4"}
    told, found = _unpack(tmp_path, pack_up({**noise, **FILES}))
    assert found == FILES
    assert told.passed_over == 3


HAND_MADE: dict[str, tuple[bytes, Files]] = {
    "folders of their own": (
        tar(header(b"a/", kind=b"5"), header(b"a/b", kind=b"5"), header(b"a/", kind=b"5"), member(b"a/b/c", b"1")),
        {"a/b/c": b"1"},
    ),
    "names that begin with ./": (tar(header(b"./", kind=b"5"), member(b"./a", b"1")), {"a": b"1"}),
    "an old tar": (
        tar(header(b"a/", kind=b"\0", magic=OLD), member(b"a/b", b"1", kind=b"\0", magic=OLD)),
        {"a/b": b"1"},
    ),
    "a ustar prefix": (tar(member(b"c", b"1", prefix=b"a/b")), {"a/b/c": b"1"}),
    "GNU's long name": (
        tar(long_name(b"d" * 99 + b"/" + b"e" * 99) + member(b"d", b"1", magic=GNU)),
        {f"{'d' * 99}/{'e' * 99}": b"1"},
    ),
    "a size in GNU's binary form": (
        tar(header(b"a", 3, size_field=b"\x80" + bytes(10) + b"\3") + b"abc".ljust(512, b"\0")),
        {"a": b"abc"},
    ),
    "pax: attributes of vendors": (
        tar(
            pax({b"SCHILY.xattr.user.note": b"\n=x", b"LIBARCHIVE.creationtime": b"1.5", b"path": b"b"})
            + member(b"a", b"1")
        ),
        {"b": b"1"},
    ),
    "pax: the same size again": (tar(pax({b"size": b"1"}) + member(b"a", b"1")), {"a": b"1"}),
    "pax: a comment for all": (tar(pax({b"comment": b"3f2a"}, kind=b"g"), member(b"a", b"1")), {"a": b"1"}),
    "filled to a tape's block": (tar(member(b"a", b"1")) + bytes(10_240), {"a": b"1"}),
    "zip: folders, deflated, sizes after": (
        zip_of(
            Member(
                b"a/",
                b"",
                flags=8,
                attributes=FOLDER | 0x10,
                local={"crc": 0, "packed": 0, "size": 0},
                after=descriptor(b"", 2),
            ),
            Member(b"a/b", b"1", attributes=0),
        ),
        {"a/b": b"1"},
    ),
    "zip: sizes after, without a mark": (
        zip_of(
            Member(
                b"a",
                b"hello",
                flags=8,
                local={"crc": 0, "packed": 0, "size": 0},
                after=descriptor(b"hello", 7, magic=b""),
            )
        ),
        {"a": b"hello"},
    ),
    "zip: wide sizes after": (
        zip_of(Member(b"a", b"hello", flags=8, after=descriptor(b"hello", 7, form="<LQQ"))),
        {"a": b"hello"},
    ),
    "zip: wide sizes before": (
        zip_of(
            Member(
                b"a",
                b"hello",
                method=STORED,
                local={"size": NARROW_MOST, "packed": NARROW_MOST, "extra": extra(1, pack("<QQ", 5, 5))},
                central={"size": NARROW_MOST, "packed": NARROW_MOST, "extra": extra(1, pack("<QQ", 5, 5))},
            )
        ),
        {"a": b"hello"},
    ),
    "zip: a wide offset": (
        zip_of(
            Member(b"a", b"1"), Member(b"b", b"2", central={"offset": NARROW_MOST, "extra": extra(1, pack("<Q", 34))})
        ),
        {"a": b"1", "b": b"2"},
    ),
    "zip: times, users, a filled extra field": (
        zip_of(Member(b"a", b"1", central={"extra": extra(0x5455, bytes(5)) + extra(0x7875, bytes(11)) + b"\0\0\0"})),
        {"a": b"1"},
    ),
    "zip: a name said twice alike": (
        zip_of(Member(b"a", b"1", central={"extra": extra(0x7075, bytes(5) + b"a")})),
        {"a": b"1"},
    ),
    "zip: comments": (zip_of(Member(b"a", b"1", central={"comment": b"of a"}), comment=b"of all"), {"a": b"1"}),
    "zip: UTF-8 without saying so": (zip_of(Member("é/ü".encode(), b"1")), {"é/ü": b"1"}),
    "zip: other levels of compression": (
        zip_of(Member(b"a", b"1" * 99, flags=6, packed=deflated(b"1" * 99))),
        {"a": b"1" * 99},
    ),
    "zip: a directory in another order": (
        b"".join([(one := zip_of(Member(b"a", b"1"), Member(b"b", b"2")))[:68], one[115:162], one[68:115], one[162:]]),
        {"a": b"1", "b": b"2"},
    ),
}


@pytest.mark.parametrize(("archive", "files"), HAND_MADE.values(), ids=HAND_MADE.keys())
def test_what_programs_may_write_is_read(tmp_path: Path, archive: bytes, files: Files) -> None:
    assert _unpack(tmp_path, archive)[1] == files


def test_empty_folders_are_kept(tmp_path: Path) -> None:
    _unpack(tmp_path, tar(header(b"a/b/", kind=b"5"), member(b"c")))
    assert (tmp_path / "into/a/b").is_dir()


def test_names_keep_the_form_they_are_written_in(tmp_path: Path) -> None:
    """Annotations name files as they are written: composed or not."""
    names = {"e\u0301.txt": b"1", "ü.txt": b"2", "ﬁsh.txt": b"3"}
    assert _unpack(tmp_path, _tar(names))[1] == names


@pytest.mark.parametrize(
    ("files", "root"),
    [
        (["a/b/c.txt", "a/b/d.txt"], "a/b"),
        (["a/train/x.txt"], "a"),
        (["train/x/1.txt"], "."),
        (["a/1.txt", "b/1.txt"], "."),
        (["a.txt"], "."),
    ],
)
def test_the_folder_that_holds_the_data_is_found_below_those_that_wrap_it(tmp_path: Path, files, root: str) -> None:
    _unpack(tmp_path, _tar(dict.fromkeys(files, b"x")))
    found = content_root(tmp_path / "into", layout={"train", "val", "test"})
    assert found.relative_to(tmp_path / "into").as_posix() == root


@pytest.mark.parametrize(
    "pack_up", [_tar, _zip, FORMS["tar.gz"][1], FORMS["tar.zst"][1]], ids=["tar", "zip", "tar.gz", "tar.zst"]
)
def test_a_damaged_archive_is_refused_or_unpacked_and_never_breaks(tmp_path: Path, pack_up) -> None:
    """Some bytes changed, moved or lost: 200 times, by a fixed seed."""
    chance = random.Random(2)
    whole = pack_up({"a/b.txt": b"hello " * 200, "a/c.txt": b"", "d": b"x"})
    refused = 0
    for number in range(200):
        (tmp_path / str(number)).mkdir()
        try:
            _unpack(tmp_path / str(number), _damaged(whole, chance), limits=Limits(seconds=10))
        except ArchiveRefused:
            refused += 1
            assert not list((tmp_path / str(number) / "into").iterdir())
    assert refused > 100


def _damaged(archive: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(archive)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged))
        how = chance.randrange(4)
        if how == 0:
            damaged[at] = chance.randrange(256)
        elif how == 1:
            damaged[at] ^= 1 << chance.randrange(8)
        elif how == 2:
            del damaged[at : at + chance.randint(1, 600)]
        else:
            damaged[at:at] = damaged[chance.randrange(len(damaged)) :][: chance.randint(1, 600)]
        if not damaged:
            break
    return bytes(damaged)
