"""What a claim costs with a long queue, on PostgreSQL.

    python -m benchmarks.claims [--queued 1000 10000 100000] [--claims 200]

A server of its own from the pgserver wheel, with its usual durability; jobs of all priorities are queued, and
claimed one after the other as workers do. Printed: the median and the 95th percentile of a claim, with queues of
rising length; then with a limit for every tenant, one of which has nothing left; last with as many jobs again that
want a GPU in front of all, claimed by a worker that has none.
"""

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, insert

from acmix import spec
from benchmarks.stack import analyse, postgresql
from service.store.database import clock, connect, migrate, writing
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.states import turn_at
from service.store.tables import jobs
from service.store.tenants import Tenants

BATCH = 1000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SPEC = spec.parse({"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}).dump()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--claims", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-claims-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as server:
            engine = connect(server.get_uri())
            migrate(engine)
            measure(engine, given.queued, given.claims)
            engine.dispose()


def measure(engine: Engine, lengths: list[int], claims: int) -> None:
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
    enqueue(engine, there, gpus=1, turn_at=LONG_AGO)
    tell(engine, f"{there:7} queued, {there} that do not fit in front of these", claims)


def tell(engine: Engine, what: str, claims: int) -> None:
    analyse(engine)
    ledger = Ledger(engine)
    seconds_of_a_claim(ledger)  # the first connects
    took = sorted(seconds_of_a_claim(ledger) for _ in range(claims))
    late = took[round(0.95 * (len(took) - 1))]
    print(f"{what}: a claim takes {1e3 * statistics.median(took):.1f} ms, p95 {1e3 * late:.1f} ms", flush=True)


def enqueue(engine: Engine, count: int, **more: object) -> None:
    """Rows as submit makes them, but for what `more` says, many at a time."""
    with writing(engine).begin() as connection:
        now = clock(connection)
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            connection.execute(insert(jobs), [{**row(now, number), **more} for number in numbers])


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
    claimed = ledger.claim("worker-1", gpus_free=None, can_run=lambda _: True)
    took = time.perf_counter() - began
    assert claimed is not None
    return took


if __name__ == "__main__":
    main()
