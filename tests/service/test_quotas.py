"""How much of the service a tenant may use, and what it is told when it would use more."""

import pytest
from sqlalchemy import Engine, insert

from acmix.errors import Reason
from service.rates import Rates
from service.store.database import clock, writing
from service.store.errors import QuotaExceeded
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Outcome
from service.store.tables import usage
from service.store.tenants import Tenants
from tests.service.deployed import Deployed, spec
from tests.service.test_access import bearer, key_for
from tests.service.test_tenants_apart import _safetensors
from tests.service.work import at_once, claim, let_run, look, save, submit


@pytest.fixture
def tenants(engine: Engine) -> Tenants:
    return Tenants(engine)


def claimed(ledger: Ledger, *, gpus: int = 0) -> str | None:
    """Whose job is claimed next."""
    found = look(ledger, gpus=gpus)
    return found.job.tenant if found else None


def test_without_limits_there_are_none(ledger: Ledger, tenants: Tenants) -> None:
    for _ in range(5):
        submit(ledger)
    limits, used = tenants.usage("default")
    assert (limits.most_queued, used.queued) == (None, 5)


def test_a_limit_of_queued_jobs_holds_also_for_those_that_come_at_once(ledger: Ledger, tenants: Tenants) -> None:
    tenants.limit("lab", {"most_queued": 3})
    lab = ledger.of("lab")

    def try_it() -> bool:
        try:
            submit(lab)
        except QuotaExceeded:
            return False
        return True

    assert sum(at_once(*[try_it] * 8)) == 3
    submit(ledger.of("another"))
    claim(ledger)
    assert try_it(), "one has begun"


def test_a_job_that_comes_back_by_itself_is_never_refused(ledger: Ledger, tenants: Tenants) -> None:
    lab = ledger.of("lab")
    job = submit(lab)
    claim(ledger)
    tenants.limit("lab", {"most_queued": 0})
    passing = Outcome("failed", Reason("disk_full", "no room", retryable=True))
    assert ledger.finish(job.id, 1, passing).status == "queued"


def test_resuming_counts_as_queueing(ledger: Ledger, tenants: Tenants) -> None:
    lab = ledger.of("lab")
    paused = submit(lab)
    lab.request_pause(paused.id)
    tenants.limit("lab", {"most_queued": 0})
    with pytest.raises(QuotaExceeded, match="tenant lab has 0 queued jobs and may have 0"):
        lab.resume(paused.id)


def test_a_limit_of_running_jobs_lets_others_pass(ledger: Ledger, tenants: Tenants) -> None:
    tenants.limit("lab", {"most_running": 1})
    for tenant in ("lab", "lab", "lab", "another"):
        submit(ledger.of(tenant))
    assert [claimed(ledger) for _ in range(3)] == ["lab", "another", None]
    first = next(job for job in Reader(ledger._reading).of("lab").jobs(status="running").data)
    ledger.finish(first.id, 1, Outcome("succeeded"))
    assert claimed(ledger) == "lab"


def test_a_limit_of_running_jobs_holds_also_for_claims_at_once(ledger: Ledger, tenants: Tenants) -> None:
    tenants.limit("lab", {"most_running": 2})
    for _ in range(8):
        submit(ledger.of("lab"))
    found = at_once(*[lambda: claimed(ledger)] * 6)
    assert sorted(found, key=str) == [None, None, None, None, "lab", "lab"]


def test_gpu_hours_are_booked_when_an_attempt_ends_and_outlive_its_job(
    ledger: Ledger, tenants: Tenants, engine: Engine
) -> None:
    lab = ledger.of("lab")
    job = submit(lab, resources={"gpus": 2})
    assert claimed(ledger, gpus=2) == "lab"
    let_run(engine, job.id, seconds=1800)
    assert tenants.usage("lab")[1].gpu_hours == pytest.approx(1.0, abs=0.01), "those that run count"
    ledger.finish(job.id, 1, Outcome("succeeded"))
    lab.delete(job.id)
    assert tenants.usage("lab")[1].gpu_hours == pytest.approx(1.0, abs=0.01)
    assert tenants.usage("another")[1].gpu_hours == 0


def test_without_a_gpu_no_hours_are_booked(ledger: Ledger, tenants: Tenants, engine: Engine) -> None:
    job = submit(ledger)
    claim(ledger)
    let_run(engine, job.id, seconds=1800)
    ledger.finish(job.id, 1, Outcome("succeeded"))
    assert tenants.usage("default")[1].gpu_hours == 0


def test_with_its_gpu_hours_used_up_a_tenant_queues_and_begins_nothing(
    ledger: Ledger, tenants: Tenants, engine: Engine
) -> None:
    lab = ledger.of("lab")
    submit(lab)
    tenants.limit("lab", {"most_gpu_hours": 1.5})
    with writing(engine).begin() as connection:
        month = f"{clock(connection):%Y-%m}"
        connection.execute(insert(usage).values(tenant="lab", month="2020-01", gpu_seconds=1e9))
    submit(lab)
    with writing(engine).begin() as connection:
        connection.execute(insert(usage).values(tenant="lab", month=month, gpu_seconds=5400))
    with pytest.raises(QuotaExceeded, match=r"tenant lab has 1\.5 GPU hours this month and may have 1\.5"):
        submit(lab)
    assert claimed(ledger) is None
    tenants.limit("lab", {"most_gpu_hours": None})
    assert claimed(ledger) == "lab"


def test_stored_bytes_are_those_of_checkpoints_weights_and_archives(ledger: Ledger, tenants: Tenants) -> None:
    lab = ledger.of("lab")
    submit(lab)
    save(ledger, claim(ledger).job, 10, stored_bytes=700)
    assert tenants.usage("lab")[1].stored_bytes == 700
    tenants.limit("lab", {"most_stored_bytes": 700})
    with pytest.raises(QuotaExceeded, match="delete jobs, weights or data sets"):
        submit(lab)
    tenants.limit("lab", {"most_stored_bytes": 701})
    submit(lab)


def test_a_training_under_way_stores_its_checkpoints_whatever_the_limit(ledger: Ledger, tenants: Tenants) -> None:
    submit(ledger.of("lab"))
    job = claim(ledger).job
    tenants.limit("lab", {"most_stored_bytes": 10})
    save(ledger, job, 10, stored_bytes=700)
    save(ledger, job, 20, stored_bytes=700)
    assert tenants.usage("lab")[1].stored_bytes == 1400


def test_what_would_be_too_much_is_a_429_with_its_limit(api: Deployed) -> None:
    api.enrol()
    tenants, key = api.app.state.backend.tenants, bearer(key_for(api, tenant="lab"))
    tenants.limit("lab", {"most_queued": 1})
    assert api.http.post("/v1/jobs", json=spec(), headers=key).status_code == 201
    refused = api.http.post("/v1/jobs", json=spec(), headers=key)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    (fault,) = refused.json()["errors"]
    assert (fault["code"], fault["limit"], fault["actual"]) == ("quota_exceeded", 1, 1)
    assert "cancel one" in fault["message"]
    assert api.get("/v1/usage", headers=key)["queued"] == {"used": 1, "limit": 1}


def test_weights_beyond_the_limit_are_refused_and_leave_nothing(api: Deployed) -> None:
    tenants, key = api.app.state.backend.tenants, bearer(key_for(api, tenant="lab"))
    content = _safetensors()
    tenants.limit("lab", {"most_stored_bytes": len(content) + 1})
    assert api.http.post("/v1/weights", content=content, headers=key).status_code == 201
    for body in (content, iter([content])):  # one that says its length, and one that does not
        assert api.http.post("/v1/weights", content=body, headers=key).status_code == 429
    assert len(api.artifacts.prefixes("weights")) == 1
    assert len(api.get("/v1/weights", headers=key)["data"]) == 1


def test_an_archive_beyond_the_limit_is_refused_and_leaves_nothing(api: Deployed) -> None:
    tenants, key = api.app.state.backend.tenants, bearer(key_for(api, tenant="lab"))
    tenants.limit("lab", {"most_stored_bytes": 100})
    declared = {"name": "flowers", "task": "classification", "format": "image_folder"}
    dataset = api.http.post("/v1/datasets", json=declared, headers=key).json()["id"]
    for body in (b"x" * 101, iter([b"x" * 101])):
        assert api.http.put(f"/v1/datasets/{dataset}/content", content=body, headers=key).status_code == 429
    assert api.artifacts.prefixes(f"datasets/{dataset}") == []
    taken = api.http.put(f"/v1/datasets/{dataset}/content", content=b"x" * 100, headers=key)
    assert taken.status_code == 200
    assert api.get("/v1/usage", headers=key)["stored_bytes"] == {"used": 100, "limit": 100}


def test_the_rate_is_a_tenants_and_tells_when_to_come_again(api: Deployed) -> None:
    tenants = api.app.state.backend.tenants
    keys = [bearer(key_for(api, tenant="lab")) for _ in range(2)]
    tenants.limit("lab", {"most_requests": 4})
    answers = [api.http.get("/v1/jobs", headers=keys[number % 2]) for number in range(6)]
    assert [answer.status_code for answer in answers].count(429) >= 1
    refused = answers[-1]
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 15
    other = bearer(key_for(api, tenant="another"))
    assert api.http.get("/v1/jobs", headers=other).status_code == 200


def test_a_bucket_fills_up_by_the_minute() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    assert [rates.take("lab", 2) for _ in range(3)] == [0, 0, 30]
    now[0] = 29.0
    assert rates.take("lab", 2) == 1
    now[0] = 30.0
    assert [rates.take("lab", 2) for _ in range(2)] == [0, 30]
    now[0] = 10_000.0
    assert [rates.take("lab", 2) for _ in range(3)] == [0, 0, 30], "never more than a minute's"
    assert rates.take("none", 0) > 0
