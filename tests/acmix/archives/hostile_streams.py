"""Compressed data that are refused, what is no archive, and archives in archives: bytes, and what the refusal says."""

import bz2
import gzip
import lzma
import zlib
from struct import pack

import zstandard

from tests.acmix.archives.tars import header, member, tar
from tests.acmix.archives.zips import STORED, Member, zip_of

Cases = dict[str, tuple[bytes, str]]

TAR = tar(*(member(b"train/%d.txt" % number, b"%d " % number * 300) for number in range(20)))
GZIP = gzip.compress(TAR, mtime=0)
ZSTD = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(TAR)
MAGIC = b"\x28\xb5\x2f\xfd"
EMPTY_ZSTD_BLOCK = b"\1\0\0"
ZEROS_BLOCK = pack("<I", 128 * 1024 << 3 | 1 << 1)[:3] + b"\0"  # 128 KiB of zeros in four bytes
WINDOW_8_MIB = b"\x68"


def _raw_block(content: bytes, *, last: bool = True, kind: int = 0, size: int | None = None) -> bytes:
    return pack("<I", (len(content) if size is None else size) << 3 | kind << 1 | last)[:3] + content


def _with_dictionary() -> bytes:
    samples = [b"a dictionary of words, number %d, and more words" % number for number in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(TAR)


GZIPS: Cases = {
    "gzip: cut off": (GZIP[: len(GZIP) // 2], "cut off"),
    "gzip: cut in its header": (GZIP[:6], "cut off"),
    "gzip: cut in its checksum": (GZIP[:-6], "cut off"),
    "gzip: cut in its length": (GZIP[:-1], "cut off"),
    "gzip: another checksum": (GZIP[:-8] + bytes(4) + GZIP[-4:], "damaged"),
    "gzip: another length": (GZIP[:-4] + bytes(4), "damaged"),
    "gzip: another method": (GZIP[:2] + b"\7" + GZIP[3:], "damaged"),
    "gzip: damaged data": (GZIP[:40] + b"\xff" * 40 + GZIP[80:], "damaged"),
    "gzip: something after it": (GZIP + b"x" * 30, "damaged"),
    "gzip: zeros after it": (GZIP + bytes(30), "damaged"),
    "gzip: half a member after it": (GZIP + GZIP[:5], "cut off"),
    "gzip: a second tar after it": (GZIP + gzip.compress(tar(member(b"../evil"))), "goes on after the mark"),
    "gzip: of nothing": (gzip.compress(b""), "cut off"),
    "gzip: of a text": (gzip.compress(b"no tar at all" * 100), "is no tar"),
    "gzip: of a zip": (gzip.compress(zip_of(Member(b"a", bytes(2000)))), "is no tar|cut off"),
    "gzip: of a gzip": (gzip.compress(gzip.compress(TAR)), "is no tar|cut off"),
    "gzip: of zeros": (gzip.compress(bytes(10**7)), "goes on after the mark"),
    "gzip: a bomb": (gzip.compress(tar(member(b"a", bytes(10**8))), 9), "times its size"),
}

ZSTDS: Cases = {
    "zstd: cut off": (ZSTD[: len(ZSTD) // 2], "cut off"),
    "zstd: cut in its magic": (ZSTD + ZSTD[:3], "followed by something else"),
    "zstd: cut in its header": (ZSTD[:5], "cut off"),
    "zstd: cut in its checksum": (ZSTD[:-1], "cut off"),
    "zstd: without its checksum": (ZSTD[:-4], "cut off"),
    "zstd: another checksum": (ZSTD[:-4] + bytes(4), "damaged"),
    "zstd: something after it": (ZSTD + b"xxxxxx", "followed by something else"),
    "zstd: an old version's frame after it": (ZSTD + b"\x27\xb5\x2f\xfd" + bytes(9), "followed by something else"),
    "zstd: a second tar after it": (ZSTD + zstandard.compress(tar(member(b"../evil"))), "goes on after the mark"),
    "zstd: damaged data": (ZSTD[:30] + b"\xff" * 40 + ZSTD[70:], "damaged"),
    "zstd: a window of 3.75 TB": (MAGIC + b"\0\xff" + _raw_block(TAR), "a window of"),
    "zstd: a window of 256 MiB": (MAGIC + b"\0\x90" + _raw_block(TAR), "a window of"),
    "zstd: one segment of exabytes": (MAGIC + b"\xe0" + b"\xff" * 8 + _raw_block(TAR), "a window of"),
    "zstd: another size": (MAGIC + b"\xa0" + pack("<I", len(TAR) + 512) + _raw_block(TAR), "damaged|cut off"),
    "zstd: a dictionary": (_with_dictionary(), "need a dictionary"),
    "zstd: a dictionary by number": (MAGIC + b"\3" + WINDOW_8_MIB + b"\1\0\0\0" + _raw_block(TAR), "need a dictionary"),
    "zstd: a reserved bit": (MAGIC + b"\x08" + WINDOW_8_MIB + _raw_block(TAR), "damaged"),
    "zstd: a block of no kind": (MAGIC + b"\0" + WINDOW_8_MIB + _raw_block(TAR, kind=3), "damaged"),
    "zstd: a block too large": (MAGIC + b"\0" + WINDOW_8_MIB + _raw_block(bytes(200_000)), "damaged"),
    "zstd: a repeated block too large": (
        MAGIC + b"\0" + WINDOW_8_MIB + _raw_block(b"x", kind=1, size=2**20),
        "damaged",
    ),
    "zstd: no last block": (MAGIC + b"\0" + WINDOW_8_MIB + _raw_block(TAR, last=False), "cut off"),
    "zstd: nothing but what is skipped": (b"\x50\x2a\x4d\x18" + pack("<I", 4) + b"note", "cut off"),
    "zstd: what is skipped is cut off": (b"\x5f\x2a\x4d\x18" + pack("<I", 2**31) + b"note", "cut off"),
    "zstd: of nothing": (zstandard.compress(b""), "cut off"),
    "zstd: of a text": (zstandard.compress(b"no tar at all" * 100), "is no tar"),
    "zstd: of a zip": (zstandard.compress(zip_of(Member(b"a", bytes(2000)))), "is no tar|cut off"),
    "zstd: of zeros": (
        MAGIC + b"\0" + WINDOW_8_MIB + ZEROS_BLOCK * 1000 + EMPTY_ZSTD_BLOCK,
        "goes on after the mark",
    ),
    "zstd: a bomb": (
        zstandard.compress(tar(member(b"a", bytes(10**8))), 19),
        "times its size",
    ),
    "zstd: gigabytes in a few kilobytes": (
        MAGIC + b"\0" + WINDOW_8_MIB + _raw_block(header(b"a", 3 * 10**9), last=False) + ZEROS_BLOCK * 20_000,
        "times its size",
    ),
}

OTHERS: Cases = {
    "nothing at all": (b"", "no archive"),
    "a text": (b"train/a.jpg\n" * 100, "no archive"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(600), "no archive"),
    "one byte": (b"P", "no archive"),
    "bzip2": (bz2.compress(TAR), "of the form bzip2"),
    "xz": (lzma.compress(TAR), "of the form xz"),
    "lzma": (lzma.compress(TAR, lzma.FORMAT_ALONE), "of the form lzma"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "of the form 7z"),
    "rar": (b"Rar!\x1a\7\1\0" + bytes(600), "of the form rar"),
    "cpio": (b"070701" + b"0" * 104 + bytes(600), "of the form cpio"),
    "zlib": (zlib.compress(TAR), "no archive"),
    "zeros": (bytes(10_240), "no archive"),
}

INNER: dict[str, bytes] = {
    "zip": zip_of(Member(b"a")),
    "empty zip": zip_of(),
    "gzip": GZIP,
    "zstd": ZSTD,
    "skippable zstd": b"\x53\x2a\x4d\x18" + pack("<I", 0) + ZSTD,
    "bzip2": bz2.compress(TAR),
    "xz": lzma.compress(TAR),
    "lzma": lzma.compress(TAR, lzma.FORMAT_ALONE),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(30),
    "rar": b"Rar!\x1a\7\0" + bytes(30),
    "tar": TAR,
    "cpio": b"070701" + b"0" * 104,
    "cab": b"MSCF" + bytes(30),
    "lz4": b"\x04\x22\x4d\x18" + bytes(30),
}
SUFFIXES = ["zip", "tar", "tar.gz", "TGZ", "tar.zst", "7z", "rar", "gz", "jar", "Zip"]

NESTED: Cases = {
    **{
        f"tar: {kind} called a picture": (tar(member(b"a.jpg", each)), "itself an archive")
        for kind, each in INNER.items()
    },
    **{
        f"zip: {kind} called a picture": (zip_of(Member(b"a.jpg", each)), "itself an archive")
        for kind, each in INNER.items()
    },
    **{f"tar: called .{end}": (tar(member(b"a." + end.encode())), "itself an archive") for end in SUFFIXES},
    **{
        f"zip: called .{end}": (zip_of(Member(b"a." + end.encode(), method=STORED)), "itself an archive")
        for end in SUFFIXES
    },
}

STREAMS: Cases = GZIPS | ZSTDS | OTHERS | NESTED
