from datetime import datetime
from pathlib import Path

import pytest
from redis import Redis

from acmix.errors import Reason
from acmix.events import Event
from service.store.rows import Outcome
from tests.service.deployed import Deployed, deployed, spec
from tests.service.work import at_once, claim, evaluation, look, save

FIELDS = {
    *("id", "kind", "name", "status", "phase", "status_reason", "requested", "spec", "resolved_spec", "parent"),
    *("attempt", "failures", "losses", "created_at", "started_at", "ended_at", "queue", "progress"),
    *("estimated_end_at", "best", "worker", "devices", "versions", "metadata", "urls"),
    *("events_pruned_at", "series_pruned_at"),
}


@pytest.fixture(autouse=True)
def _worker(api: Deployed) -> None:
    api.enrol()


def test_a_posted_job_is_queued_and_can_be_looked_at_where_its_location_says(api: Deployed) -> None:
    response = api.post(spec())
    assert response.status_code == 201
    job = response.json()
    assert set(job) == FIELDS
    assert (job["status"], job["attempt"], job["queue"]) == ("queued", 0, {"position": 1})
    assert api.get(response.headers["Location"]) == job


def test_a_job_keeps_its_spec_as_posted_and_shows_every_default_beside_it(api: Deployed) -> None:
    job = api.submit()
    assert job["spec"] == spec()
    assert job["resolved_spec"]["training"]["schedule"] == {"name": "cosine", "warmup_epochs": 1, "final_factor": 0.0}
    assert job["resolved_spec"]["evaluation"]["metric"] == "accuracy"
    assert job["metadata"] == {"study": "depth"}


def test_a_time_ends_in_z(api: Deployed) -> None:
    assert api.submit()["created_at"].endswith("Z")


def test_the_urls_of_a_job_lead_somewhere(api: Deployed) -> None:
    for url in api.submit()["urls"].values():
        api.get(url)


def test_a_posted_job_rings_for_a_worker(api: Deployed, broker_url: str) -> None:
    api.submit()
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as broker:
        assert broker.llen("train") == 1


def test_a_job_is_taken_while_the_broker_is_away(database_url: str, tmp_path: Path) -> None:
    with deployed(database_url, "redis://127.0.0.1:1/0", tmp_path) as api:
        api.enrol()
        response = api.post(spec())
        assert response.status_code == 201
        assert response.elapsed.total_seconds() < 3


def test_before_any_worker_has_come_no_job_is_taken(tmp_path: Path, broker_url: str) -> None:
    with deployed(f"sqlite:///{tmp_path / 'other.db'}", broker_url, tmp_path) as api:
        response = api.post(spec())
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert api.get("/v1/jobs")["data"] == []


def test_the_same_key_and_body_again_answer_the_first_job(api: Deployed) -> None:
    first = api.post(spec(), **{"Idempotency-Key": "once"})
    again = api.post(dict(reversed(spec().items())), **{"Idempotency-Key": "once"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]


def test_the_same_key_posted_at_once_makes_one_job(api: Deployed) -> None:
    posted = at_once(*[lambda: api.post(spec(), **{"Idempotency-Key": "race"})] * 6)
    assert sorted(response.status_code for response in posted) == [200] * 5 + [201]
    assert len({response.json()["id"] for response in posted}) == 1


def test_the_same_key_with_another_body_is_refused(api: Deployed) -> None:
    api.post(spec(), **{"Idempotency-Key": "once"})
    response = api.post({**spec(), "name": "other"}, **{"Idempotency-Key": "once"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/header/idempotency-key"


@pytest.mark.parametrize("key", ["", "x" * 201, "two words"])
def test_a_key_that_is_none_is_refused(api: Deployed, key: str) -> None:
    response = api.post(spec(), **{"Idempotency-Key": key})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/header/idempotency-key"


def test_jobs_are_listed_newest_first_a_page_at_a_time(api: Deployed) -> None:
    made = [api.submit()["id"] for _ in range(5)]
    first = api.get("/v1/jobs?limit=3")
    assert [job["id"] for job in first["data"]] == made[:1:-1]
    assert (first["has_more"], first["next"]) == (True, made[2])
    second = api.get(f"/v1/jobs?limit=3&after={first['next']}")
    assert [job["id"] for job in second["data"]] == made[1::-1]
    assert (second["has_more"], second["next"]) == (False, None)


def test_jobs_are_found_by_status_kind_name_and_labels(api: Deployed) -> None:
    one = api.submit(name="one", metadata={"study": "depth", "who": "ada"})["id"]
    two = api.submit(name="two", metadata={"study": "depth"})["id"]
    api.http.post(f"/v1/jobs/{two}/cancel")

    def found(query: str) -> list[str]:
        return [job["id"] for job in api.get(f"/v1/jobs?{query}")["data"]]

    assert found("status=queued") == [one]
    assert found("status=cancelled") == [two]
    assert found("kind=train") == [two, one]
    assert found("name=two") == [two]
    assert found("metadata[study]=depth") == [two, one]
    assert found("metadata[study]=depth&metadata[who]=ada") == [one]
    assert found("metadata[who]=bob") == []


def test_a_job_knows_its_place_in_the_queue(api: Deployed) -> None:
    first, urgent = api.submit(), api.submit(priority=5)
    assert api.get(first["urls"]["self"])["queue"]["position"] == 2
    assert urgent["queue"]["position"] == 1


def test_a_running_job_tells_how_far_it_is_and_when_it_may_end(api: Deployed) -> None:
    job = api.submit()
    claim(api.ledger)
    far = {"phase": "training", "epoch": 1, "epochs": 3, "step": 10, "steps": 40, "samples_per_second": 64.0}
    api.ledger.record(job["id"], 1, [Event("progress", "", far)])
    running = api.get(job["urls"]["self"])
    assert (running["status"], running["worker"], running["queue"]["position"]) == ("running", "worker-1", None)
    assert running["progress"]["fraction"] == 0.25
    # 30 steps of 64 samples at 64 samples a second
    left = datetime.fromisoformat(running["estimated_end_at"]) - datetime.fromisoformat(
        running["progress"]["updated_at"]
    )
    assert left.total_seconds() == 30


def test_a_job_names_its_best_evaluation_and_the_checkpoint_of_it(api: Deployed) -> None:
    job = api.submit()
    row = claim(api.ledger).job
    api.ledger.record(row.id, 1, [evaluation(10, 0.75, best=True)])
    saved, _ = save(api.ledger, row, 10, 0.75, best=True)
    assert api.get(job["urls"]["self"])["best"] == {
        "metric": "accuracy",
        "value": 0.75,
        "epoch": 1,
        "checkpoint": saved.id,
    }


def test_what_was_trained_with_shared_batch_norms_can_be_judged_on_the_cpu(api: Deployed) -> None:
    api.enrol(gpus=2)
    api.submit(training={"sync_batch_norm": True}, resources={"gpus": 2})
    claimed = look(api.ledger, gpus=2)
    assert claimed is not None
    saved, _ = save(api.ledger, claimed.job, 10, 0.75)
    asked = {"kind": "evaluate", "checkpoint": saved.id, "resources": {"processes": 2}}
    response = api.post(asked)
    assert response.status_code == 201, response.text
    assert response.json()["resolved_spec"]["resources"]["gpus"] == 0


def test_a_failed_job_says_why(api: Deployed) -> None:
    job = api.submit()
    claim(api.ledger)
    reason = Reason("diverged", "the loss of layer3.0.conv2 is not finite at step 7", "user", hint="a smaller lr")
    api.ledger.finish(job["id"], 1, Outcome("failed", reason, exit_code=1))
    failed = api.get(job["urls"]["self"])
    assert failed["status"] == "failed"
    assert failed["status_reason"] == reason.as_json()
    assert failed["ended_at"] is not None


def test_an_ended_job_is_deleted_with_its_files(api: Deployed, tmp_path: Path) -> None:
    job, other = api.submit(), api.submit()
    for each in (job, other):
        folder = tmp_path / each["id"]
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        api.artifacts.put_folder(f"jobs/{each['id']}/checkpoints/one", folder)
    api.http.post(f"{job['urls']['self']}/cancel")
    assert api.http.delete(job["urls"]["self"]).status_code == 204
    assert api.http.get(job["urls"]["self"]).status_code == 404
    assert api.artifacts.prefixes("jobs") == [f"jobs/{other['id']}"]


def test_a_job_that_has_not_ended_is_not_deleted(api: Deployed) -> None:
    job = api.submit()
    response = api.http.delete(job["urls"]["self"])
    assert response.status_code == 409
    assert response.json()["resource_status"] == "queued"
    assert "cancel" in response.json()["allowed_actions"]
    api.get(job["urls"]["self"])
