from typing import Any

import pytest
from sqlalchemy import update

from acmix.catalog import Catalog, Device
from service.store.database import writing
from service.store.rows import WorkerCard
from service.store.tables import workers
from tests.service.deployed import Deployed
from tests.service.menu import catalog
from tests.service.work import claim

LOAD: dict[str, Any] = {
    "free_slots": 0,
    "devices": [
        {"index": 0, "jobs": ["JOB"], "put_aside": None, "memory_used_bytes": 2**30, "utilization": 0.5}
        | {"temperature_celsius": 61},
        {"index": 1, "jobs": [], "put_aside": "the driver has lost it", "memory_used_bytes": None, "utilization": None}
        | {"temperature_celsius": None},
    ],
    "cpu": {"load": 1.5, "memory_used_bytes": 2**33, "memory_bytes": 2**34},
}


def load_with(job_id: str) -> dict[str, Any]:
    held, lost = LOAD["devices"]
    return {**LOAD, "devices": [{**held, "jobs": [job_id]}, lost]}


def test_workers_are_listed_with_devices_and_load(api: Deployed) -> None:
    cards = [Device(index=index, name="card", memory_bytes=2**34, uuid=f"GPU-{index}") for index in range(2)]
    card = WorkerCard("worker-1", "host", 2, cards, {"acmix": "0.1"}, catalog(), ["nvme"], 16)
    api.ledger.enrol(card)
    job = api.submit()["id"]
    api.ledger.seen("worker-1", 1, load_with(job))
    (worker,) = api.get("/v1/workers")["data"]
    assert (worker["id"], worker["host"], worker["slots"], worker["busy"]) == ("worker-1", "host", 2, 1)
    assert (worker["labels"], worker["cores"], worker["draining"]) == (["nvme"], 16, None)
    assert worker["devices"] == [
        {
            "index": 0,
            "name": "card",
            "memory_bytes": 2**34,
            "uuid": "GPU-0",
            "memory_used_bytes": 2**30,
            "utilization": 0.5,
            "temperature_celsius": 61,
            "jobs": [job],
            "put_aside": None,
        },
        {
            "index": 1,
            "name": "card",
            "memory_bytes": 2**34,
            "uuid": "GPU-1",
            "memory_used_bytes": None,
            "utilization": None,
            "temperature_celsius": None,
            "jobs": [],
            "put_aside": "the driver has lost it",
        },
    ]
    assert worker["cpu"] == {"load": 1.5, "memory_used_bytes": 2**33, "memory_bytes": 2**34}
    assert "catalog" not in worker


def test_a_worker_that_has_not_told_how_it_fares_is_listed(api: Deployed) -> None:
    """One of an older version never does."""
    api.enrol(gpus=1)
    api.ledger.seen("worker-1", 1)
    (worker,) = api.get("/v1/workers")["data"]
    assert (worker["busy"], worker["cpu"], worker["devices"][0]["memory_used_bytes"]) == (1, None, None)
    assert worker["devices"][0]["jobs"] == []


def test_a_worker_that_has_left_is_not_listed(api: Deployed) -> None:
    api.enrol()
    api.ledger.leave("worker-1")
    assert api.get("/v1/workers") == {"data": [], "has_more": False, "next": None}


def test_the_queue_is_in_claim_order_and_its_positions_say_so(api: Deployed) -> None:
    api.enrol()
    plain, urgent, late = api.submit(), api.submit(priority=9), api.submit(priority=-9)
    queue = api.get("/v1/queue")["data"]
    assert [job["id"] for job in queue] == [urgent["id"], plain["id"], late["id"]]
    assert [job["queue"]["position"] for job in queue] == [1, 2, 3]
    assert claim(api.ledger).job.id == urgent["id"]
    assert api.get("/v1/queue")["data"][0]["queue"]["position"] == 1


def test_the_queue_is_told_a_page_at_a_time(api: Deployed) -> None:
    api.enrol()
    made = [api.submit()["id"] for _ in range(3)]
    first = api.get("/v1/queue?limit=2")
    assert (first["has_more"], first["next"]) == (True, made[1])
    assert [job["id"] for job in api.get(f"/v1/queue?limit=2&after={made[1]}")["data"]] == made[2:]


def drain(api: Deployed, worker: str = "worker-1", **body: Any) -> tuple[int, Any]:
    answered = api.http.post(f"/v1/workers/{worker}/drain", **body)
    return answered.status_code, answered.json()


def test_a_drained_worker_claims_nothing_until_it_is_taken_back(api: Deployed) -> None:
    api.enrol()
    api.submit()
    status, worker = drain(api)
    assert (status, worker["id"], worker["draining"]) == (202, "worker-1", "finish")
    assert api.ledger.seen("worker-1", 0) == "finish", "it is told so with its next sign of life"
    assert claimed(api) is None
    assert api.get("/v1/workers")["data"][0]["draining"] == "finish"
    resumed = api.http.post("/v1/workers/worker-1/resume")
    assert (resumed.status_code, resumed.json()["draining"]) == (202, None)
    assert api.http.post("/v1/workers/worker-1/resume").status_code == 200
    assert api.ledger.seen("worker-1", 0) is None
    assert claimed(api) is not None


def claimed(api: Deployed) -> Any:
    return api.ledger.claim("worker-1", free=(0,), slots=1, has_gpus=False, can_run=lambda _demand, _spec: True)


def test_a_drain_says_what_becomes_of_the_jobs_and_can_be_changed(api: Deployed) -> None:
    api.enrol()
    assert drain(api, json={})[0] == 202
    assert drain(api, json={"jobs": "finish"})[0] == 200
    status, worker = drain(api, json={"jobs": "requeue"})
    assert (status, worker["draining"]) == (202, "requeue")
    assert drain(api, json={"jobs": "requeue"})[0] == 200


def test_a_worker_of_a_version_without_drains_is_not_said_to_be_drained(api: Deployed) -> None:
    api.enrol()
    with writing(api.app.state.backend.engine).begin() as connection:
        connection.execute(update(workers).values(cores=None))
    for way in ("drain", "resume"):
        answered = api.http.post(f"/v1/workers/worker-1/{way}")
        assert (answered.status_code, answered.json()["worker"], answered.json()["allowed_actions"]) == (
            409, "worker-1", [],
        )  # fmt: skip
        assert "SIGTERM" in answered.json()["detail"]
    assert api.get("/v1/workers")["data"][0]["draining"] is None


def test_a_worker_of_another_version_may_tell_less_of_how_it_fares(api: Deployed) -> None:
    api.enrol(gpus=1)
    api.ledger.seen("worker-1", 1, {"devices": [{"index": 0}]})
    [worker] = api.get("/v1/workers")["data"]
    assert (worker["cpu"], worker["devices"][0]["jobs"]) == (None, [])


def test_a_worker_that_enrols_again_is_still_drained_and_one_started_anew_is_not(api: Deployed) -> None:
    api.enrol()
    drain(api, json={"jobs": "requeue"})
    api.enrol()
    assert api.ledger.seen("worker-1", 0) == "requeue"
    api.ledger.enrol(WorkerCard("worker-2", "host", 1, [], {}, Catalog()))
    assert api.ledger.seen("worker-2", 0) is None


@pytest.mark.parametrize("worker", ["worker-2", "wk_%00", "wk_a%20b", "a" * 301, "%F0%9F%90%A8"])
def test_there_is_no_draining_of_a_worker_that_is_not_there(worker: str, api: Deployed) -> None:
    api.enrol()
    for action in ("drain", "resume"):
        answered = api.http.post(f"/v1/workers/{worker}/{action}")
        assert (answered.status_code, answered.json()["code"]) == (404, "not_found")
    api.ledger.leave("worker-1")
    assert drain(api)[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"json": {"jobs": "kill"}}, 422, "drain_invalid"),
        ({"json": {"job": "finish"}}, 422, "drain_invalid"),
        ({"json": []}, 422, "drain_invalid"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed"),
        ({"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
    ],
)
def test_a_drain_that_is_not_understood_changes_nothing(
    body: dict[str, Any], status: int, code: str, api: Deployed
) -> None:
    api.enrol()
    answered, problem = drain(api, **body)
    assert (answered, problem["code"]) == (status, code)
    assert api.get("/v1/workers")["data"][0]["draining"] is None
