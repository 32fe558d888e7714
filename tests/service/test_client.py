import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.catalog import Device
from service import client as client_module
from service.cli import main
from service.client import Client, RequestRefused, ServiceUnreachable
from service.routes import events as event_routes
from service.store.rows import Outcome, WorkerCard
from tests.service.deployed import Deployed, served, spec
from tests.service.menu import catalog
from tests.service.work import claim, evaluation, metrics, save, trace


@pytest.fixture
def client(api: Deployed) -> Iterator[Client]:
    api.enrol()
    with served(api.app) as url, Client(url) as client:
        yield client


def test_a_job_is_followed_from_its_posting_to_its_end(api: Deployed, client: Client) -> None:
    posted = client.submit(spec())
    row = claim(api.ledger).job

    def train() -> None:
        api.ledger.record(row.id, 1, [metrics(1, 2, 3), trace(3), evaluation(3, 0.5, best=True)])
        api.ledger.finish(row.id, 1, Outcome("succeeded"))

    trainer = threading.Thread(target=train)
    trainer.start()
    seen: list[dict[str, Any]] = []
    ended = client.wait(posted["id"], seen.append)
    trainer.join()
    assert ended["status"] == "succeeded"
    assert [event["type"] for event in seen] == ["status", "status", "metrics", "trace", "evaluation", "status"]
    assert list(client.events(posted["id"])) == seen
    assert list(client.follow(posted["id"], after=4)) == seen[4:]
    assert list(client.follow(posted["id"], after=6)) == []


def test_a_stream_that_is_cut_off_goes_on_where_it_was(
    api: Deployed, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "STREAM_SECONDS", 0.1)
    monkeypatch.setattr(
        event_routes, "POLL_SECONDS", 0.3
    )  # longer than the client's patience: it hangs up again and again
    job_id = client.submit(spec())["id"]
    claim(api.ledger)
    numbers = []
    for event in client.follow(job_id):
        numbers.append(event["number"])
        if event["number"] < 6:
            api.ledger.record(job_id, 1, [metrics(event["number"])])
        elif event["number"] == 6:
            api.ledger.finish(job_id, 1, Outcome("succeeded"))
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 6


def test_what_a_job_came_to_is_read_in_one_call_each(api: Deployed, client: Client) -> None:
    job_id = client.submit(spec())["id"]
    row = claim(api.ledger).job
    api.ledger.record(job_id, 1, [metrics(1, 2), trace(2), evaluation(2, 0.5, best=True)])
    api.ledger.log(job_id, 1, ["hello"])
    saved, _ = save(api.ledger, row, 2, 0.5, best=True)
    assert client.results(job_id)["best"]["metrics"] == {"accuracy": 0.5}
    assert client.metrics(job_id, names="train/loss")["series"][0]["step"] == [1, 2]
    assert client.traces(job_id)["layers"][0]["step"] == [2]
    assert "<svg" in client.traces_svg(job_id, "trajectory")
    assert client.logs(job_id, tail=5) == "hello\n"
    assert [checkpoint["id"] for checkpoint in client.checkpoints(job_id)] == [saved.id]
    assert client.workers()[0]["id"] == "worker-1"
    assert client.catalog()["backbones"]


def test_the_file_of_a_checkpoint_is_read(api: Deployed, client: Client, tmp_path: Path) -> None:
    client.submit(spec())
    row = claim(api.ledger).job
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "files" / "manifest.json").write_text("{}")
    api.artifacts.put_folder("jobs/one", tmp_path / "files")
    saved, _ = save(api.ledger, row, 2, key="jobs/one")
    assert client.checkpoint_content(saved.id) == b"weights"


def test_all_jobs_are_walked_through_page_by_page(client: Client) -> None:
    made = [client.submit(spec())["id"] for _ in range(5)]
    assert [job["id"] for job in client.jobs(limit=2)] == made[::-1]
    assert list(client.jobs(status="failed")) == []


def test_a_job_is_cancelled_and_deleted(client: Client) -> None:
    job_id = client.submit(spec(), idempotency_key="once")["id"]
    assert client.submit(spec(), idempotency_key="once")["id"] == job_id
    assert client.cancel(job_id)["status"] == "cancelled"
    client.delete(job_id)
    with pytest.raises(RequestRefused, match="there is no job") as caught:
        client.job(job_id)
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_a_refused_spec_is_told_in_its_sentences(client: Client) -> None:
    wrong = {**spec(), "dataset": {"name": "digit"}, "colour": "green"}
    with pytest.raises(RequestRefused) as caught:
        client.submit(wrong)
    assert str(caught.value) == "/colour: 'colour' is not a field of the spec"
    with pytest.raises(RequestRefused, match="/dataset/name: no data set is named 'digit'; nearest: digits"):
        client.submit({**spec(), "dataset": {"name": "digit"}})


def test_a_service_that_is_not_there_is_told_in_a_sentence() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServiceUnreachable, match="nobody answers at http"):
        client.job("job_1")


def test_following_a_job_that_is_not_there_does_not_wait(client: Client) -> None:
    with pytest.raises(RequestRefused, match="there is no job"):
        list(client.follow("job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"))


def test_a_worker_is_drained_and_taken_back_by_its_id(client: Client) -> None:
    (worker,) = client.workers()
    assert client.drain_worker(worker["id"], requeue=True)["draining"] == "requeue"
    assert client.workers()[0]["draining"] == "requeue"
    assert client.drain_worker(worker["id"])["draining"] == "finish"
    assert client.resume_worker(worker["id"])["draining"] is None
    with pytest.raises(RequestRefused, match="no worker 'wk_gone' is at work"):
        client.drain_worker("wk_gone")


def test_the_command_line_lists_drains_and_takes_back_workers(api: Deployed, client: Client) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["workers", *words, "--url", client.url])
        return done.exit_code, done.output

    cards = [Device(index=index, name="H200", memory_bytes=2**37) for index in range(2)]
    api.ledger.enrol(WorkerCard("worker-2", "host", 2, cards, {}, catalog(), ["nvme", "rack-3"], 8))
    aside = {"index": 1, "jobs": [], "put_aside": "the driver has lost it"}
    cpu = {"load": None, "memory_used_bytes": None, "memory_bytes": None}
    api.ledger.seen("worker-2", 1, {"devices": [aside], "cpu": cpu, "free_slots": 0})
    first = "worker-1\thost\t0 of 1\tCPU\t\t{}\n"
    second = "worker-2\thost\t1 of 2\tH200, H200: the driver has lost it\tnvme,rack-3\t{}\n"
    assert run() == (0, first.format("taking jobs") + second.format("taking jobs"))
    assert run("drain", "worker-2", "--requeue") == (0, "1 of 2\n")
    assert run("drain", "worker-1") == (0, "0 of 1\n")
    assert run() == (0, first.format("drained, jobs finish") + second.format("drained, jobs requeue"))
    assert run("resume", "worker-1") == (0, "")
    assert run()[1].startswith(first.format("taking jobs"))
    status, said = run("resume", "worker-3")
    assert (status, said) == (1, "acmix: no worker 'worker-3' is at work\n")
