"""The service and MLflow's tracking server, each filled and with the calls that the two are compared by."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, text

from acmix import events
from benchmarks.clients import Call, Http, Opener, request
from benchmarks.stack import analyse, api, clone, database, mlflow
from service.store import _blocks
from service.store.database import connect
from service.store.ids import new_id
from service.store.ledger import Ledger

SPEC = {
    "name": "late attention",
    "metadata": {"study": "depth"},
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "layer4.*", "mixer": {"name": "acmix", "options": {"heads": 4}}}],
    "dataset": {"name": "digits"},
}
CURVES = ("train/loss", "train/lr", "train/accuracy", "val/loss")
STEPS = 25  # of each curve in a batch
POINTS, MANY_POINTS, SHOWN = 10_000, 1_000_000, 500
MOST_CLIENTS = 16
BEGAN = time.monotonic()


@dataclass(frozen=True)
class Side:
    """One of the two: what its clients do, by kind, and how it is put in order again behind them."""

    name: str
    work: Mapping[str, Opener]
    settle: Callable[[], None] = lambda: None


@contextmanager
def ours(server: Any, folder: Path, *, jobs: int, queued: int, million: bool) -> Iterator[Side]:
    """The service with so many jobs, some of them queued, the others ended; curves are of the oldest of these."""
    url = database(server, "acmix")
    with api(url, folder) as (port, engine, key):
        headers = [f"Authorization: Bearer {key}"]
        submit = submission(key)
        http = Http(port)
        running = [claimed(http.send(submit), engine, slot) for slot in range(MOST_CLIENTS)]
        first = json.loads(http.send(submit))["id"]
        ids = _fill_ours(engine, first, jobs, queued)
        small, large = _curve(engine, ids[0], POINTS), _curve(engine, ids[1], MANY_POINTS if million else 1)
        analyse(engine)

        def get(path: str) -> bytes:
            return request("GET", f"/v1/jobs{path}", headers=headers)

        def record(number: int) -> Call:
            ledger = Ledger(connect(url))
            return lambda _: ledger.record(running[number], 1, [events.metrics(*_batch(), epoch=1)])

        work = {
            "submit": _http(port, lambda: submit),
            "read": _http(port, lambda: get(f"/{random.choice(ids)}")),
            "list": _http(port, lambda: get("?limit=100")),
            "record": record,
            "series": _http(port, lambda: get(f"/{small}/metrics?names=train/loss")),
            "thinned": _http(port, lambda: get(f"/{small}/metrics?names=train/loss&max_points={SHOWN}")),
            "million": _http(port, lambda: get(f"/{large}/metrics?names=train/loss&max_points={SHOWN}")),
        }
        yield Side("acmix", work, lambda: _take_on(engine, ids[-1]))


@contextmanager
def mlflows(executable: str, server: Any, folder: Path, *, runs: int) -> Iterator[Side]:
    """MLflow with so many runs."""
    with mlflow(executable, database(server, "mlflow"), folder) as (port, engine):
        http = Http(port)

        def post(path: str, body: Any) -> bytes:
            return request("POST", f"/api/2.0/mlflow/{path}", json.dumps(body).encode())

        def get(path: str) -> bytes:
            return request("GET", f"/api/2.0/mlflow/{path}")

        experiment = json.loads(http.send(post("experiments/create", {"name": "late attention"})))["experiment_id"]

        def create() -> bytes:
            tags = [{"key": "study", "value": "depth"}]
            values = {"experiment_id": experiment, "run_name": SPEC["name"], "start_time": _now_ms(), "tags": tags}
            return post("runs/create", values)

        first, *recording = [json.loads(http.send(create()))["run"]["info"]["run_id"] for _ in range(1 + MOST_CLIENTS)]
        ids = [uuid4().hex for _ in range(runs)]
        for table in ("runs", "tags"):
            clone(engine, table, "run_uuid", first, ids)
        for start in range(0, POINTS, 1000):
            points = [_point("train/loss", step, 1 / (step + 1)) for step in range(start, start + 1000)]
            http.send(post("runs/log-batch", {"run_id": first, "metrics": points}))
        analyse(engine)

        def log_batch(run_id: str) -> bytes:
            steps, curves = _batch()
            points = [_point(name, *each) for name in curves for each in zip(steps, curves[name], strict=True)]
            return post("runs/log-batch", {"run_id": run_id, "metrics": points})

        thinned = f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={first}&metric_key=train/loss"
        work = {
            "submit": _http(port, create),
            "read": _http(port, lambda: get(f"runs/get?run_id={random.choice(ids)}")),
            "list": _http(port, lambda: post("runs/search", {"experiment_ids": [experiment], "max_results": 100})),
            "record": lambda number: _http(port, lambda: log_batch(recording[number]))(number),
            "series": _http(
                port, lambda: get(f"metrics/get-history?run_id={first}&metric_key=train/loss&max_results={POINTS}")
            ),
            "thinned": _http(port, lambda: request("GET", f"{thinned}&max_results={SHOWN}")),
        }
        yield Side("mlflow", work)


def submission(key: str) -> bytes:
    """The request that submits a job."""
    return request("POST", "/v1/jobs", json.dumps(SPEC).encode(), [f"Authorization: Bearer {key}"])


def _http(port: int, make: Callable[[], bytes]) -> Opener:
    """A client that sends what `make` gives it."""

    def open_one(_number: int) -> Call:
        http = Http(port)
        return lambda _: http.send(make())

    return open_one


def claimed(answer: bytes, engine: Engine, slot: int = 0) -> str:
    """The id of the job that was just submitted, which now runs on that slot."""
    claimed = Ledger(engine, lease_seconds=86400).claim(
        "worker-1", free=[slot], slots=MOST_CLIENTS, has_gpus=False, can_run=lambda *_: True
    )
    assert claimed is not None
    assert claimed.job.id == json.loads(answer)["id"]
    return claimed.job.id


def _fill_ours(engine: Engine, of: str, count: int, queued: int) -> list[str]:
    """So many jobs as the service has written one, oldest first; the newest wait."""
    ids = [new_id("job") for _ in range(count)]
    now = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z"
    ended = {"status": "succeeded", "started_at": now, "ended_at": now}
    for those, more in ((ids[: count - queued], ended), (ids[count - queued :], {})):
        clone(engine, "jobs", "id", of, those, **more)
    for table in ("labels", "events"):
        clone(engine, table, "job", of, ids)
    return ids


def _take_on(engine: Engine, newest: str) -> None:
    """What came after a job is queued no more, as if workers kept up: the queue is always of one length."""
    with engine.begin() as connection:
        ended = "UPDATE jobs SET status = 'succeeded', ended_at = clock_timestamp() WHERE status = 'queued'"
        connection.execute(text(f"{ended} AND id > :newest"), {"newest": newest})


def _curve(engine: Engine, job: str, points: int) -> str:
    """A job with a curve of noise."""
    values = "SELECT :job, 'train/loss', n, random() FROM generate_series(1, :points) n"
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(
            text(f"INSERT INTO metric_points (job, name, step, value) {values}"), {"job": job, "points": points}
        )
        _blocks.refresh(connection, job, ["train/loss"], 1, points)
    return job


def _batch() -> tuple[list[int], dict[str, list[float]]]:
    """Steps that no batch of this client had before, and a value a curve and step."""
    first = int(1e5 * (time.monotonic() - BEGAN))
    steps = list(range(first, first + STEPS))
    return steps, {name: [random.random() for _ in steps] for name in CURVES}


def _point(name: str, step: int, value: float) -> dict[str, Any]:
    return {"key": name, "step": step, "value": value, "timestamp": _now_ms()}


def _now_ms() -> int:
    return int(1e3 * time.time())
