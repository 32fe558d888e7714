"""Hostile and broken files against the header's reader; whole ones against the format's own library."""

import io
import json
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from service.safetensors_header import MAX_HEADER_BYTES, Header, HeaderInvalid, read_header

WHOLE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def read(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content))


def file_of(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {**WHOLE["a"], **changes}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_what_the_formats_library_writes_is_read(dtype: torch.dtype) -> None:
    tensors = {"matrix": torch.ones(3, 4), "empty": torch.ones(0, 2), "scalar": torch.ones(())}
    content = save({name: value.to(dtype) for name, value in tensors.items()})
    assert read(content) == Header(tensors=3, params=13, about=None)


def test_a_file_of_ours_says_what_it_is() -> None:
    about = {"spec": {"backbone": {"name": "resnet26"}}, "step": 3}
    assert read(save({"a": torch.ones(2)}, {"acmix": json.dumps(about)})).about == about


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\u0000"}', "[" * 5000, " " * 2**19], ids=range(7)
)
def test_what_a_file_says_of_itself_is_left_out_where_it_cannot_be_kept(text: str) -> None:
    assert read(save({"a": torch.ones(2)}, {"acmix": text})).about is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "give no length of a header"),
        (b"PK\x03\x04" + bytes(100), "give no length of a header"),
        ((2**63).to_bytes(8, "little") + b"{}", "give no length of a header"),
        ((100).to_bytes(8, "little") + b"{}", "give no length of a header"),
        (file_of(b" " * (MAX_HEADER_BYTES + 1)), "is longer than"),
        (file_of(b"[]"), "no JSON object"),
        (file_of(b"{{"), "no JSON object"),
        (file_of(b"\xff\xfe"), "no JSON object"),
        (file_of(b'{"a":' + b"[" * 100_000), "no JSON object"),
        (file_of(b'{"a": 1, "a": 2}'), "has a field twice"),
        (file_of({}), "it holds 0 tensors"),
        (file_of({"__metadata__": {"format": 1}, **WHOLE}), "__metadata__ must be an object of strings"),
        (file_of({"": WHOLE["a"]}), "name must be printable"),
        (file_of({"a\n": WHOLE["a"]}), "name must be printable"),
        (file_of({"a" * 501: WHOLE["a"]}), "name must be printable"),
        (file_of({"a": 3}), "a must have dtype, shape and data_offsets"),
        (file_of({"a": {**WHOLE["a"], "more": 1}}), "and nothing else"),
        (file_of(tensor(dtype="F31")), "a has a dtype that is none of F64"),
        (file_of(tensor(dtype=["F32"])), "a has a dtype"),
        (file_of(tensor(shape=[-2])), "the shape of a must be"),
        (file_of(tensor(shape=[2.0])), "the shape of a must be"),
        (file_of(tensor(shape=[True, 2])), "the shape of a must be"),
        (file_of(tensor(shape=[1] * 17)), "the shape of a must be"),
        (file_of(tensor(shape=[2**52, 2**52])), "a takes 8 bytes"),
        (file_of(tensor(data_offsets=[0])), "data_offsets of a must be"),
        (file_of(tensor(data_offsets=[8, 0])), "a takes -8 bytes"),
        (file_of(tensor(data_offsets=[0, 2**60])), "data_offsets of a must be"),
        (file_of(tensor(data_offsets=[4, 12]), bytes(12)), "a begins at byte 4 where the one before ends at 0"),
        (file_of({**WHOLE, "b": {**WHOLE["a"], "data_offsets": [4, 12]}}, bytes(12)), "b begins at byte 4"),
        (file_of(WHOLE, bytes(9)), "its tensors end at byte 8 of 9"),
        (file_of(WHOLE, bytes(7)), "its tensors end at byte 8 of 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_file_claims_and_does_not_hold_is_told(content: bytes, sentence: str) -> None:
    with pytest.raises(HeaderInvalid, match=sentence):
        read(content)


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_no_bytes_break_it(noise: bytes, at: int, value: int) -> None:
    whole = bytearray(save({"a": torch.ones(2), "b": torch.ones(1, 2)}))
    whole[at % len(whole)] = value
    for content in (noise, file_of(noise), bytes(whole), bytes(whole[:at])):
        with suppress(HeaderInvalid):
            read(content)
