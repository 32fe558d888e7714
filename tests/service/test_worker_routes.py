from tests.service.deployed import Deployed
from tests.service.work import claim


def test_workers_are_listed_with_devices_and_load(api: Deployed) -> None:
    api.enrol(gpus=2)
    api.ledger.seen("worker-1", busy=1)
    (worker,) = api.get("/v1/workers")["data"]
    assert (worker["id"], worker["host"], worker["slots"], worker["busy"]) == ("worker-1", "host", 2, 1)
    assert worker["devices"][1] == {"index": 1, "name": "card", "memory_bytes": 2**34, "uuid": None}
    assert "catalog" not in worker


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
