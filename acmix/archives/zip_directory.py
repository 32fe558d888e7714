"""The central directory of a zip: where it lies, and what it says of every member.

Source: APPNOTE.TXT 6.3.10, the format's specification, sections 4.3.12 to 4.5.3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from stat import S_IFDIR, S_IFMT, S_IFREG
from struct import Struct, unpack_from

from acmix.archives.limits import Tally
from acmix.archives.names import shown
from acmix.archives.parts import Parts
from acmix.archives.streams import Stream
from acmix.errors import ArchiveRefused

END = Struct("<4s4H2LH")  # magic, two disks, entries here and in all, size, offset, length of the comment
END_WIDE = Struct("<4sQ2H2L4Q")  # magic, size, two versions, two disks, entries here and in all, size, offset
LOCATOR = Struct("<4sLQL")  # magic, disk, offset of END_WIDE, disks
ENTRY = Struct("<4s6H3L5H2L")
END_MAGIC, END_WIDE_MAGIC, LOCATOR_MAGIC, ENTRY_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
MOST_COMMENT_BYTES = 0xFFFF
NARROW_MOST = 0xFFFFFFFF  # in a field of four bytes: look in the wide one

ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # weakly, strongly, the directory itself
PATCHED = 0x0020
WITH_DESCRIPTOR = 0x0008
LEVEL = 0x0006  # of compression; says nothing of the content
KNOWN_FLAGS = LEVEL | WITH_DESCRIPTOR | 0x0800  # the last: the name is UTF-8

STORED, DEFLATED = 0, 8
OTHER_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 97: "wavpack", 98: "ppmd", 99: "AES"}
WIDE, UNICODE_PATH, AES = 0x0001, 0x7075, 0x9901  # kinds of extra fields
DOS_FOLDER = 0x10


@dataclass(frozen=True)
class Directory:
    start: int
    end: int
    entries: int


@dataclass(frozen=True)
class Member:
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int  # of the local header

    @property
    def is_folder(self) -> bool:
        return self.raw_name.endswith(b"/")


def find_directory(parts: Parts) -> Directory:
    """Where the central directory lies; only the end record, itself the last of the file, may follow it."""
    tail_start = max(0, parts.size_bytes - END.size - MOST_COMMENT_BYTES)
    at = tail_start + _end_in(parts.read(tail_start, parts.size_bytes - tail_start))
    _, disk, first_disk, entries_here, entries, size, offset, _ = END.unpack(parts.read(at, END.size))
    if disk or first_disk or entries_here != entries:
        raise ArchiveRefused("the archive is one part of several; pack all in one zip")
    end = at
    if at >= LOCATOR.size and parts.read(at - LOCATOR.size, 4) == LOCATOR_MAGIC:
        end, narrow = _wide_end(parts, at - LOCATOR.size), (entries, size, offset)
        entries, size, offset = END_WIDE.unpack(parts.read(end, END_WIDE.size))[-3:]
        _check_agree(narrow, (entries, size, offset))
    if offset + size != end:
        raise ArchiveRefused("the zip's directory is not where its end says, or something precedes it; pack it again")
    return Directory(offset, end, entries)


def members(parts: Parts, directory: Directory, tally: Tally) -> Iterator[Member]:
    """Every member, as the directory has them."""
    stream = Stream(tally.reading(parts.chunks(directory.start, directory.end)))
    for _ in range(directory.entries):
        yield _member(stream)
    if stream.take(1):
        raise ArchiveRefused("the zip's directory holds more than its end says; pack it again")


def wide_sizes(extra: bytes, narrow: Sequence[int], raw_name: bytes) -> list[int]:
    """The numbers of a header, those from the extra field for wide ones in whose place the header has its most."""
    wide = _extra_fields(extra, raw_name).get(WIDE, b"")
    wanted = [number == NARROW_MOST for number in narrow]
    if len(wide) != 8 * sum(wanted):
        raise ArchiveRefused(f"{shown(raw_name)} gives its sizes in two ways (zip64); pack it again")
    numbers = iter(unpack_from(f"<{sum(wanted)}Q", wide))
    return [next(numbers) if is_wide else number for number, is_wide in zip(narrow, wanted, strict=True)]


def _end_in(tail: bytes) -> int:
    """Where the end record begins whose comment ends with the file; there must be one such."""
    found, at = [], tail.find(END_MAGIC)
    while at >= 0:
        if at + END.size <= len(tail) and at + END.size + END.unpack_from(tail, at)[-1] == len(tail):
            found.append(at)
        at = tail.find(END_MAGIC, at + 1)
    if len(found) != 1:
        raise ArchiveRefused(
            "the zip has more than one end; pack it again"
            if found
            else "the zip is cut off, or something follows it; upload all of it and nothing else"
        )
    return found[0]


def _wide_end(parts: Parts, locator_at: int) -> int:
    """Where the zip64 end record lies: right before its locator."""
    disk, at, disks = _numbers(LOCATOR, parts.read(locator_at, LOCATOR.size))
    record = parts.read(at, END_WIDE.size)
    if disk or disks > 1:
        raise ArchiveRefused("the archive is one part of several; pack all in one zip")
    if len(record) < END_WIDE.size or record[:4] != END_WIDE_MAGIC:
        raise ArchiveRefused("the zip's end (zip64) is not where it says; pack it again")
    size, _, _, disk, first_disk, entries_here, entries, _, _ = _numbers(END_WIDE, record)
    if disk or first_disk or entries_here != entries:
        raise ArchiveRefused("the archive is one part of several; pack all in one zip")
    if at + 12 + size != locator_at:
        raise ArchiveRefused("the zip's end (zip64) is not where it says; pack it again")
    return at


def _numbers(fields: Struct, record: bytes) -> tuple[int, ...]:
    """What follows the magic."""
    return fields.unpack(record)[1:]


def _check_agree(narrow: Sequence[int], wide: Sequence[int]) -> None:
    for number, other, most in zip(narrow, wide, (0xFFFF, NARROW_MOST, NARROW_MOST), strict=True):
        if number not in {other, most}:
            raise ArchiveRefused(f"the zip's two ends differ: {number} and {other}; pack it again")


def _member(stream: Stream) -> Member:
    fields = ENTRY.unpack(stream.exactly(ENTRY.size))
    magic, _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment_bytes, disk, _, mode, at = (
        fields
    )
    if magic != ENTRY_MAGIC:
        raise ArchiveRefused("the zip's directory is damaged; pack it again")
    raw_name, extra = stream.exactly(name_bytes), stream.exactly(extra_bytes)
    stream.skip(comment_bytes)
    if disk:
        raise ArchiveRefused("the archive is one part of several; pack all in one zip")
    _check_method(raw_name, flags, method, extra)
    size, packed, at = wide_sizes(extra, (size, packed, at), raw_name)
    member = Member(raw_name, flags, method, crc, packed, size, at)
    _check_kind(member, mode)
    return member


def _check_method(raw_name: bytes, flags: int, method: int, extra: bytes) -> None:
    fields = _extra_fields(extra, raw_name)
    if flags & ENCRYPTED or AES in fields or OTHER_METHODS.get(method) == "AES":
        raise ArchiveRefused(f"{shown(raw_name)} is encrypted; pack it without a password")
    if flags & ~KNOWN_FLAGS:
        what = "a patch" if flags & PATCHED else f"packed with unknown flags ({flags:#06x})"
        raise ArchiveRefused(f"{shown(raw_name)} is {what}; pack it with another program")
    if method not in {STORED, DEFLATED}:
        how = OTHER_METHODS.get(method, f"method {method}")
        raise ArchiveRefused(f"{shown(raw_name)} is compressed by {how}; zips are read with deflate or uncompressed")


def _check_kind(member: Member, attributes: int) -> None:
    """A regular file or a folder, as the name's last character says; the attributes of no system say otherwise."""
    shape = S_IFMT(attributes >> 16)
    if shape not in {0, S_IFREG, S_IFDIR}:
        raise ArchiveRefused(
            f"{shown(member.raw_name)} is a link or device; pack regular files, and what links lead to"
        )
    says_folder = shape == S_IFDIR or bool(attributes & DOS_FOLDER)
    says_file = shape == S_IFREG
    if (says_folder and not member.is_folder) or (says_file and member.is_folder):
        raise ArchiveRefused(
            f"{shown(member.raw_name)} is a file by name and a folder by its attributes, or the reverse; pack it again"
        )
    if member.is_folder and member.size_bytes:
        raise ArchiveRefused(f"{shown(member.raw_name)} is a folder with content; pack it again")


def _extra_fields(extra: bytes, raw_name: bytes) -> dict[int, bytes]:
    """By kind; up to three zeros may fill the end."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, size = unpack_from("<2H", extra, at)
        at += 4 + size
        if at > len(extra) or (kind in fields and kind in {WIDE, UNICODE_PATH}):
            raise ArchiveRefused(f"{shown(raw_name)} has a damaged extra field; pack it again")
        fields[kind] = extra[at - size : at]
    if extra[at:].strip(b"\0"):
        raise ArchiveRefused(f"{shown(raw_name)} has a damaged extra field; pack it again")
    if fields.get(UNICODE_PATH, bytes(5) + raw_name)[5:] != raw_name:  # after a version and a checksum
        raise ArchiveRefused(f"{shown(raw_name)} has a second name; pack it with names in UTF-8")
    return fields
