"""Zips written by hand, field by field, also such as no program would write."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import pack

STORED, DEFLATED = 0, 8
NARROW_MOST = 0xFFFFFFFF
REGULAR, FOLDER, LINK = 0o100644 << 16, 0o040755 << 16, 0o120777 << 16


@dataclass
class Member:
    """A member as it should be; `local` and `central` put other numbers, names or extras into its two headers."""

    name: bytes
    content: bytes = b"hello"
    method: int = DEFLATED
    flags: int = 0
    attributes: int = REGULAR
    packed: bytes | None = None  # instead of the content, compressed
    after: bytes = b""  # a descriptor, or what does not belong there
    local: Mapping[str, object] = field(default_factory=dict)
    central: Mapping[str, object] = field(default_factory=dict)

    def data(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.content) if self.method == DEFLATED else self.content

    def fields(self, changed: Mapping[str, object]) -> dict[str, object]:
        numbers = {"crc": zlib.crc32(self.content), "packed": len(self.data()), "size": len(self.content)}
        rest = {"name": self.name, "flags": self.flags, "method": self.method, "extra": b"", "comment": b"", "disk": 0}
        return {**numbers, **rest, "attributes": self.attributes, "magic": None, **changed}


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def local(member: Member) -> bytes:
    it = member.fields(member.local)
    numbers = pack("<5H3L", 20, it["flags"], it["method"], 0, 33, it["crc"], it["packed"], it["size"])
    header = (it["magic"] or b"PK\3\4") + numbers + pack("<2H", len(it["name"]), len(it["extra"]))
    return header + it["name"] + it["extra"] + member.data() + member.after


def central(member: Member, offset: int) -> bytes:
    it = {"offset": offset, **member.fields(member.central)}
    numbers = pack("<6H3L", 0x0314, 20, it["flags"], it["method"], 0, 33, it["crc"], it["packed"], it["size"])
    lengths = pack("<5H", len(it["name"]), len(it["extra"]), len(it["comment"]), it["disk"], 0)
    header = (it["magic"] or b"PK\1\2") + numbers + lengths + pack("<2L", it["attributes"], it["offset"])
    return header + it["name"] + it["extra"] + it["comment"]


def zip_of(
    *members: Member,
    prefix: bytes = b"",
    before_end: bytes = b"",
    comment: bytes = b"",
    suffix: bytes = b"",
    **end: int,
) -> bytes:
    """All members, the directory and the end, of which `end` changes fields; `before_end` is not in the directory."""
    data, entries = prefix, []
    for each in members:
        entries.append(central(each, len(data)))
        data += local(each)
    directory = b"".join(entries)
    return data + directory + before_end + end_record(len(members), len(directory), len(data), comment, **end) + suffix


def end_record(entries: int, size: int, offset: int, comment: bytes = b"", /, **changed: int) -> bytes:
    it = {"disk": 0, "first_disk": 0, "here": entries, "entries": entries, "size": size, "offset": offset, **changed}
    numbers = it["disk"], it["first_disk"], it["here"], it["entries"], it["size"], it["offset"]
    return pack("<4s4H2LH", b"PK\5\6", *numbers, len(comment)) + comment


def wide_zip(
    *members: Member, record: Mapping[str, int] | None = None, locator: Mapping[str, int] | None = None
) -> bytes:
    """The same with a zip64 end; its numbers and those of its locator can be changed."""
    data, entries = b"", []
    for each in members:
        entries.append(central(each, len(data)))
        data += local(each)
    directory = b"".join(entries)
    it = {"length": 44, "disk": 0, "here": len(members), "entries": len(members), "size": len(directory)}
    it |= {"offset": len(data), **(record or {})}
    wide = pack("<4sQ2H2L", b"PK\6\6", it["length"], 45, 45, it["disk"], 0)
    wide += pack("<4Q", it["here"], it["entries"], it["size"], it["offset"])
    at = {"disk": 0, "offset": len(data) + len(directory), "disks": 1, **(locator or {})}
    wide += pack("<4sLQL", b"PK\6\7", at["disk"], at["offset"], at["disks"])
    return data + directory + wide + end_record(0xFFFF, NARROW_MOST, NARROW_MOST)


def extra(kind: int, content: bytes) -> bytes:
    return pack("<2H", kind, len(content)) + content


def descriptor(content: bytes, packed_bytes: int, *, form: str = "<LLL", magic: bytes = b"PK\7\x08") -> bytes:
    return magic + pack(form, zlib.crc32(content), packed_bytes, len(content))
