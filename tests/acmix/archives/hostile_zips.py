"""Zips that are refused: bytes, and what the refusal says."""

from struct import pack

from tests.acmix.archives.hostile_names import NAMES
from tests.acmix.archives.zips import (
    FOLDER,
    LINK,
    NARROW_MOST,
    STORED,
    Member,
    central,
    deflated,
    descriptor,
    end_record,
    extra,
    local,
    wide_zip,
    zip_of,
)

Cases = dict[str, tuple[bytes, str]]
TEXT = b"hello, hello, hello"


def _with(**fields) -> bytes:
    """A fine member and one that is not."""
    return zip_of(Member(b"fine.txt"), Member(b"a.txt", **fields))


def _both(**numbers) -> bytes:
    """A fine member and one whose headers both say so."""
    return _with(local=numbers, central=numbers)


def _shared(*, entries: int) -> bytes:
    """Many entries of one local header."""
    member = Member(b"a.txt", b"0" * 10_000)
    data = local(member)
    directory = central(member, 0) * entries
    return data + directory + end_record(entries, len(directory), len(data))


def _quoted() -> bytes:
    """The first member's data hold the second member, header and all."""
    inner = Member(b"b.txt", b"0" * 10_000)
    outer = Member(b"a.txt", local(inner), method=STORED)
    data = local(outer)
    directory = central(outer, 0) + central(inner, len(data) - len(local(inner)))
    return data + directory + end_record(2, len(directory), len(data))


def _reaching(packed_bytes: int) -> bytes:
    """A first member whose data reach into the second."""
    first = Member(b"a.txt", b"x" * 50, method=STORED, packed=b"x" * 40)
    numbers = {"packed": packed_bytes, "size": packed_bytes}
    first.local = first.central = numbers
    return zip_of(first, Member(b"b.txt", b"x" * 30, method=STORED))


NAMES_IN_ZIPS: Cases = {
    f"name: {what}": (zip_of(Member(name, b"", method=STORED, attributes=0)), says)
    for what, (name, says) in NAMES.items()
}

KINDS: Cases = {
    "symbolic link out": (_with(content=b"../outside", method=STORED, attributes=LINK), "link or device"),
    "symbolic link and a file through it": (
        zip_of(Member(b"a", b"../outside", attributes=LINK), Member(b"a/evil.txt")),
        "link or device",
    ),
    "link called like macOS's own": (zip_of(Member(b"__MACOSX/a", b"../outside", attributes=LINK)), "link or device"),
    "named pipe": (_with(attributes=0o010644 << 16), "link or device"),
    "character device": (_with(attributes=0o020644 << 16), "link or device"),
    "block device": (_with(attributes=0o060644 << 16), "link or device"),
    "socket": (_with(attributes=0o140644 << 16), "link or device"),
    "folder by its mode": (_with(attributes=FOLDER), "folder by its attributes"),
    "folder by DOS": (_with(attributes=0x10), "folder by its attributes"),
    "file by its mode, folder by name": (zip_of(Member(b"a/", b"")), "folder by its attributes"),
    "folder with content": (zip_of(Member(b"a/", attributes=FOLDER)), "folder with content"),
    "a folder that hides data": (
        zip_of(Member(b"a/", b"", packed=b"hidden", attributes=FOLDER), Member(b"b")),
        "is damaged|size and checksum",
    ),
    "the root with content": (zip_of(Member(b"./", attributes=FOLDER)), "folder with content"),
}

METHODS: Cases = {
    "encrypted": (_with(flags=0x0001), "is encrypted"),
    "strongly encrypted": (_with(flags=0x0041), "is encrypted"),
    "hidden headers": (_with(flags=0x2000), "is encrypted"),
    "AES by method": (_with(method=99, packed=TEXT), "is encrypted"),
    "AES by extra field": (_with(central={"extra": extra(0x9901, bytes(7))}), "is encrypted"),
    "a patch": (_with(flags=0x0020), "is a patch"),
    "flag 4": (_with(flags=0x0010), "unknown flags"),
    "flag 15": (_with(flags=0x8000), "unknown flags"),
    **{
        f"method {number}": (_with(method=number, packed=TEXT), f"compressed by {name}")
        for number, name in {1: "method 1", 6: "method 6", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd"}.items()
    },
    **{
        f"method {number}": (_with(method=number, packed=TEXT), f"compressed by {name}")
        for number, name in {95: "xz", 97: "wavpack", 98: "ppmd", 77: "method 77", 65535: "method 65535"}.items()
    },
}

DISAGREEING: Cases = {
    "another name before the data": (_with(local={"name": b"b.txt"}), "differs between"),
    "a name that leads out before the data": (_with(local={"name": b"../a.txt"}), "differs between"),
    "a name that leads out in the directory": (_with(central={"name": b"../a.txt"}), "differs between|'.' or '..'"),
    "another method before the data": (_with(local={"method": STORED}), "differs between"),
    "another size before the data": (_with(local={"size": 6}), "differs between"),
    "another packed size before the data": (_with(local={"packed": 6}), "differs between"),
    "another checksum before the data": (_with(local={"crc": 6}), "differs between"),
    "no sizes before the data": (_with(local={"crc": 0, "size": 0, "packed": 0}), "differs between"),
    "encrypted before the data": (_with(local={"flags": 1}), "differs between"),
    "a descriptor in the directory alone": (_with(central={"flags": 8}), "differs between"),
    "no header": (_with(local={"magic": b"PK\0\0"}), "is not where"),
    "no entry": (_with(central={"magic": b"PK\0\0"}), "directory is damaged"),
    "a second name before the data": (_with(local={"extra": extra(0x7075, bytes(5) + b"../b")}), "second name"),
    "a second name": (_with(central={"extra": extra(0x7075, b"\1" + bytes(4) + b"../b.txt")}), "second name"),
}

PLACES: Cases = {
    "two entries, one content": (_shared(entries=2), "overlap"),
    "many entries, one content": (_shared(entries=5000), "overlap"),
    "a member in another": (_quoted(), "overlaps with"),
    "data into the next member": (_reaching(45), "overlaps with|is not where"),
    "data into the directory": (
        zip_of(Member(b"a.txt", method=STORED, local={"packed": 99, "size": 99}, central={"packed": 99, "size": 99})),
        "overlaps with",
    ),
    "an offset beyond the end": (_with(central={"offset": 10**6}), "overlap"),
    "an offset into the directory": (_with(central={"offset": 100}), "overlap|is not where"),
    "an offset into data": (_with(central={"offset": 33}), "is not where|overlap|followed"),
    "something between members": (zip_of(Member(b"a", after=b"hidden"), Member(b"b")), "something else than the next"),
    "a member that the directory hides": (
        zip_of(Member(b"a", after=local(Member(b"../evil"))), Member(b"b")),
        "something else than the next",
    ),
    "something before the first": (zip_of(Member(b"a"), prefix=b"PK\3\4"), "precedes"),
    "a program before the first": (
        zip_of(Member(b"a", central={"offset": 40}), prefix=b"#!/bin/sh\n".ljust(40)),
        "no archive",
    ),
    "something before the end": (zip_of(Member(b"a"), before_end=b"x"), "not where its end says"),
    "something after the end": (zip_of(Member(b"a"), suffix=b"x"), "something follows it"),
    "another zip after the end": (zip_of(Member(b"a")) + zip_of(Member(b"b")), "not where its end says"),
    "an end in the comment": (zip_of(Member(b"a"), comment=end_record(0, 0, 0)), "more than one end"),
}

ENDS: Cases = {
    "no end": (zip_of(Member(b"a"))[:-22], "cut off"),
    "half of it": (zip_of(Member(b"a", bytes(range(256)) * 9, method=STORED))[:1000], "cut off"),
    "an end cut short": (zip_of(Member(b"a"))[:-1], "cut off"),
    "another disk": (zip_of(Member(b"a"), disk=1), "one part of several"),
    "a directory on another disk": (zip_of(Member(b"a"), first_disk=1), "one part of several"),
    "entries on another disk": (zip_of(Member(b"a"), here=0), "one part of several"),
    "a member on another disk": (_with(central={"disk": 1}), "one part of several"),
    "the first of several": (b"PK\7\x08" + zip_of(Member(b"a")), "zip in parts"),
    "more entries than there are": (zip_of(Member(b"a"), here=2, entries=2), "cut off"),
    "fewer entries than there are": (zip_of(Member(b"a"), Member(b"b"), here=1, entries=1), "holds more than"),
    "a larger directory": (zip_of(Member(b"a"), size=90), "not where its end says"),
    "a directory elsewhere": (zip_of(Member(b"a"), offset=1), "not where its end says"),
    "no member": (zip_of(), "precedes|holds no file"),
    "nothing but a folder": (zip_of(Member(b"a/", b"", method=STORED, attributes=FOLDER)), "holds no file"),
    "zip64: another count": (wide_zip(Member(b"a"), record={"here": 2, "entries": 2}), "cut off"),
    "zip64: several disks": (wide_zip(Member(b"a"), locator={"disks": 2}), "one part of several"),
    "zip64: another disk": (wide_zip(Member(b"a"), record={"disk": 1}), "one part of several"),
    "zip64: entries elsewhere": (wide_zip(Member(b"a"), record={"here": 0}), "one part of several"),
    "zip64: an end elsewhere": (wide_zip(Member(b"a"), locator={"offset": 3}), "not where it says"),
    "zip64: an end beyond the end": (wide_zip(Member(b"a"), locator={"offset": 2**63}), "not where it says"),
    "zip64: a longer end": (wide_zip(Member(b"a"), record={"length": 45}), "not where it says"),
    "zip64: a directory of exabytes": (wide_zip(Member(b"a"), record={"size": 2**63}), "not where its end says"),
    "zip64: two ends that differ": (
        wide_zip(Member(b"a"))[:-22] + end_record(1, NARROW_MOST, 7),
        "two ends differ",
    ),
    "zip64: an end without its locator": (
        zip_of(Member(b"a"), size=NARROW_MOST, offset=NARROW_MOST),
        "not where its end says",
    ),
}

EXTRAS: Cases = {
    "a wide size without its field": (_both(size=NARROW_MOST), "in two ways"),
    "a wide field without need": (_with(central={"extra": extra(1, pack("<Q", 5))}), "in two ways"),
    "half a wide field": (_both(size=NARROW_MOST, extra=extra(1, bytes(4))), "in two ways"),
    "two wide fields": (
        _with(central={"size": NARROW_MOST, "extra": extra(1, pack("<Q", 5)) + extra(1, pack("<Q", 9))}),
        "damaged extra field",
    ),
    "wide sizes that differ": (
        _with(
            central={"size": NARROW_MOST, "extra": extra(1, pack("<Q", 5))},
            local={"size": NARROW_MOST, "packed": NARROW_MOST, "extra": extra(1, pack("<QQ", 5, 9))},
        ),
        "differs between",
    ),
    "a field longer than its place": (_with(central={"extra": pack("<2H", 0x5455, 50) + bytes(5)}), "damaged extra"),
    "a field cut short": (_with(central={"extra": b"\1\2\3"}), "damaged extra"),
    "a size of exabytes": (
        _with(
            central={"size": NARROW_MOST, "extra": extra(1, pack("<Q", 2**63))},
            local={"size": NARROW_MOST, "packed": 7, "extra": extra(1, pack("<Q", 2**63))},
        ),
        "larger than",
    ),
}

DATA: Cases = {
    "another checksum": (_both(crc=1), "size and checksum"),
    "more than was said": (_both(size=4), "size and checksum"),
    "far more than was said": (
        zip_of(Member(b"a", bytes(10**7), local={"size": 10}, central={"size": 10})),
        "size and checksum",
    ),
    "less than was said": (_both(size=6), "size and checksum"),
    "stored, and less than was said": (
        _with(method=STORED, local={"size": 6}, central={"size": 6}),
        "size and checksum",
    ),
    "no deflate data": (_with(packed=b"\xff" * 30), "is damaged"),
    "deflate data cut off": (_with(content=TEXT, packed=deflated(TEXT)[:-3]), "cut off|size and checksum"),
    "deflate data of nothing": (_with(packed=b""), "cut off"),
    "something after the deflate data": (_with(packed=deflated(b"hello") + b"x"), "something else in its data"),
    "a zip after the deflate data": (
        _with(packed=deflated(b"hello") + zip_of(Member(b"b"))),
        "something else in its data",
    ),
    "a descriptor missing": (_with(flags=8), "something else than the next"),
    "a descriptor without need": (_with(after=descriptor(b"hello", 7)), "something else than the next"),
    "a descriptor that differs": (_with(flags=8, after=descriptor(b"hellO", 7)), "something else than the next"),
    "half a descriptor": (_with(flags=8, after=descriptor(b"hello", 7)[:12]), "something else than the next"),
    "two descriptors": (_with(flags=8, after=descriptor(b"hello", 7) * 2), "something else than the next"),
    "a descriptor called otherwise": (
        _with(flags=8, after=descriptor(b"hello", 7, magic=b"PK\7\7")),
        "something else than the next",
    ),
}

TWICE: Cases = {
    "twice": (zip_of(Member(b"a"), Member(b"a", b"evil")), "is there twice"),
    "twice in other case": (zip_of(Member(b"photo.jpg"), Member(b"PHOTO.jpg")), "is there twice"),
    "twice by composition": (zip_of(Member("é".encode()), Member("e\u0301".encode())), "is there twice"),
    "a folder in other case": (zip_of(Member(b"train/a"), Member(b"Train/b")), "is there twice"),
    "a file, then a folder": (zip_of(Member(b"a"), Member(b"a/b")), "both a file and a folder"),
    "a folder, then a file": (zip_of(Member(b"a/b"), Member(b"a")), "both a file and a folder"),
}

ZIPS: Cases = NAMES_IN_ZIPS | KINDS | METHODS | DISAGREEING | PLACES | ENDS | EXTRAS | DATA | TWICE
