"""The housekeeper predicts: by a child that starts with the first request, from files that lie beside it."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.store.artifacts import MODEL
from service.store.backend import Backend
from service.store.ids import new_id
from service.store.rows import Asked, Checkpoint
from tests.service.work import claim, save, submit, until
from tests.worker.housekeepers import children, housekeeping
from tests.worker.runs import words
from worker import answering, predicting

# reads the image and answers as it says
SERVER = """
import json, os, sys, time
if "predict" in sys.argv:
    print(json.dumps({"ready": True, "library": "a" * 64}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        do, model = open(asked["image"]).read(), open(asked["checkpoint"]).read()
        if do == "die":
            os._exit(3)
        if do == "hang":
            time.sleep(1000)
        if asked["drawn"]:
            open(asked["drawn"], "w").write(f"a picture of {do}")
        blame = {"unreadable": "user", "broken": "platform"}.get(do)
        error = {"error": {"code": "image_unreadable", "message": "no image", "blame": blame}}
        said = {"prediction": {"do": do, "model": model, "pid": os.getpid(), "asked": asked}}
        print(json.dumps(error if blame else said), flush=True)
else:
    print(json.dumps({"ready": True, "library": "a" * 64}), flush=True)
    sys.stdin.read()
"""

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
pytestmark = [on_sqlite, pytest.mark.usefixtures("_server")]


@pytest.fixture
def _server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short script in the library's place: `python -m acmix` looks for it in the working folder first."""
    package = tmp_path / "server" / "acmix"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER)
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(answering, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(answering, "RENEW_SECONDS", 0.05)


def stored(backend: Backend, content: str, *, sha256: str | None = None) -> Checkpoint:
    """A checkpoint of a job of its own, whose file holds that text."""
    submit(backend.ledger)
    job = claim(backend.ledger).job
    folder = backend.settings.data_folder / "made" / job.id
    folder.mkdir(parents=True)
    (folder / MODEL).write_text(content)
    (folder / "manifest.json").write_text("{}")
    key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
    backend.artifacts.put_folder(key, folder)
    saved, _ = save(
        backend.ledger, job, 10, key=key, sha256=sha256 or hashlib.sha256(content.encode()).hexdigest(), size_bytes=1
    )
    return saved


def ask(backend: Backend, checkpoint: Checkpoint, do: str, *, drawn: bool = False) -> Asked:
    request = {"checkpoint": checkpoint.id, "image_sha256": do, "min_score": 0.5, "drawn": drawn}
    return backend.predictions.ask(request, version="1", image=do.encode())


def answered(backend: Backend, asked: Asked) -> Asked:
    def found() -> Asked:
        row = backend.predictions.find(asked.id)
        assert row is not None
        return row

    until(lambda: found().answered_at is not None, seconds=60)
    return found()


def said(backend: Backend, asked: Asked) -> dict[str, Any]:
    row = answered(backend, asked)
    assert row.answer is not None, row.failure
    told: dict[str, Any] = row.answer["prediction"]
    return told


def files(backend: Backend) -> list[str]:
    return sorted(path.name for path in (backend.settings.data_folder / "predictions").iterdir())


def predicting_children() -> int:
    return sum("predict" in words(child) for child in children())


def test_a_child_reads_the_checkpoint_and_the_image_and_nothing_of_them_stays_but_the_model(backend: Backend) -> None:
    checkpoint = stored(backend, "weights")
    with housekeeping(backend):
        first = said(backend, ask(backend, checkpoint, "a digit"))
        second = said(backend, ask(backend, checkpoint, "another"))
        assert (first["do"], first["model"], second["do"]) == ("a digit", "weights", "another")
        assert first["pid"] == second["pid"]
        assert first["asked"]["drawn"] is None
        until(lambda: files(backend) == [f"{checkpoint.sha256}.safetensors"])


def test_a_picture_is_kept_beside_the_answer(backend: Backend) -> None:
    checkpoint = stored(backend, "weights")
    with housekeeping(backend):
        row = answered(backend, ask(backend, checkpoint, "a digit", drawn=True))
        assert backend.predictions.drawn(row) == b"a picture of a digit"
        assert backend.predictions.drawn(answered(backend, ask(backend, checkpoint, "plain"))) is None


def test_the_child_starts_with_the_first_request_and_ends_when_it_was_of_no_use_for_long(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "IDLE_SECONDS", 0.5)
    checkpoint = stored(backend, "weights")
    with housekeeping(backend):
        until(lambda: len(children()) == 1)
        time.sleep(0.3)
        assert predicting_children() == 0, "the only one makes plans"
        first = said(backend, ask(backend, checkpoint, "one"))
        until(lambda: predicting_children() == 0)
        assert said(backend, ask(backend, checkpoint, "two"))["pid"] != first["pid"]


def test_that_an_image_cannot_be_read_is_the_answer(backend: Backend) -> None:
    checkpoint = stored(backend, "weights")
    with housekeeping(backend):
        row = answered(backend, ask(backend, checkpoint, "unreadable", drawn=True))
        assert row.answer is not None
        assert (row.answer["error"]["code"], row.claims) == ("image_unreadable", 1)


@pytest.mark.parametrize(
    ("do", "why"),
    [
        ("die", "nothing could be predicted: the process that predicts ended with exit status 3"),
        ("hang", "nothing could be predicted: it takes longer than 0.3 s"),
        ("broken", "nothing could be predicted: no image"),
    ],
)
def test_what_the_child_does_not_survive_is_tried_twice_then_answered_so(
    do: str, why: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "PREDICTION_SECONDS", 0.3)
    checkpoint = stored(backend, "weights")
    with housekeeping(backend):
        row = answered(backend, ask(backend, checkpoint, do))
        assert row.failure is not None
        assert (row.failure["message"], row.failures) == (why, 2)
        assert said(backend, ask(backend, checkpoint, "good"))["do"] == "good"


def test_a_checkpoint_that_was_removed_or_changed_is_told(backend: Backend) -> None:
    changed, gone = stored(backend, "weights", sha256="0" * 64), stored(backend, "others")
    backend.artifacts.delete_prefix(gone.key)
    with housekeeping(backend):
        row = answered(backend, ask(backend, changed, "a digit"))
        assert row.answer is not None
        assert row.answer["error"]["message"] == f"{changed.id} is not as it was stored: its sha256 differs"
        missing = answered(backend, ask(backend, gone, "a digit"))
        assert missing.failure is not None
        assert missing.failure["message"].endswith(f"{gone.id} was removed before it was read")
        until(lambda: files(backend) == [])


def test_models_that_were_of_use_last_are_kept_and_what_a_killed_one_left_goes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "MODELS_KEPT", 2)
    checkpoints = [stored(backend, f"weights {number}") for number in range(3)]
    folder = backend.settings.data_folder / "predictions"
    for name, age in (("at-old", 7200), ("at-new", 0)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    with housekeeping(backend):
        for number, which in enumerate((0, 1, 0, 2)):
            assert said(backend, ask(backend, checkpoints[which], f"image {number}"))["model"] == f"weights {which}"
        kept = sorted(f"{checkpoints[which].sha256}.safetensors" for which in (0, 2))
        until(lambda: files(backend) == sorted([*kept, "at-new"]))


def test_a_slow_file_does_not_cost_the_claim(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stored(backend, "weights")
    monkeypatch.setattr("service.store.requests.LEASE_SECONDS", 0.4)
    stream = backend.artifacts.stream

    def slowly(key: str) -> Iterator[bytes]:
        for chunk in stream(key):
            for place in range(len(chunk)):
                time.sleep(0.2)
                yield chunk[place : place + 1]

    monkeypatch.setattr(type(backend.artifacts), "stream", lambda _self, key: slowly(key))
    with housekeeping(backend):
        row = answered(backend, ask(backend, checkpoint, "a digit"))
    assert (row.claims, json.dumps(row.answer).count("weights")) == (1, 1), caplog.text
