"""Data sets as users bring them, and the stand-in that looks into them."""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

from service.store.backend import Backend
from service.store.datasets import parts_of
from service.store.rows import Dataset, DatasetPart, ToldJob
from tests.service.work import spec_of

STAND_IN = (sys.executable, str(Path(__file__).parent / "inspect_stand_in.py"))


def upload(backend: Backend, text: str, **more: Any) -> Dataset:
    """One whose archive, this text, came in two parts."""
    made = backend.datasets.add(name="flowers", task="detection", format_="coco", options={"px": 8}, **more)
    content, begun = text.encode(), made
    for start, end in ((0, 2), (2, len(content))):
        begun = bring(backend, made, content[start:end], start, len(content))
    return begun


def bring(backend: Backend, made: Dataset, content: bytes, start: int, total: int) -> Dataset:
    """Upload one part."""
    begun = backend.datasets.begin_upload(made.id, start, total)
    key = f"{parts_of(made.id, begun.number)}/{start:015d}"
    backend.artifacts.put_file(key, io.BytesIO(content))
    return backend.datasets.commit_upload(begun, [DatasetPart(start, len(content), begun.number, key)], total)


def made_ready(backend: Backend, text: str, *, size_bytes: int | None = None) -> Dataset:
    """One that was checked and found good; its content may be said to be of any size."""
    made = upload(backend, text)
    check = backend.checks.claim()
    assert check is not None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    size = len(text) if size_bytes is None else size_bytes
    backend.checks.ready(check, {"sha256": sha256, "size_bytes": size, "files": 1, "num_classes": 2, "root": "."})
    return backend.reader.dataset(made.id)


def submit_reading(backend: Backend, dataset: Dataset) -> ToldJob:
    """A job whose resolved spec names it."""
    resolved = spec_of()
    resolved["dataset"] = {"id": dataset.id}
    return backend.ledger.submit(resolved, resolved)[0]
