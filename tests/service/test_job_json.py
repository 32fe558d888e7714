"""Jobs as the API tells them: written from their rows by hand, and yet what the OpenAPI document says."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

from acmix.errors import Reason
from acmix.events import Event
from service.answers import JobAnswer, QueuedAnswer
from service.store.rows import Outcome
from service.store.tables import events, labels
from service.store.tables import jobs as jobs_table
from tests.service.deployed import Deployed, spec
from tests.service.menu import catalog
from tests.service.test_access import bearer, key_for
from tests.service.work import claim, evaluation, save, statements, submit

REASON = Reason("diverged", "the loss is \u2028 not \ud800 finite", "user", hint='a smaller "lr"')


@pytest.fixture
def jobs(api: Deployed) -> list[dict[str, Any]]:
    """One of each kind, newest first: waits, runs, has failed."""
    api.enrol()
    failed = api.submit(name='quotes " and \u2028 \U0001f600')
    ledger, job = api.ledger, claim(api.ledger).job
    ledger.record(job.id, 1, [evaluation(10, best=True)])
    save(ledger, job, 10, best=True)
    ledger.finish(job.id, 1, Outcome("failed", REASON))
    api.submit()
    running = claim(ledger).job
    progress = {"epoch": 1, "epochs": 2, "step": 30, "steps": 40, "samples_per_second": 12.5, "phase": "training"}
    ledger.record(running.id, 1, [Event("progress", "", progress)])
    waits = api.submit()
    found = [api.get(f"/v1/jobs/{each}") for each in (waits["id"], running.id, failed["id"])]
    assert [each["status"] for each in found] == ["queued", "running", "failed"]
    return found


def test_every_field_is_as_the_schema_has_it(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        assert JobAnswer.model_validate(job).model_dump(mode="json") == job
        assert set(job) == set(JobAnswer.model_fields)


def test_a_list_tells_of_a_job_what_the_job_tells_itself(api: Deployed, jobs: list[dict[str, Any]]) -> None:
    assert api.get("/v1/jobs")["data"] == jobs
    [waits] = api.get("/v1/queue")["data"]
    assert QueuedAnswer.model_validate(waits).model_dump(mode="json") == waits
    assert {**waits, "queue": {"position": waits["queue"]["position"]}} == jobs[0]


def test_what_was_posted_comes_back_as_it_was(jobs: list[dict[str, Any]]) -> None:
    assert [job["spec"]["name"] for job in jobs] == [
        "late attention",
        "late attention",
        'quotes " and \u2028 \U0001f600',
    ]
    assert {**jobs[0]["spec"], "metadata": None} == {**spec(), "metadata": None}
    assert jobs[2]["status_reason"]["message"] == REASON.message
    assert jobs[1]["estimated_end_at"] is not None


@pytest.mark.parametrize(("path", "statements_each"), [("/v1/jobs?limit=50", 3), ("/v1/queue?limit=50", 12)])
def test_a_list_takes_as_many_statements_whatever_its_length(api: Deployed, path: str, statements_each: int) -> None:
    """The key, the page, the places in the queue; and of a job that waits, why."""
    api.enrol()
    headers = bearer(key_for(api))
    for tenant in ("a", "b", "c"):
        submit(api.ledger.of(tenant))
    for count in range(1, 21):
        api.http.post("/v1/jobs", json=spec(), headers=headers)
        if count in {1, 20}:
            with statements(api.app.state.backend.engine) as asked:
                page = api.get(path, headers=headers)
            assert [job["queue"]["position"] for job in page["data"]] == sorted(
                range(1, count + 1), reverse=path.startswith("/v1/jobs")
            )
            assert len(asked) == statements_each, asked


def test_a_job_is_read_with_as_few(api: Deployed) -> None:
    api.enrol()
    headers = bearer(key_for(api))
    job = api.http.post("/v1/jobs", json=spec(), headers=headers).json()
    api.get("/v1/catalog", headers=headers)  # the first use of a key is noted
    with statements(api.app.state.backend.engine) as asked:
        api.get(f"/v1/jobs/{job['id']}", headers=headers)
    assert len(asked) == 2, asked


def test_a_menu_is_read_once(api: Deployed) -> None:
    """A megabyte that every job that comes asks for: of a worker that is known its row says no more than that."""
    api.enrol()
    api.submit()
    with statements(api.app.state.backend.engine) as asked:
        api.submit()
    assert not [each for each in asked if "catalog" in each]
    api.enrol(catalog().model_copy(update={"optimizers": []}))
    assert api.post(spec()).status_code == 422


def test_a_job_is_submitted_with_few_statements(api: Deployed) -> None:
    """PostgreSQL: the key, what the workers can run, the job."""
    api.enrol()
    headers = bearer(key_for(api))
    api.http.post("/v1/jobs", json=spec(), headers=headers)
    with statements(api.app.state.backend.engine) as asked:
        api.http.post("/v1/jobs", json=spec(), headers=headers)
    assert len(asked) <= (3 if is_postgresql(api) else 10), asked


def test_a_job_is_written_alike_in_one_statement_and_in_many(api: Deployed) -> None:
    """A webhook that is to be told of it must be held meanwhile, which one statement cannot."""
    api.enrol()
    labelled = {"metadata": {"study": 'quotes " and \u2028 \U0001f600', "seed": "1"}, "priority": -7}
    one_by_one = {"metadata": {"study": "depth"}, "priority": 3}
    api.submit()
    with statements(api.app.state.backend.engine) as few:
        quick = api.submit(**labelled)
    webhook = api.app.state.backend.webhooks.add(name="", url="https://example.com", types=["job.queued"])
    with statements(api.app.state.backend.engine) as many:
        held = api.submit(**labelled)
    first = api.submit(**one_by_one)
    assert len(few) < len(many) or not is_postgresql(api)
    assert like(api, held) == like(api, quick)
    assert rows_of(api, held) == rows_of(api, quick)
    assert [job["queue"]["position"] for job in (quick, held, first)] == [2, 3, 1]
    assert len(api.app.state.backend.reader.deliveries(webhook.id).data) == 2


def like(api: Deployed, job: dict[str, Any]) -> str:
    """What a job is told to be when it is made, without what is its own; and as it is told afterwards."""
    now = api.get(f"/v1/jobs/{job['id']}")
    assert {**now, "queue": None} == {**job, "queue": None}
    text = json.dumps({**job, "queue": None})
    return text.replace(job["id"], "JOB").replace(job["created_at"], "THEN")


def rows_of(api: Deployed, job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What is stored of a job, without what is its own; times by how long they are before or after its creation."""
    found = []
    with api.app.state.backend.engine.connect() as connection:
        for table, key in ((jobs_table, "id"), (labels, "job"), (events, "job")):
            rows = connection.execute(
                select(table).where(table.c[key] == job["id"]).order_by(*table.primary_key)
            ).mappings()
            found.append([_without_its_own(row, job) for row in rows])
    assert [len(rows) for rows in found] == [1, len(job["metadata"]), 1]
    return found


def _without_its_own(row: Mapping[Any, Any], job: dict[str, Any]) -> dict[str, Any]:
    created_at = datetime.fromisoformat(job["created_at"])
    since = {name: value - created_at for name, value in row.items() if isinstance(value, datetime)}
    assert row.get("request_id", "req_").startswith("req_")
    return {**row, **since, "request_id": None} | {name: "JOB" for name, value in row.items() if value == job["id"]}


def is_postgresql(api: Deployed) -> bool:
    return bool(api.app.state.backend.engine.dialect.name == "postgresql")
