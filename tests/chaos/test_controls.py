"""What the promises' tests are worth: each without the guard it is about, which breaks what it promises."""

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from service.store.states import ENDED
from tests.chaos import streams
from tests.chaos.cluster import GRACE_SECONDS, cluster
from tests.chaos.test_promises import Client, tell
from tests.flow.service_process import wait_for

pytestmark = pytest.mark.release


def _job_waits_for_a_broker_that_is_away(client: Client) -> str:
    """P5."""
    [broker] = client.made.named("broker")
    broker.is_wanted = False
    broker.send(signal.SIGKILL)
    queued = client.post(steps=20)
    time.sleep(20)
    return "a job still waits" if client.job(queued).status == "queued" else ""


def _points_are_missing_after_the_database_was_away(client: Client) -> str:
    """P6."""
    client.until_running(client.post(steps=200, step_seconds=0.1))
    assert client.made.postgresql is not None
    client.made.postgresql.stop()
    time.sleep(10)
    client.made.postgresql.start()
    client.until_all_ended()
    return "; ".join(fault for fault in client.broken() if "missing" in fault)


def _cancel_is_not_heard(client: Client) -> str:
    """P7."""
    job_id = client.post(steps=10_000, step_seconds=0.1)
    client.until_running(job_id)
    client.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    time.sleep(GRACE_SECONDS + 5)
    return "a job still runs" if client.job(job_id).status not in ENDED else ""


def _restart_costs_a_loss(client: Client) -> str:
    """P8."""
    job_id = client.post(steps=200, step_seconds=0.1)
    client.until_running(job_id)
    for worker in client.made.named("worker"):
        worker.send(signal.SIGTERM)
    client.until_all_ended()
    return f"{losses} losses" if (losses := client.job(job_id).losses) else ""


def _reader_hears_events_twice(client: Client) -> str:
    """P10."""
    job_id = client.post(steps=100, step_seconds=0.2)
    over = threading.Event()
    read = streams.read(client.made.http_url, job_id, random.Random(1), over)
    return read.gaps


CONTROLS: dict[str, Callable[[Client], str]] = {
    "look": _job_waits_for_a_broker_that_is_away,
    "spool": _points_are_missing_after_the_database_was_away,
    "wish": _cancel_is_not_heard,
    "drain": _restart_costs_a_loss,
    "last event id": _reader_hears_events_twice,
}


@pytest.mark.parametrize("guard", CONTROLS)
def test_a_promise_is_broken_without_its_guard(guard: str, tmp_path: Path) -> None:
    """And kept with it: the same is tried on a whole cluster first."""
    for without in ("", guard):
        with (
            cluster(tmp_path / (without or "whole"), database="postgresql", workers=2, without=without) as made,
            Client(made) as client,
        ):
            found = CONTROLS[guard](client)
            tell(f"{CONTROLS[guard].__doc__} {f'without {without}' if without else 'whole'}: {found or 'kept'}")
            assert bool(found) == bool(without)
            with suppress(AssertionError):
                wait_for(lambda made=made: not made.runs(), within_seconds=1)  # type: ignore[misc]  # its default binds
