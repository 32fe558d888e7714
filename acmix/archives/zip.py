"""Zips by their central directory, held against every local header.

A zip says everything twice, and programs differ in which they believe. Here both must agree, and members lie side by
side from the first byte to the directory, without overlap or anything between them: every program sees the same files.

Source: APPNOTE.TXT 6.3.10, the format's specification, sections 4.3.7 to 4.3.9.
"""

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from struct import Struct, pack

from acmix.archives import names
from acmix.archives.limits import Limits, Tally
from acmix.archives.names import Name, shown
from acmix.archives.parts import Parts
from acmix.archives.streams import PIECE_BYTES, said
from acmix.archives.tree import Tree, too_large
from acmix.archives.zip_directory import (
    LEVEL,
    NARROW_MOST,
    STORED,
    WITH_DESCRIPTOR,
    Member,
    find_directory,
    members,
    wide_sizes,
)
from acmix.errors import ArchiveRefused

LOCAL = Struct("<4s5H3L2H")  # magic, version, flags, method, time, date, crc, packed, size, lengths of name and extra
LOCAL_MAGIC = b"PK\3\4"
DESCRIPTOR_MAGIC = b"PK\7\x08"
DESCRIPTOR_SIZES = frozenset({12, 16, 20, 24})


def unpack_zip(parts: Parts, tree: Tree, limits: Limits, tally: Tally) -> None:
    directory = find_directory(parts)
    if directory.entries > limits.entries:  # or the offsets alone might fill the memory
        raise ArchiveRefused(f"the zip has {directory.entries} members, {limits.entries} are the most; split it")
    starts = array("Q", sorted(member.offset for member in members(parts, directory, tally)))
    starts.append(directory.start)
    if starts[0] != 0:
        raise ArchiveRefused("something precedes the zip's first member; pack it again, not as a program")
    if any(start >= end for start, end in pairwise(starts)):
        raise ArchiveRefused("members of the zip overlap; pack it again")
    for member in members(parts, directory, tally):
        name = names.check(member.raw_name, limits)
        if member.size_bytes > limits.file_bytes:
            raise too_large(name, limits.file_bytes)
        data_start = _data_start(parts, member, starts[bisect_right(starts, member.offset)])
        tree.add(name, _content(parts, member, name, data_start, tally))


def _data_start(parts: Parts, member: Member, end: int) -> int:
    """Where the member's data begin; it must end, its descriptor included, where the next begins."""
    header = parts.read(member.offset, LOCAL.size)
    if len(header) < LOCAL.size or header[:4] != LOCAL_MAGIC:
        raise ArchiveRefused(f"{shown(member.raw_name)} is not where the zip's directory says; pack it again")
    fields: tuple[int, ...] = LOCAL.unpack(header)[1:]
    _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = fields
    texts = parts.read(member.offset + LOCAL.size, name_bytes + extra_bytes)
    sizes = tuple(wide_sizes(texts[name_bytes:], (size, packed), member.raw_name))
    same = (flags & ~LEVEL, method, texts[:name_bytes]) == (member.flags & ~LEVEL, member.method, member.raw_name)
    if not same or (crc, *sizes) not in _allowed(member):
        raise ArchiveRefused(
            f"{shown(member.raw_name)} differs between the zip's directory and what precedes its data; pack it again"
        )
    data_start = member.offset + LOCAL.size + name_bytes + extra_bytes
    _check_end(parts, member, data_start + member.packed_bytes, end)
    return data_start


def _allowed(member: Member) -> list[tuple[int, int, int]]:
    """Checksum, size and packed size before the data: as in the directory, or none where they follow the data."""
    numbers = member.crc, member.size_bytes, member.packed_bytes
    return [numbers, (0, 0, 0)] if member.flags & WITH_DESCRIPTOR else [numbers]


def _check_end(parts: Parts, member: Member, data_end: int, end: int) -> None:
    if data_end > end:
        raise ArchiveRefused(f"{shown(member.raw_name)} overlaps with what follows it in the zip; pack it again")
    rest_bytes = end - data_end
    if member.flags & WITH_DESCRIPTOR:
        is_whole = rest_bytes in DESCRIPTOR_SIZES and parts.read(data_end, rest_bytes) in _descriptors(member)
    else:
        is_whole = rest_bytes == 0
    if not is_whole:
        raise ArchiveRefused(
            f"{shown(member.raw_name)} is followed by something else than the next member; pack it again"
        )


def _descriptors(member: Member) -> list[bytes]:
    """What may follow the data: with and without a magic, sizes narrow or wide."""
    formats = ["<LQQ"] if max(member.packed_bytes, member.size_bytes) > NARROW_MOST else ["<LLL", "<LQQ"]
    plain = [pack(form, member.crc, member.packed_bytes, member.size_bytes) for form in formats]
    return plain + [DESCRIPTOR_MAGIC + each for each in plain]


def _content(parts: Parts, member: Member, name: Name, start: int, tally: Tally) -> Iterator[bytes]:
    """The member unpacked piece by piece; of the size and checksum that the directory gives, or refused."""
    chunks = tally.reading(parts.chunks(start, start + member.packed_bytes))
    size = crc = 0
    try:
        for piece in tally.giving(chunks if member.method == STORED else _inflated(chunks, name)):
            size += len(piece)
            if size > member.size_bytes:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
    except zlib.error as error:
        raise ArchiveRefused(f"{name} is damaged ({said(error)}); pack it again") from None
    if (size, crc) != (member.size_bytes, member.crc):
        raise ArchiveRefused(f"{name} is not of the size and checksum that the zip gives it; pack it again")


def _inflated(chunks: Iterator[bytes], name: Name) -> Iterator[bytes]:
    """Deflate data that end with the last chunk, neither before nor after."""
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    for chunk in chunks:
        rest = chunk
        while rest and not inflating.eof:
            yield inflating.decompress(rest, PIECE_BYTES)
            rest = inflating.unconsumed_tail
        if inflating.unused_data or (inflating.eof and rest):
            raise ArchiveRefused(f"{name} is followed by something else in its data; pack it again")
    while not inflating.eof:
        piece = inflating.decompress(b"", PIECE_BYTES)
        if not piece and not inflating.eof:
            raise ArchiveRefused(f"{name} is cut off; pack it again")
        yield piece
