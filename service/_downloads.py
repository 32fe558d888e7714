"""A file of the service written to this disk: straight from its store where that can be reached, else by the API."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx

BLOCK_BYTES = 2**20
Check = Callable[[httpx.Response], None]


def download(http: httpx.Client, path: str, target: Path, check: Check, *, timeout_seconds: float) -> str:
    """Write what is served at a path; its SHA-256. `check` raises for an answer that is no success."""
    with http.stream("GET", path, params={"redirect": "true"}) as response:
        if not response.is_redirect:
            return _written(response, target, check)
        location = response.headers["Location"]
    if sha256 := _from_store(location, target, check, timeout_seconds):
        return sha256
    with http.stream("GET", path) as response:
        return _written(response, target, check)


def _from_store(location: str, target: Path, check: Check, timeout_seconds: float) -> str | None:
    """None where the store cannot be reached from here, or does not answer with the file."""
    try:
        # a client of its own: our key is none of the store's business
        with httpx.stream("GET", location, timeout=timeout_seconds) as response:
            return _written(response, target, check) if response.is_success else None
    except httpx.TransportError:
        return None


def _written(response: httpx.Response, target: Path, check: Check) -> str:
    if not response.is_success:
        response.read()
    check(response)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in response.iter_bytes(BLOCK_BYTES):
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
