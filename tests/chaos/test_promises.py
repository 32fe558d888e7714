"""One promise after the other, each with its own trouble, at the sizes that docs/reliability.md tells."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service.store.reading import Reader
from service.store.rows import Job
from service.store.states import ENDED
from tests.chaos import history, streams
from tests.chaos.cluster import GRACE_SECONDS, Cluster, cluster
from tests.chaos.history import Record
from tests.flow.service_process import wait_for
from tests.service.deployed import spec

pytestmark = pytest.mark.release

DATABASE_AWAY_SECONDS = 60.0
CANCELS = 100
READERS = 50


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, database="postgresql", workers=2) as made:
        yield made


@pytest.fixture
def client(made: Cluster) -> "Iterator[Client]":
    with Client(made) as client:
        yield client


class Client:
    """Posts jobs, and has all that it posted judged."""

    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.http = httpx.Client(base_url=made.http_url, timeout=10)
        self.reader = Reader(made.engine)
        self.record = Record()
        self.post_seconds: list[float] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, steps: int, step_seconds: float = 0.05) -> str:
        labels = {"steps": str(steps), "step_seconds": str(step_seconds)}
        began = time.monotonic()
        answer = self.http.post("/v1/jobs", json={**spec(), "metadata": labels}).raise_for_status()
        self.post_seconds.append(time.monotonic() - began)
        job_id = str(answer.json()["id"])
        self.record.accepted[job_id] = steps
        return job_id

    def job(self, job_id: str) -> Job:
        return self.reader.job(job_id)

    def until_running(self, *job_ids: str) -> None:
        wait_for(lambda: all(self.reader.metrics(job_id) for job_id in job_ids), within_seconds=60)

    def until_all_ended(self, seconds: float = 120) -> None:
        wait_for(
            lambda: all(self.job(job_id).status in ENDED for job_id in self.record.accepted), within_seconds=seconds
        )

    def broken(self) -> list[str]:
        """What the judge finds, and runs that nobody holds."""
        wait_for(lambda: not self.made.runs(), within_seconds=10)
        orphans = [f"an orphan: process {pid}" for pid in self.made.orphans()]
        return orphans + history.faults(self.made.engine, self.made.artifacts, self.record)


@pytest.mark.parametrize("trouble", ["it vanishes", "it hangs", "it comes back empty"])
def test_jobs_start_and_go_on_whatever_the_broker_does(trouble: str, made: Cluster, client: Client) -> None:
    """P5. It stays away until all is over, or has forgotten every message."""
    running = client.post(steps=200)
    client.until_running(running)
    [broker] = made.named("broker")
    if trouble == "it comes back empty":
        queued = client.post(steps=20)
        Redis(unix_socket_path=made.broker_socket).flushall()
    else:
        broker.is_wanted = False
        broker.send(signal.SIGKILL if trouble == "it vanishes" else signal.SIGSTOP)
        queued = client.post(steps=20)
    client.until_all_ended()
    broker.send(signal.SIGCONT)
    broker.is_wanted = True
    started_at = client.job(queued).started_at
    assert started_at is not None
    waited = (started_at - client.job(queued).created_at).total_seconds()
    tell(f"P5 {trouble}: POST {client.post_seconds[-1]:.2f} s, started after {waited:.1f} s")
    assert client.job(running).attempt == client.job(queued).attempt == 1
    assert max(client.post_seconds) < 3
    assert waited < 60
    assert client.broken() == []


def test_no_job_fails_and_no_point_is_missing_while_the_database_is_away(made: Cluster, client: Client) -> None:
    """P6. Trainings go on meanwhile, and one of them ends."""
    jobs = [client.post(steps=round(DATABASE_AWAY_SECONDS / 0.1), step_seconds=0.2), client.post(steps=200)]
    client.until_running(*jobs)
    assert made.postgresql is not None
    made.postgresql.stop()
    asked: list[int] = []
    back_at = time.monotonic() + DATABASE_AWAY_SECONDS
    while time.monotonic() < back_at:
        asked.append(client.http.get(f"/v1/jobs/{jobs[0]}").status_code)
        asked.append(client.http.post("/v1/jobs", json=spec()).status_code)
        time.sleep(0.5)
    made.postgresql.start()
    client.until_all_ended(300)
    tell(f"P6 {DATABASE_AWAY_SECONDS:.0f} s away: {len(asked)} requests, answered {sorted(set(asked))}")
    assert set(asked) == {503}
    assert [(job.status, job.attempt, job.failures, job.losses) for job in map(client.job, jobs)] == [
        ("succeeded", 1, 0, 0),
        ("succeeded", 1, 0, 0),
    ]
    assert client.broken() == []


def test_a_cancel_ends_a_job_within_its_grace_and_five_seconds(made: Cluster, client: Client) -> None:
    """P7. At whatever instant: waiting, starting, training, saving."""
    drawn = random.Random(7)
    took: list[float] = []

    def cancel(job_id: str) -> None:
        asked_at = datetime.now(UTC)
        client.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        wait_for(lambda: client.job(job_id).status in ENDED, within_seconds=60)
        ended_at = client.job(job_id).ended_at
        assert ended_at is not None
        took.append((ended_at - asked_at).total_seconds())

    for _ in range(CANCELS):
        job_id = client.post(steps=10_000, step_seconds=drawn.choice([0.01, 0.1]))
        client.record.cancelled.add(job_id)
        time.sleep(drawn.uniform(0, 1.5))
        cancel(job_id)
    took.sort()
    tell(f"P7 {len(took)} cancels: median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s")
    assert {job.status for job in map(client.job, client.record.accepted)} == {"cancelled"}
    assert took[-1] < GRACE_SECONDS + 5
    assert client.broken() == []


def test_a_rolling_restart_costs_no_job_an_attempt_of_its_budgets(made: Cluster, client: Client) -> None:
    """P8. Every process is sent SIGTERM in turn, the database too, under load."""
    assert made.postgresql is not None
    posting, asking = Posting(client), Asking(made.http_url)
    for each in (posting, asking):
        each.start()
    for process in made.processes:
        started = process.starts
        process.send(signal.SIGTERM)
        wait_for(lambda process=process, started=started: process.starts > started, within_seconds=60)  # type: ignore[misc]  # its defaults bind
        time.sleep(3)
    made.postgresql.stop()
    made.postgresql.start()
    time.sleep(3)
    for each in (posting, asking):
        each.over.set()
        each.join()
    client.until_all_ended(300)
    jobs = [client.job(job_id) for job_id in client.record.accepted]
    restarted, tried = len(made.processes) + 1, sum(job.attempt for job in jobs)
    tell(f"P8 {restarted} processes restarted: {len(jobs)} jobs, {tried} attempts; answers {dict(asking.answers)}")
    assert {(job.status, job.failures, job.losses) for job in jobs} == {("succeeded", 0, 0)}
    assert asking.answers["200"] > 50
    assert set(asking.answers) <= {"200", "503 with Retry-After", "no connection"}
    assert client.broken() == []


def test_no_reader_misses_an_event_or_hears_one_twice(made: Cluster, client: Client) -> None:
    """P10. Of one job, each with breaks of its own, while the API is killed under them."""
    job_id = client.post(steps=150, step_seconds=0.2)
    over = threading.Event()
    readings: list[streams.Reading] = []

    def read(seed: int) -> None:
        readings.append(streams.read(made.http_url, job_id, random.Random(seed), over))

    readers = [threading.Thread(target=read, args=(seed,), daemon=True) for seed in range(READERS)]
    for reader in readers:
        reader.start()
    [api] = made.named("api")
    for _ in range(3):
        time.sleep(8)
        api.send(signal.SIGKILL)
    client.until_all_ended()
    for reader in readers:
        reader.join(60)
    over.set()
    cut, told = sum(reading.cut for reading in readings), client.job(job_id).last_event
    tell(f"P10 {READERS} readers, {cut} connections cut, the api killed 3 times: {told} events each")
    assert [reading.gaps for reading in readings] == [""] * READERS
    assert {reading.last for reading in readings} == {told}
    assert client.broken() == []


class Asking(threading.Thread):
    """Lists jobs and workers without a pause; counts the answers."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.answers: Counter[str] = Counter()
        self._url = url

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as http:
            while not self.over.wait(0.02):
                for path in ("/v1/jobs", "/v1/workers"):
                    try:
                        answer = http.get(path)
                    except httpx.TransportError:  # nobody listens while the api starts
                        self.answers["no connection"] += 1
                        continue
                    later = " with Retry-After" if "Retry-After" in answer.headers else ""
                    self.answers[f"{answer.status_code}{later}"] += 1


class Posting(threading.Thread):
    """A job every second, again after whatever does not take it."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._client = client

    def run(self) -> None:
        while not self.over.wait(1):
            try:
                self._client.post(steps=60)
            except httpx.HTTPError:
                continue


def tell(figure: str) -> None:
    print(f"\n{figure}", flush=True)
