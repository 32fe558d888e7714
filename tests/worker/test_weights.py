"""Attempts that start from weights: a checkpoint of another job, an uploaded file, and one that is gone."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from acmix import manifest
from service.store.artifacts import MODEL
from service.store.backend import Backend
from service.store.ids import new_id
from service.store.rows import Job, Outcome, Weights
from tests.flow.service_process import small_job
from tests.service.work import claim, save, submit
from tests.worker.runs import Attempts

StandIn = Callable[[str], None]
TELL_WEIGHTS = """
given = sys.argv[sys.argv.index("--weights") + 1] if "--weights" in sys.argv else None
tell("progress", phase="found", content=Path(given).read_text() if given else None)
tell("status", status="succeeded")
"""
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def starting_from(source: str, **changes: Any) -> dict[str, Any]:
    job = small_job(**changes)
    job["backbone"]["weights"] = source
    return job


def uploaded(backend: Backend, content: bytes) -> str:
    """Weights whose file is there."""
    weights_id = new_id("wts")
    key = f"weights/{weights_id}"
    backend.artifacts.put_file(f"{key}/{MODEL}", io.BytesIO(content))
    sha256 = hashlib.sha256(content).hexdigest()
    backend.ledger.add_weights(Weights(weights_id, "", sha256, len(content), 1, 1, None, key))
    return weights_id


def ended(backend: Backend, attempts: Attempts, **spec: Any) -> Job:
    """A job that was seen through."""
    job = submit(backend.ledger, **spec)
    attempts.see_through(claim(backend.ledger))
    return backend.reader.job(job.id)


def found(backend: Backend, job: Job) -> Any:
    [told] = [event for event in backend.reader.events(job.id) if event.data.get("phase") == "found"]
    return told.data["content"]


def test_a_job_begins_with_the_weights_of_a_checkpoint_of_another(backend: Backend, attempts: Attempts) -> None:
    first = ended(backend, attempts, **small_job(epochs=1))
    source = backend.reader.checkpoints(first.id)[0]
    weights = load_file(backend.settings.data_folder / "artifacts" / source.key / MODEL)
    second = ended(backend, attempts, **starting_from(source.id, epochs=1))
    assert second.status == "succeeded", second.status_reason
    for layer in backend.reader.traces(second.id):
        assert layer.step[0] == 0
        assert layer.alpha[0] == weights[f"{layer.layer}.alpha"].item() != 0.5
    [told] = [event for event in backend.reader.events(second.id) if "weights" in event.data]
    assert told.data["weights"]["source"] == source.id
    assert told.data["weights"]["kept"] == len(weights)


def test_a_job_begins_with_an_uploaded_file(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in(TELL_WEIGHTS)
    job = ended(backend, attempts, **starting_from(uploaded(backend, b"uploaded")))
    assert found(backend, job) == "uploaded"
    assert found(backend, ended(backend, attempts, **starting_from("timm"))) is None


def test_weights_that_are_gone_by_then_end_the_job(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in(TELL_WEIGHTS)
    unlisted, unstored, damaged = (uploaded(backend, b"uploaded") for _ in range(3))
    for source in (unlisted, unstored, damaged):
        submit(backend.ledger, **starting_from(source))
    with backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM weights WHERE id = '{unlisted}'")
    backend.artifacts.delete_prefix(f"weights/{unstored}")
    (backend.settings.data_folder / "artifacts" / "weights" / damaged / MODEL).write_bytes(b"Uploaded")
    for source, code, sentence in (
        (unlisted, "weights_missing", "was removed before it began"),
        (unstored, "weights_missing", "was removed before it began"),
        (damaged, "checkpoint_incompatible", "is not as stored: its sha256 differs"),
    ):
        claimed = claim(backend.ledger)
        attempts.see_through(claimed)
        job = backend.reader.job(claimed.job.id)
        assert job.status == "failed"
        assert job.status_reason is not None
        assert job.status_reason["code"] == code
        assert job.status_reason["message"] == f"{source}, which the job starts from, {sentence}"


def test_a_job_that_goes_on_from_a_checkpoint_of_its_own_needs_them_no_more(
    stand_in: StandIn, backend: Backend, attempts: Attempts, tmp_path: Path
) -> None:
    stand_in(TELL_WEIGHTS)
    source = uploaded(backend, b"uploaded")
    submit(backend.ledger, **starting_from(source))
    job = claim(backend.ledger).job
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / MODEL).write_bytes(b"weights")
    manifest.write(folder, [MODEL])
    key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
    backend.artifacts.put_folder(key, folder)
    save(backend.ledger, job, 5, key=key)
    backend.ledger.finish(job.id, job.attempt, Outcome("drained"))
    backend.artifacts.delete_prefix(f"weights/{source}")
    attempts.see_through(claim(backend.ledger))
    assert backend.reader.job(job.id).status == "succeeded"
    assert found(backend, job) is None
