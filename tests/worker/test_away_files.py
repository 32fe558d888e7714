"""A store of files that refuses, for a wrong key say: no job comes to harm by it, and whoever can mend it is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from service.store.backend import Backend
from service.store.ledger import Ledger
from service.store.reading import Reader
from tests.seaweed import READER, SeaweedFS
from tests.service.menu import catalog
from tests.service.work import claim, let_lease_run_out, submit, until
from tests.worker.runs import Attempts
from worker.node import Card, Node

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def refusing(backend: Backend, seaweed: SeaweedFS) -> Backend:
    return replace(backend, artifacts=seaweed.artifacts("away", AWS_SECRET_ACCESS_KEY="wrong"))


def test_a_node_whose_store_refuses_claims_nothing_until_it_does_not(
    backend: Backend,
    refusing: Backend,
    stand_in: Callable[[str], None],
    ledger: Ledger,
    reader: Reader,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in("tell('status', status='succeeded')")
    job = submit(ledger)
    card = Card(catalog(), [], {"acmix": "0"})
    Node(refusing, card).ring()
    assert (reader.job(job.id).status, reader.job(job.id).attempt) == ("queued", 0)
    assert "no job is claimed: the store of files refuses (SignatureDoesNotMatch)" in caplog.text
    Node(backend, card).ring()
    assert (reader.job(job.id).status, reader.job(job.id).attempt) == ("succeeded", 1)


def test_a_job_whose_store_refuses_trains_on_says_so_once_and_is_not_failed(
    backend: Backend, seaweed: SeaweedFS, stand_in: Callable[[str], None], attempts: Attempts
) -> None:
    """Its worker is then restarted with another key: the job waits for the next one, and no failure is counted."""
    ledger, reader = backend.ledger, backend.reader
    stand_in("save(10)\ntell('progress', phase='training', step=11)\nsleep()")
    job = submit(ledger)
    read_only = replace(backend, artifacts=seaweed.artifacts("away", **READER))
    attempt = attempts.begin(claim(ledger), read_only)
    until(lambda: any(event.type == "warning" for event in reader.events(job.id)), seconds=60)
    attempts.draining.set()
    attempt.result(60)
    told = [event for event in reader.events(job.id) if event.type == "warning"]
    assert [event.data["code"] for event in told] == ["artifacts_refused"]
    assert "refuses (AccessDenied)" in told[0].message
    let_lease_run_out(backend.engine, job.id)
    ledger.sweep()
    assert (reader.job(job.id).status, reader.job(job.id).failures) == ("queued", 0)
    assert reader.checkpoints(job.id) == []
