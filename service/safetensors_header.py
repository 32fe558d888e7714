"""The header of a safetensors file, checked without reading a tensor: what a file claims, it must hold.

Source: the format's description: eight bytes of the header's length, little-endian; the header, JSON that begins with
`{` and may end in spaces; then the tensors, side by side without a gap, each at its `data_offsets` behind the header.
"""

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from service import json_body
from service.errors import RequestRefused

ABOUT = "acmix"  # the key of the metadata under which files of ours say what they are
METADATA = "__metadata__"
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_NAME_CHARACTERS = 500
MAX_DIMENSIONS = 16
MAX_ABOUT_CHARACTERS = 2**18
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}


class HeaderInvalid(Exception):
    """The file is not what a safetensors file must be; the message says where."""


@dataclass(frozen=True)
class Header:
    """How many tensors a file holds, of how many numbers in all, and what it says of itself, if it is one of ours."""

    tensors: int
    params: int
    about: dict[str, Any] | None


def read_header(file: BinaryIO, size_bytes: int) -> Header:
    """The header of an open file of that size, from its start; HeaderInvalid."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= size_bytes - 8:
        raise HeaderInvalid(f"its first 8 bytes give no length of a header within its {size_bytes} bytes")
    if length > MAX_HEADER_BYTES:
        raise HeaderInvalid(f"its header of {length} bytes is longer than {MAX_HEADER_BYTES}")
    fields = _fields(file.read(length))
    about = _about(fields.pop(METADATA, None))
    if not 1 <= len(fields) <= MAX_TENSORS:
        raise HeaderInvalid(f"it holds {len(fields)} tensors; 1 to {MAX_TENSORS} would do")
    spans = [(*_span(name, tensor), name) for name, tensor in fields.items()]
    _check_side_by_side(spans, size_bytes - 8 - length)
    return Header(len(fields), sum(prod(tensor["shape"]) for tensor in fields.values()), about)


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_once) if text.startswith(b"{") else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise HeaderInvalid("its header is no JSON object, or has a field twice")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _about(metadata: Any) -> dict[str, Any] | None:
    """What a file of ours says of itself; other files may say what they like, in strings."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderInvalid(f"{METADATA} must be an object of strings")
    text = metadata.get(ABOUT, "")
    try:
        about = json_body.loads(text.encode()) if len(text) <= MAX_ABOUT_CHARACTERS else None
    except (RequestRefused, UnicodeEncodeError):
        return None
    return about if isinstance(about, dict) else None


def _span(name: str, tensor: Any) -> tuple[int, int]:
    """Where a tensor begins and ends behind the header."""
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise HeaderInvalid(f"a tensor's name must be printable, of 1 to {MAX_NAME_CHARACTERS} characters")
    shown = name[:100]
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderInvalid(f"{shown} must have dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderInvalid(f"{shown} has a dtype that is none of {', '.join(BITS)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderInvalid(
            f"the shape of {shown} must be a list of at most {MAX_DIMENSIONS} whole numbers, none below 0"
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderInvalid(f"data_offsets of {shown} must be two whole numbers, none below 0")
    start, end = offsets
    if end - start != prod(shape) * BITS[dtype] // 8:
        raise HeaderInvalid(f"{shown} takes {end - start} bytes, which are not what its shape and dtype need")
    return start, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)


def _check_side_by_side(spans: list[tuple[int, int, str]], size_bytes: int) -> None:
    """No overlap, no gap, nothing behind the last one."""
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise HeaderInvalid(f"{name[:100]} begins at byte {start} where the one before ends at {at}")
        at = end
    if at != size_bytes:
        raise HeaderInvalid(f"its tensors end at byte {at} of {size_bytes} behind the header")
