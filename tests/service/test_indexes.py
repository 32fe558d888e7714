"""No list, no claim and no round of the housekeeper reads a large table from end to end, nor sorts one.

The statements are those that the store really executes, explained by PostgreSQL as it does.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.store import _lanes
from service.store._lanes import Lane, Turn
from service.store.checks import Checks
from service.store.database import connect, migrate
from service.store.deliveries import Deliveries
from service.store.ledger import Ledger
from service.store.plans import Plans
from service.store.predictions import Predictions
from service.store.pruning import Pruning
from service.store.reading import Reader
from service.store.tenants import Tenants
from tests.service.filled import fill
from tests.service.plans import Node, nodes_of
from tests.service.work import look

TENANT = "tenant-7"
JOB, RUNNING, QUEUED = (f"job_{number:026}" for number in (6_007, 97, 7_550))
DATASET, WEIGHTS, WEBHOOK = f"ds_{107:026}", f"wts_{107:026}", f"whk_{7:026}"
CHECKPOINT = f"ckpt_{6_007:026}1"
AT = datetime(2030, 1, 1, tzinfo=UTC)
Call = Callable[[Any], object]


CALLS: dict[str, Call] = {
    "a job": lambda s: s.mine.job(JOB),
    "jobs": lambda s: s.mine.jobs(20),
    "jobs after one": lambda s: s.mine.jobs(20, after=JOB),
    "jobs of all tenants": lambda s: s.reader.jobs(20),
    "jobs by a status that many have": lambda s: s.mine.jobs(20, status="succeeded"),
    "jobs by a status that few have": lambda s: s.mine.jobs(20, status="paused"),
    "jobs by kind": lambda s: s.mine.jobs(20, kind="evaluate"),
    "jobs by a kind that none has": lambda s: s.mine.jobs(20, kind="other"),
    "jobs by name": lambda s: s.mine.jobs(20, name="name 7"),
    "jobs by a name that none has": lambda s: s.mine.jobs(20, name="other"),
    "jobs by status and kind": lambda s: s.mine.jobs(20, status="queued", kind="evaluate"),
    "jobs by status and name": lambda s: s.mine.jobs(20, status="queued", name="name 7"),
    "jobs by a label": lambda s: s.mine.jobs(20, metadata={"study": "study 7"}),
    "jobs by a label that all have": lambda s: s.mine.jobs(20, metadata={"owner": "somebody"}),
    "jobs by a label that none has": lambda s: s.mine.jobs(20, metadata={"study": "none"}),
    "jobs by two labels": lambda s: s.mine.jobs(20, metadata={"study": "study 7", "owner": "somebody"}),
    "jobs by all": lambda s: s.mine.jobs(20, JOB, "succeeded", "train", "name 7", {"owner": "somebody"}),
    "the queue": lambda s: s.mine.queue(20),
    "the queue after one": lambda s: s.reader.queue(20, after=QUEUED),
    "why a job waits": lambda s: s.reader.waits([QUEUED]),
    "a position": lambda s: s.reader.position(QUEUED),
    "events": lambda s: s.mine.events(JOB, limit=201),
    "events after": lambda s: s.mine.events(JOB, after=5),
    "events by type": lambda s: s.mine.events(JOB, types=["status", "evaluation"]),
    "events by type after": lambda s: s.mine.events(JOB, after=5, types=["status"], limit=2),
    "log lines": lambda s: s.mine.log_lines(JOB, after=2),
    "the last log lines": lambda s: s.mine.log_lines(JOB, tail=2),
    "evaluations": lambda s: s.mine.evaluations(JOB),
    "metrics": lambda s: s.mine.metrics(JOB),
    "metrics by name": lambda s: s.mine.metrics(JOB, ["val/loss"], 2, 5, 100),
    "traces": lambda s: s.mine.traces(JOB, ["*"], 1, 3, 100),
    "attempts": lambda s: s.mine.attempts(JOB),
    "checkpoints": lambda s: s.mine.checkpoints(JOB),
    "a checkpoint": lambda s: s.mine.checkpoint(CHECKPOINT),
    "one of weights": lambda s: s.mine.weights(WEIGHTS),
    "weights": lambda s: s.mine.uploaded(20, after=WEIGHTS),
    "who needs weights": lambda s: s.mine.needing([WEIGHTS, CHECKPOINT]),
    "a data set": lambda s: s.mine.dataset(DATASET),
    "data sets": lambda s: s.mine.datasets(20),
    "data sets after one": lambda s: s.mine.datasets(20, after=DATASET),
    "data sets by name": lambda s: s.mine.datasets(20, name="name 7"),
    "data sets by task": lambda s: s.mine.datasets(20, task="segmentation"),
    "data sets by status": lambda s: s.mine.datasets(20, status="checking"),
    "data sets by all": lambda s: s.mine.datasets(20, DATASET, "name 7", "classification", "ready"),
    "parts of a data set": lambda s: s.mine.dataset_parts(DATASET),
    "a webhook": lambda s: s.mine.webhook(WEBHOOK),
    "webhooks": lambda s: s.mine.webhooks(20),
    "deliveries": lambda s: s.mine.deliveries(WEBHOOK, 20),
    "deliveries by status": lambda s: s.mine.deliveries(WEBHOOK, 20, status="dead"),
    "workers": lambda s: s.reader.workers(),
    "a worker": lambda s: s.reader.worker("wk_1"),
    "a worker's sign of life": lambda s: s.ledger.seen("wk_1", 1, {"devices": []}),
    "a drain": lambda s: s.ledger.drain("wk_1", "finish"),
    "the catalog": lambda s: s.reader.menu(),
    "whose a key is": lambda s: s.tenants.caller(s.key),
    "what a tenant uses": lambda s: s.tenants.usage(TENANT),
    "room for more bytes": lambda s: s.tenants.check_room(TENANT, 5),
    "a claim with a GPU": lambda s: look(s.ledger, "wk_1", gpus=1, can_run=lambda *_: False),
    "a claim without a GPU": lambda s: look(s.ledger, "wk_2", can_run=lambda *_: False),
    "jobs that were passed over": lambda s: passed_over(s.engine),
    "a job under its key": lambda s: s.ledger.of(TENANT).made_under("key 8007", "0" * 64),
    "a wish": lambda s: s.ledger.wish(RUNNING, 1),
    "a heartbeat": lambda s: s.ledger.heartbeat(RUNNING, 1),
    "a sweep": lambda s: s.ledger.sweep(),
    "reservations to make": lambda s: s.ledger.reserve(),
    "jobs long queued": lambda s: s.ledger.long_queued(15.0),
    "a plan to make": lambda s: s.plans.claim(),
    "plans that expire": lambda s: s.plans.expire(),
    "a prediction to make": lambda s: s.predictions.claim(),
    "predictions that expire": lambda s: s.predictions.expire(),
    "a delivery that is due": lambda s: s.deliveries.claim(),
    "deliveries that expire": lambda s: s.deliveries.expire(),
    "a data set to check": lambda s: s.checks.claim(),
    "data sets whose deletion was cut short": lambda s: s.checks.deleted(),
    "rejected data sets with parts": lambda s: s.checks.rejected_with_parts(),
    "old events": lambda s: s.old_events.prune(),
    "old curves": lambda s: s.old_series.prune(),
    "workers that have gone": lambda s: s.old_workers.prune(),
    "a job that is deleted": lambda s: s.ledger.delete(JOB),
}
# at most 2,000 and 64 rows, but for what came within the last minute
SMALL = ("plans", "predictions", "tenants")
FEW = ("holdings", "reservations", "demands")  # as many rows as the fleet has slots, workers, and kinds of jobs
OLDER = {"ix_jobs_lanes", "ix_jobs_claim_order"}  # claims and the queue of the version before, which may be at work
MOST_READ = 2_500  # of tables with 10,000 rows and more: what of them is one tenant's, or in one status


@pytest.fixture(scope="module")
def explained(administrator: Engine) -> Iterator[tuple[dict[str, list[Node]], set[str]]]:
    """The steps that each call takes, and the names of all indexes that no constraint needs."""
    with administrator.connect() as connection:
        connection.execute(text("CREATE DATABASE filled"))
    engine = connect(administrator.url.set(database="filled").render_as_string(hide_password=False))
    migrate(engine)
    fill(engine)
    store = store_of(engine)
    steps = {name: nodes_of(engine, lambda call=call: call(store)) for name, call in CALLS.items()}
    with engine.connect() as connection:
        named = text("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'ix%'")
        indexes = set(connection.execute(named).scalars())
    yield steps, indexes
    engine.dispose()
    with administrator.connect() as connection:
        connection.execute(text("DROP DATABASE filled WITH (FORCE)"))


def test_no_call_reads_or_sorts_a_large_table(explained: tuple[dict[str, list[Node]], set[str]]) -> None:
    steps, _ = explained
    slow = {
        f"{name}: {node.kind} of {node.table} by {node.index}, {node.read:.0f} rows": node.statement
        for name, nodes in steps.items()
        for node in nodes
        if node.table not in (*SMALL, *FEW) and (node.kind == "Seq Scan" or node.read > MOST_READ)
        if not any(f"FROM {small}" in node.statement for small in SMALL)
    }
    assert slow == {}
    assert all(steps.values())


def test_every_index_serves_a_call(explained: tuple[dict[str, list[Node]], set[str]]) -> None:
    steps, indexes = explained
    assert indexes - {node.index for nodes in steps.values() for node in nodes} == OLDER


def passed_over(engine: Engine) -> object:
    lane = Lane(TENANT, "demand 3", Turn(AT, ""), 1, None, AT, able=True)
    with engine.connect() as connection:
        return _lanes.passed_over(connection, AT, lane, Turn(AT, QUEUED))


def store_of(engine: Engine) -> Any:
    """The store's parts; `mine` is a tenant's reader."""
    tenants = Tenants(engine)
    _, key = tenants.create_key(TENANT, name="", scopes=["admin"], lasts=None)
    return SimpleNamespace(
        engine=engine,
        reader=Reader(engine),
        mine=Reader(engine).of(TENANT),
        ledger=Ledger(engine),
        plans=Plans(engine),
        predictions=Predictions(engine),
        deliveries=Deliveries(engine),
        checks=Checks(engine),
        tenants=tenants,
        key=key,
        old_events=Pruning(engine, 30, math.inf),
        old_workers=Pruning(engine, math.inf, math.inf),
        old_series=Pruning(engine, math.inf, 30),
    )
