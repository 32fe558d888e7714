"""What may be asked of a job over HTTP: cancel, pause, resume, retry."""

import pytest
from httpx import Response
from redis import Redis

from service.store.rows import Outcome
from tests.service.deployed import Deployed, spec
from tests.service.menu import catalog
from tests.service.work import claim, save


@pytest.fixture(autouse=True)
def _worker(api: Deployed) -> None:
    api.enrol()


def test_a_queued_job_is_cancelled_at_once_and_only_once(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    first, again = api.http.post(f"{url}/cancel"), api.http.post(f"{url}/cancel")
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["status"] == "cancelled"
    assert first.json()["status_reason"]["code"] == "cancelled_by_user"


def test_a_running_job_is_asked_to_end(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    claim(api.ledger)
    response = api.http.post(f"{url}/cancel")
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["requested"]) == ("running", "cancel")


def test_a_job_that_has_ended_stays_as_it_is_when_cancelled(api: Deployed) -> None:
    job = api.submit()
    claim(api.ledger)
    api.ledger.finish(job["id"], 1, Outcome("succeeded"))
    response = api.http.post(f"{job['urls']['self']}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")


def test_a_queued_job_is_paused_at_once_and_queued_again_at_its_end(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    later = api.submit()
    paused, again = asked(api, url, "pause"), asked(api, url, "pause")
    assert [(each.status_code, each.json()["status"]) for each in (paused, again)] == [(202, "paused"), (200, "paused")]
    assert api.get(later["urls"]["self"])["queue"]["position"] == 1
    resumed, again = asked(api, url, "resume"), asked(api, url, "resume")
    assert [(each.status_code, each.json()["status"]) for each in (resumed, again)] == [
        (202, "queued"),
        (200, "queued"),
    ]
    assert resumed.json()["queue"]["position"] == 2


def test_a_running_job_is_asked_to_pause_and_goes_on_under_its_next_attempt(api: Deployed) -> None:
    job = api.submit()
    url, first = job["urls"]["self"], claim(api.ledger).job
    wished = asked(api, url, "pause")
    assert (wished.status_code, wished.json()["status"], wished.json()["requested"]) == (202, "running", "pause")
    checkpoint, _ = save(api.ledger, first, 10)
    api.ledger.finish(job["id"], 1, Outcome("drained"))
    assert api.get(url)["status"] == "paused"
    asked(api, url, "resume")
    second = claim(api.ledger)
    assert (second.job.id, second.job.attempt, second.resume and second.resume.id) == (job["id"], 2, checkpoint.id)
    after = api.get(url)
    assert (after["failures"], after["losses"]) == (0, 0)


def test_a_pause_that_has_not_come_about_is_taken_back(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    claim(api.ledger)
    asked(api, url, "pause")
    taken_back = asked(api, url, "resume")
    assert (taken_back.status_code, taken_back.json()["requested"]) == (202, None)


def test_a_cancel_is_not_turned_into_a_pause(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    claim(api.ledger)
    asked(api, url, "cancel")
    after = asked(api, url, "pause")
    assert (after.status_code, after.json()["requested"]) == (200, "cancel")


def test_a_resumed_job_rings_for_a_worker(api: Deployed, broker_url: str) -> None:
    url = api.submit()["urls"]["self"]
    asked(api, url, "pause")
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as broker:
        rung = broker.llen("train")
        asked(api, url, "resume")
        assert broker.llen("train") == rung + 1


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_an_ended_job_takes_neither_pause_nor_resume(api: Deployed, action: str) -> None:
    url = api.submit()["urls"]["self"]
    asked(api, url, "cancel")
    refused = asked(api, url, action)
    assert (refused.status_code, refused.json()["resource_status"]) == (409, "cancelled")
    assert refused.json()["allowed_actions"] == ["retry", "delete"]


def test_a_retry_is_a_new_job_of_the_same_spec(api: Deployed) -> None:
    job = api.submit(name="again", priority=7)
    asked(api, job["urls"]["self"], "cancel")
    response = asked(api, job["urls"]["self"], "retry")
    assert response.status_code == 202
    new = response.json()
    assert response.headers["Location"] == new["urls"]["self"] != job["urls"]["self"]
    assert (new["parent"], new["status"], new["attempt"]) == (job["id"], "queued", 0)
    assert (new["spec"], new["resolved_spec"]) == (job["spec"], job["resolved_spec"])
    assert api.get(job["urls"]["self"])["status"] == "cancelled"


def test_a_job_that_has_not_ended_takes_no_retry(api: Deployed) -> None:
    url = api.submit()["urls"]["self"]
    refused = asked(api, url, "retry")
    assert (refused.status_code, refused.json()["resource_status"]) == (409, "queued")
    assert refused.json()["allowed_actions"] == ["cancel", "pause"]
    assert len(api.get("/v1/jobs")["data"]) == 1


def test_the_same_key_retries_once(api: Deployed) -> None:
    one, other = (api.submit(name=name)["urls"]["self"] for name in ("one", "other"))
    for url in (one, other):
        asked(api, url, "cancel")
    first, again = (api.http.post(f"{one}/retry", headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    of_another = api.http.post(f"{other}/retry", headers={"Idempotency-Key": "once"})
    assert of_another.status_code == 422
    assert of_another.json()["errors"][0]["pointer"] == "/header/idempotency-key"


def test_a_retry_of_what_the_catalog_no_longer_has_says_so(api: Deployed) -> None:
    job = api.submit()
    asked(api, job["urls"]["self"], "cancel")
    api.enrol(catalog().model_copy(update={"datasets": []}))
    refused = asked(api, job["urls"]["self"], "retry")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/dataset/name"


def test_a_key_used_before_answers_its_job_whatever_the_catalog_has_by_now(api: Deployed) -> None:
    first = api.post(spec(), **{"Idempotency-Key": "once"})
    api.enrol(catalog().model_copy(update={"datasets": []}))
    again = api.post(spec(), **{"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry"])
def test_a_job_that_is_not_there_takes_nothing(api: Deployed, action: str) -> None:
    assert asked(api, "/v1/jobs/job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", action).status_code == 404


def asked(api: Deployed, url: str, action: str) -> Response:
    return api.http.post(f"{url}/{action}")
