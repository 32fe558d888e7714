"""The same service on PostgreSQL: a job succeeds, a killed worker loses nothing, cancel is prompt."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from tests.flow.service_process import Up, kill, small_job, up, wait_for


@pytest.fixture(scope="module")
def service(administrator: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`acmix up` on a database that it has to migrate first."""
    with administrator.connect() as connection:
        connection.execute(text("CREATE DATABASE flow"))
    url = administrator.url.set(database="flow").render_as_string(hide_password=False)
    data = tmp_path_factory.mktemp("data")
    with up(data, DATABASE_URL=url) as running:
        yield running
        assert not (data / "acmix.db").exists()


def test_a_job_succeeds_and_all_of_it_is_served(service: Up) -> None:
    job = service.ended(service.submit(small_job(epochs=2)))
    assert job["status"] == "succeeded", job["status_reason"]
    assert list(service.metrics(job["id"])["train/loss"]) == list(range(1, 41))
    events = service.events(job["id"])
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert len(service.http.get(job["urls"]["traces"]).json()["layers"]) == 4
    assert service.http.get(job["urls"]["results"]).json()["final"]["split"] == "test"


def test_a_worker_killed_in_mid_epoch_loses_nothing(service: Up) -> None:
    job_id = service.submit(small_job(epochs=4))
    wait_for(lambda: service.events(job_id, "checkpoint") and service.runs())
    kill(service.workers()[0])
    job = service.ended(job_id)
    assert (job["status"], job["attempt"], job["losses"]) == ("succeeded", 2, 1)
    assert list(service.metrics(job_id)["train/loss"]) == list(range(1, 81))
    events = service.events(job_id)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    second = next(event for event in events if event["attempt"] == 2)
    assert second["data"]["resumed_from"]["step"] >= 20


def test_a_cancelled_job_ends_at_once(service: Up) -> None:
    job_id = service.submit(small_job(epochs=5000))
    wait_for(lambda: service.events(job_id, "metrics"))
    assert service.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    assert service.ended(job_id, within_seconds=10)["status"] == "cancelled"
    wait_for(lambda: not service.runs(), within_seconds=5)
