"""P16: a job that always dies or hangs is tried as often as its budgets have it; its worker's others notice nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.store.rows import Job
from service.store.states import ENDED
from tests.chaos.cluster import cluster
from tests.chaos.test_promises import Client, tell
from tests.flow.service_process import wait_for
from tests.service.deployed import spec
from tests.worker.test_reasons import memory_group

pytestmark = pytest.mark.release

MAX_FAILURES, MAX_LOSSES = 2, 5  # the product's own
BUDGETS = {"MAX_FAILURES": str(MAX_FAILURES), "MAX_LOSSES": str(MAX_LOSSES), "STALL_SECONDS": "6"}
LOSSES = ("SIGKILL", "SIGSEGV", "SIGABRT")
FAILURES = ("hang", "exit")
HEALTHY = 20


def test_jobs_that_always_die_or_hang_are_tried_as_often_as_their_budgets_have_it(tmp_path: Path) -> None:
    with clients(tmp_path, **BUDGETS) as client:
        poisons = {post(client, poison): poison for poison in (*LOSSES, *FAILURES)}
        healthy = [post(client) for _ in range(HEALTHY)]
        until_ended(client, *poisons, *healthy)
        attempts = {poison: told(client.job(job_id)) for job_id, poison in poisons.items()}
        tell(f"P16 attempts: {attempts}; {HEALTHY} healthy jobs beside them: {how(client, healthy)}")
        assert how(client, healthy) == {("succeeded", 1, 0, 0): HEALTHY}
        assert attempts == {
            **dict.fromkeys(LOSSES, ("failed", "worker_lost", MAX_LOSSES + 1)),
            "hang": ("failed", "stalled", MAX_FAILURES + 1),
            "exit": ("failed", "internal", MAX_FAILURES + 1),
        }
        assert client.made.orphans() == []


def test_jobs_that_memory_never_suffices_for_are_tried_as_often_as_failures_may_be(tmp_path: Path) -> None:
    """The kernel kills each run in a control group of 100 MB."""
    with memory_group(100 * 2**20) as group, clients(tmp_path, **BUDGETS) as client:
        poisons = [post(client, "memory", memory_group=str(group)) for _ in range(2)]
        healthy = [post(client) for _ in range(HEALTHY)]
        until_ended(client, *poisons, *healthy)
        attempts = [told(client.job(job_id)) for job_id in poisons]
        tell(f"P16 out of memory: {attempts}; {HEALTHY} healthy jobs beside them: {how(client, healthy)}")
        assert how(client, healthy) == {("succeeded", 1, 0, 0): HEALTHY}
        assert attempts == [("failed", "out_of_memory_host", MAX_FAILURES + 1)] * 2


def test_without_a_budget_a_job_that_always_dies_never_ends(tmp_path: Path) -> None:
    """The negative control."""
    with clients(tmp_path, MAX_LOSSES="100") as client:
        job_id = post(client, "SIGKILL")
        wait_for(lambda: client.job(job_id).attempt > MAX_LOSSES + 3, within_seconds=120)
        assert client.job(job_id).status not in ENDED


@contextmanager
def clients(folder: Path, **settings: str) -> Iterator[Client]:
    """Of a cluster of one worker."""
    with cluster(folder, database="postgresql", workers=1, settings=settings) as made, Client(made) as client:
        yield client


def post(client: Client, poison: str = "", **labels: str) -> str:
    body = {**spec(), "metadata": {"steps": "20", "step_seconds": "0.02", "poison": poison, **labels}}
    answer = client.http.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def until_ended(client: Client, *job_ids: str) -> None:
    wait_for(lambda: all(client.job(job_id).status in ENDED for job_id in job_ids), within_seconds=400)


def told(job: Job) -> tuple[str, str, int]:
    reason = job.status_reason or {"code": ""}
    return job.status, str(reason["code"]), job.attempt


def how(client: Client, job_ids: list[str]) -> dict[tuple[str, int, int, int], int]:
    """How many ended so: status, attempts, failures, losses."""
    jobs = map(client.job, job_ids)
    return dict(Counter((job.status, job.attempt, job.failures, job.losses) for job in jobs))
