"""JSON of a request, read strictly: each fault that Python's reader lets pass is a 400 that names its field."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from acmix.errors import Problem
from acmix.spec import pointer
from service.body import read_bounded
from service.errors import RequestRefused

MAX_DEPTH = 32
MAX_VALUES = 50_000
MAX_DIGITS = 400

Path = tuple[int | str, ...]


async def read_body(request: Request) -> bytes:
    """The body of a JSON request: 415 if it is something else, 413 as soon as it is too large."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestRefused(415, "unsupported_media_type", "send the body as Content-Type: application/json")
    return await read_bounded(request, request.app.state.backend.settings.max_body_bytes)


async def read_body_if_any(request: Request) -> bytes:
    """The same where a body may be left out: an empty object then."""
    headers = request.headers
    is_there = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return await read_body(request) if is_there else b"{}"


def loads(body: bytes) -> Any:
    """The values of a JSON text.

    Raises:
        RequestRefused: 400 if it is no JSON, is nested deeper than 32, holds over 50,000 values, a field twice,
            a number that is not finite, or text that cannot be stored.
    """
    try:
        values = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=lambda name: _Flaw("not_finite", f"{name} is no JSON number"),
            parse_float=_float,
            parse_int=_integer,
        )
    except RecursionError:
        raise _malformed([Problem("", "too_deep", f"the body must not be nested deeper than {MAX_DEPTH}")]) from None
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _malformed([Problem("", "malformed", f"the body is not JSON in UTF-8{where}")]) from None
    problems = [
        Problem(pointer(path), flaw.code, f"{_named(path)} {flaw.message}", limit=flaw.limit)
        for path, flaw in _flaws(values)
    ]
    if problems:
        raise _malformed(problems)
    return values


@dataclass(frozen=True)
class _Flaw:
    """Stands in for a value that was there and cannot be taken, until it is known where."""

    code: str
    message: str
    limit: float | None = None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        values[name] = _Flaw("duplicate_field", "is there twice") if name in values else value
    return values


def _float(text: str) -> float | _Flaw:
    value = float(text)
    return value if math.isfinite(value) else _Flaw("not_finite", "is too large a number")


def _integer(text: str) -> int | _Flaw:
    return int(text) if len(text) <= MAX_DIGITS else _Flaw("too_large", "is too large a number")


def _flaws(values: Any) -> Iterator[tuple[Path, _Flaw]]:
    """Where the flaws are, the first 20; a body of too many values is read no further."""
    count, found = 0, 0
    waiting: list[tuple[Path, Any]] = [((), values)]
    while waiting and found < 20:
        path, value = waiting.pop()
        count += 1
        flaw = _flaw(value, path) if count <= MAX_VALUES else _Flaw("too_many", "is one value too many", MAX_VALUES)
        if flaw:
            found += 1
            yield path, flaw
        elif isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting.extend(reversed([((*path, key), item) for key, item in pairs]))
        if count > MAX_VALUES:
            return


def _flaw(value: Any, path: Path) -> _Flaw | None:
    if isinstance(value, _Flaw):
        return value
    if len(path) > MAX_DEPTH:
        return _Flaw("too_deep", f"is nested deeper than {MAX_DEPTH}", MAX_DEPTH)
    texts = (value, path[-1] if path else "")
    if any(isinstance(text, str) and ("\0" in text or not _is_unicode(text)) for text in texts):
        return _Flaw("bad_text", "must hold neither NUL characters nor lone surrogates")
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(path: Path) -> str:
    return _shown(str(path[-1])[:60]) if path else "the body"


def _shown(text: str) -> str:
    return text.encode(errors="replace").decode().replace("\0", "?")


def _malformed(problems: list[Problem]) -> RequestRefused:
    safe = [Problem(_shown(each.pointer), each.code, each.message, limit=each.limit) for each in problems]
    return RequestRefused(400, "malformed", safe[0].message, problems=safe)
