"""Tars as a stream of headers and contents: of ustar, pax and GNU what names and sizes a regular file or folder."""

# A header is a block of 512 bytes; a content takes whole blocks. Source: POSIX.1-2024, pax; GNU tar's manual.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from acmix.archives import names
from acmix.archives.forms import is_tar_header
from acmix.archives.limits import Limits
from acmix.archives.names import shown
from acmix.archives.streams import Stream
from acmix.archives.tree import Tree, too_large
from acmix.errors import ArchiveRefused

BLOCK_BYTES = 512
END = bytes(BLOCK_BYTES)
MOST_EXTENSION_BYTES = 2**20  # a pax header or a GNU long name
MOST_FILLING_BYTES = 2**20  # zeros after the end: a tape's block, 10 KiB by custom

USTAR, GNU, OLD = b"ustar\x0000", b"ustar  \0", bytes(8)
REGULAR, FOLDER = (b"0", b"\0"), b"5"
LONG_NAME, PAX, PAX_GLOBAL = b"L", b"x", b"g"
OTHERS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"D": "a folder of an incremental backup",
    b"K": "a link with a long name",
    b"M": "part of a file that spans several archives",
    b"N": "a file with a long name in an old form",
    b"S": "a sparse file",
    b"V": "a volume's label",
    b"X": "a header of Solaris's own",
}
# what pax says of a member besides its name and size, and what is not looked at
PASSED_OVER = frozenset({"atime", "comment", "ctime", "gid", "gname", "mtime", "uid", "uname"})
CHARSETS = frozenset({b"ISO-IR 10646 2000 UTF-8", b"BINARY"})


@dataclass(frozen=True)
class _Header:
    raw_name: bytes
    size_bytes: int
    kind: bytes


@dataclass
class _Extensions:
    """What headers before a member's own say of it."""

    raw_name: bytes | None = None
    size_bytes: int | None = None
    of: str | None = None  # the kind of header, for a sentence


def unpack_tar(stream: Stream, tree: Tree, limits: Limits) -> None:
    for header in _members(stream):
        name = names.check(header.raw_name, limits)
        if header.size_bytes > limits.file_bytes:
            raise too_large(name, limits.file_bytes)
        if name.of_folder and header.size_bytes:
            raise ArchiveRefused(f"{name} is a folder with content; pack it again")
        if header.kind == FOLDER:
            name = names.Name(name.parts, of_folder=True)
        tree.add(name, stream.pieces(header.size_bytes))
    _check_filling(stream)


def _members(stream: Stream) -> Iterator[_Header]:
    """Headers of files and folders, each with the name and size that count; contents are the reader's to take."""
    extensions = _Extensions()
    while (block := stream.exactly(BLOCK_BYTES)) != END:
        if stream.position == BLOCK_BYTES and not is_tar_header(block):  # a tar that is not compressed begins with one
            raise ArchiveRefused("what is compressed is no tar; pack the files as tar.gz, tar.zst, tar or zip")
        header = _header(block)
        content_end = stream.position + -(-header.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        if header.kind in {LONG_NAME, PAX, PAX_GLOBAL}:
            _extend(extensions, header, stream)
        else:
            yield _extended(header, extensions)
            extensions = _Extensions()
        stream.skip(content_end - stream.position)
    if extensions.of:
        raise ArchiveRefused(f"the archive's last {extensions.of} belongs to no file; pack it again")
    if stream.exactly(BLOCK_BYTES) != END:
        raise ArchiveRefused("the archive goes on after the mark of its end; pack everything at once")


def _header(block: bytes) -> _Header:
    if not is_tar_header(block):
        raise ArchiveRefused(f"the header of {shown(_text(block, 0, 100))} is damaged; pack it again")
    magic = block[257:265]
    if magic not in {USTAR, GNU, OLD}:
        raise ArchiveRefused(
            f"{shown(_text(block, 0, 100))} is in no known form of tar; pack it with a current program"
        )
    raw_name = _text(block, 0, 100)
    if magic == USTAR and (prefix := _text(block, 345, 500)):
        raw_name = prefix + b"/" + raw_name
    return _Header(raw_name, _size(block[124:136], raw_name), _kind(block, raw_name))


def _kind(block: bytes, raw_name: bytes) -> bytes:
    kind = block[156:157]
    if kind in {*REGULAR, FOLDER, LONG_NAME, PAX, PAX_GLOBAL}:
        return kind
    what = OTHERS.get(kind, f"of an unknown kind ({shown(kind)})")
    raise ArchiveRefused(f"{shown(raw_name)} is {what}; pack regular files and folders, and what links lead to")


def _text(block: bytes, start: int, end: int) -> bytes:
    """A field up to its first zero; after it there are only zeros, or programs would read different names."""
    text, _, rest = block[start:end].partition(b"\0")
    if rest.strip(b"\0"):
        name = shown(block[start:end].rstrip(b"\0"))
        raise ArchiveRefused(f"the name {name} goes on after a zero byte; rename it and pack again")
    return text


def _size(digits: bytes, raw_name: bytes) -> int:
    """Octal digits, or GNU's binary form where the first bit is set."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    octal = digits.strip(b" \0")
    if octal.strip(b"01234567"):
        raise ArchiveRefused(f"{shown(raw_name)} has the size {shown(digits)}, which is none; pack it again")
    return int(octal or b"0", 8)


def _extend(extensions: _Extensions, header: _Header, stream: Stream) -> None:
    """Take what a long name or pax header says; one that is there twice, or beside another, is refused."""
    if header.size_bytes > MOST_EXTENSION_BYTES:
        raise ArchiveRefused(
            f"the archive has a header of {header.size_bytes} bytes, {MOST_EXTENSION_BYTES} are the most; "
            "pack it without extended attributes"
        )
    content = stream.exactly(header.size_bytes)
    if header.kind == PAX_GLOBAL:
        _check_global(_records(content))
        return
    if extensions.of:
        raise ArchiveRefused("the archive has two headers for one file's name; pack it with another program")
    if header.kind == LONG_NAME:
        extensions.of, extensions.raw_name = "long name", _text(content, 0, len(content))
    else:
        records = _records(content)
        extensions.of, extensions.raw_name = "pax header", records.get("path")
        extensions.size_bytes = _pax_size(records)


def _records(content: bytes) -> dict[str, bytes]:
    """The records of a pax header, `length keyword=value` and a line feed each; length counts all of the record."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(content):
        digits = content[start : start + 8].partition(b" ")[0]
        end = start + (int(digits) if digits.isdigit() else 0)
        keyword, equals, value = content[start + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise ArchiveRefused("a pax header of the archive is damaged; pack it again")
        name = keyword.decode("utf-8", "replace")
        if name in records:
            raise ArchiveRefused(f"a pax header of the archive gives {shown(name)} twice; pack it again")
        records[name] = value
        start = end
    _check_keywords(records)
    return records


def _check_keywords(records: Mapping[str, bytes]) -> None:
    for name, value in records.items():
        if name.startswith("GNU.sparse."):
            raise ArchiveRefused("the archive holds a sparse file; pack it without --sparse")
        if name == "hdrcharset" and value not in CHARSETS:
            raise ArchiveRefused(f"the archive's names are in {shown(value)}; pack it with names in UTF-8")
        is_known = name in PASSED_OVER or name in {"path", "size", "hdrcharset"}
        if not is_known and "." not in name:  # a vendor's own have one: SCHILY.xattr.user.note
            raise ArchiveRefused(f"the archive has a pax header {shown(name)}; pack regular files and folders only")


def _check_global(records: Mapping[str, bytes]) -> None:
    if wrong := {"path", "size"} & set(records):
        raise ArchiveRefused(f"the archive gives all its files one {min(wrong)}; pack it again")


def _pax_size(records: Mapping[str, bytes]) -> int | None:
    digits = records.get("size")
    if digits is None:
        return None
    if not digits.isdigit() or len(digits) > 20:
        raise ArchiveRefused(f"a pax header of the archive gives the size {shown(digits)}; pack it again")
    return int(digits)


def _extended(header: _Header, extensions: _Extensions) -> _Header:
    """The member under the name that counts. A second size is refused: where the next header is would depend on it."""
    raw_name = header.raw_name if extensions.raw_name is None else extensions.raw_name
    if extensions.size_bytes not in {None, header.size_bytes}:
        raise ArchiveRefused(
            f"{shown(raw_name)} has two sizes, {header.size_bytes} and {extensions.size_bytes} bytes; pack it again"
        )
    if header.kind == FOLDER and header.size_bytes:
        raise ArchiveRefused(f"{shown(raw_name)} is a folder with content; pack it again")
    return _Header(raw_name, header.size_bytes, header.kind)


def _check_filling(stream: Stream) -> None:
    """Only zeros may follow the end, and not many: they fill a tape's block."""
    filling = stream.take(MOST_FILLING_BYTES + 1)
    if filling.strip(b"\0") or len(filling) > MOST_FILLING_BYTES:
        raise ArchiveRefused("the archive goes on after the mark of its end; pack everything at once")
