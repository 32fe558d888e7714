"""Tars written by hand, block by block, also such as no program would write."""

from collections.abc import Mapping

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
USTAR, GNU, OLD = b"ustar\x0000", b"ustar  \0", bytes(8)


def tar(*members: bytes, end: bytes = END) -> bytes:
    return b"".join(members) + end


def member(name: bytes, content: bytes = b"hello", **fields: bytes) -> bytes:
    """A header and its content; fields as in `header`."""
    return header(name, len(content), **fields) + padded(content)


def header(
    name: bytes,
    size: int = 0,
    *,
    kind: bytes = b"0",
    magic: bytes = USTAR,
    link: bytes = b"",
    prefix: bytes = b"",
    size_field: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    size_field = b"%011o\0" % size if size_field is None else size_field
    block = b"".join(
        [
            name.ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,
            size_field,
            b"00000000000\0",
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            magic,
            bytes(80),
            prefix.ljust(155, b"\0"),
            bytes(12),
        ]
    )
    checksum = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + checksum + block[156:]


def pax(records: Mapping[bytes, bytes] | bytes, *, kind: bytes = b"x") -> bytes:
    """A pax header of these records, or of these bytes as they are."""
    content = records if isinstance(records, bytes) else b"".join(record(*item) for item in records.items())
    return member(b"PaxHeaders/x", content, kind=kind)


def record(keyword: bytes, value: bytes) -> bytes:
    """`length keyword=value`, the length counting its own digits."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def long_name(name: bytes) -> bytes:
    """GNU's header for a name that does not fit."""
    return member(b"././@LongLink", name + b"\0", kind=b"L", magic=GNU)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK_BYTES)
