"""What a claim costs with a long queue, on PostgreSQL.

    python -m benchmarks.claims [--queued 1000 10000 100000] [--claims 200] [--each 100]

A server of its own from the pgserver wheel, with its usual durability; jobs of all priorities are queued, and
claimed one after the other as workers do. Printed: the median and the 95th percentile of a claim, with queues of
rising length; with half as many jobs in front of a tenant that may run none; with as many jobs again that want a GPU
in front of all, claimed by a worker that has none; with 1,000 tenants of 100 jobs each; then what eight workers that
claim at once take from what is left, all of whose claims must be of different jobs. Beside each stands how long a
commit of one row takes at that time: below it no claim can be.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from sqlalchemy import Engine, insert, update

from acmix import spec
from benchmarks.stack import analyse, postgresql
from service.store._abilities import columns_of
from service.store.database import clock, connect, migrate, writing
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.states import turn_at
from service.store.tables import jobs, tenants
from service.store.tenants import Tenants

SLOTS, SLOTS_EACH = count(), 8  # of the fleet, which are given one after the other; of each of its workers
BATCH = MANY = 1000  # tenants, each with a row in a batch
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SPEC = spec.parse({"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}).dump()
ANYWHERE = columns_of(SPEC)[1]
ON_A_GPU = {"gpus": 1, **columns_of({**SPEC, "resources": {**SPEC["resources"], "gpus": 1}})[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--claims", type=int, default=200)
    parser.add_argument("--each", type=int, default=100, help="jobs of each of 1,000 tenants")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-claims-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as server:
            engine = connect(server.get_uri())
            migrate(engine)
            measure(engine, given.queued, given.claims, given.each)
            engine.dispose()


def measure(engine: Engine, lengths: list[int], claims: int, each: int) -> None:
    Tenants(engine).limit("default", {"most_requests": None})
    there = 0
    for queued in sorted(lengths):
        enqueue(engine, queued - there)
        tell(engine, f"{queued:7} queued", claims)
        there = queued - claims
    for tenant in ("default", "another"):
        Tenants(engine).limit(tenant, {"most_running": 10**6, "most_gpu_hours": 10**6})
    enqueue(engine, there // 2, tenant="exhausted", turn_at=LONG_AGO)
    Tenants(engine).limit("exhausted", {"most_running": 0})
    tell(engine, f"{there:7} queued, tenants limited, {there // 2} of one that may run none in front", claims)
    enqueue(engine, there, turn_at=LONG_AGO, **ON_A_GPU)
    tell(engine, f"{there:7} queued, {there} that do not fit in front of these", claims)
    enqueue(engine, each * MANY, tenant=None)
    tell(engine, f"        and {MANY} tenants with {each} jobs each", claims)
    with writing(engine).begin() as connection:
        connection.execute(update(tenants).values(most_running=None, most_gpu_hours=None))
        connection.execute(update(jobs).where(jobs.c.tenant == "exhausted").values(status="cancelled"))
    at_once(engine, claims)


def tell(engine: Engine, what: str, claims: int) -> None:
    analyse(engine)
    ledger = Ledger(engine)
    seconds_of_a_claim(ledger)  # the first connects
    commits = [seconds_of_a_commit(engine) for _ in range(claims)]
    took = sorted(seconds_of_a_claim(ledger) for _ in range(claims))
    late = took[round(0.95 * (len(took) - 1))]
    commit = 1e3 * statistics.median(commits)
    figures = f"{1e3 * statistics.median(took):.1f} ms, p95 {1e3 * late:.1f} ms, a commit {commit:.1f} ms"
    print(f"{what}: a claim takes {figures}", flush=True)


def at_once(engine: Engine, claims: int) -> None:
    """The same number of claims by one worker, and by eight at once."""
    for workers in (1, 8):
        began = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda _: claimed(Ledger(engine)), range(claims)))
        rate = claims / (time.perf_counter() - began)
        assert len(set(found)) == claims
        print(f"{workers} at once: {rate:.0f} claims a second, none of them double", flush=True)


def enqueue(engine: Engine, count: int, **more: object) -> None:
    """Rows as submit makes them, but for what `more` says, many at a time; of as many tenants where none is said."""
    with writing(engine).begin() as connection:
        now = clock(connection)
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            rows = [{**row(now, number), **more} for number in numbers]
            connection.execute(
                insert(jobs), [{**each, "tenant": each["tenant"] or f"tenant-{at}"} for at, each in enumerate(rows)]
            )


def row(now: object, number: int) -> dict[str, object]:
    priority = number % 201 - 100
    return {
        "id": new_id("job"),
        "tenant": "default",
        "kind": "train",
        "name": "",
        "status": "queued",
        "spec": SPEC,
        "resolved_spec": SPEC,
        "metadata": {},
        "priority": priority,
        "gpus": None,
        **ANYWHERE,
        "attempt": 0,
        "failures": 0,
        "losses": 0,
        "last_event": 1,
        "last_log_line": 0,
        "created_at": now,
        "queued_at": now,
        "turn_at": turn_at(priority, now),  # type: ignore[arg-type]  # a time
    }


def seconds_of_a_claim(ledger: Ledger) -> float:
    began = time.perf_counter()
    claimed(ledger)
    return time.perf_counter() - began


def claimed(ledger: Ledger) -> str:
    worker, slot = divmod(next(SLOTS), SLOTS_EACH)
    found = ledger.claim(f"worker-{worker}", free=[slot], slots=SLOTS_EACH, has_gpus=False, can_run=lambda *_: True)
    assert found is not None
    return found.job.id


def seconds_of_a_commit(engine: Engine) -> float:
    """Of a write that nobody waits for but the disk."""
    began = time.perf_counter()
    with writing(engine).begin() as connection:
        connection.execute(update(tenants).where(tenants.c.name == "default").values(most_requests=None))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
