"""What a claim costs with a long queue, on PostgreSQL.

    python -m benchmarks.claims [--queued 10000] [--claims 200]

A server of its own from the pgserver wheel, with its usual durability; jobs of all priorities are queued, and
claimed one after the other as workers do. Printed: the median and the 95th percentile of a claim, at a tenth of the
queue first.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

from sqlalchemy import Engine, insert

from acmix import spec
from service.store.database import clock, connect, migrate, writing
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.states import turn_at
from service.store.tables import jobs

BATCH = 1000
SPEC = spec.parse({"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}).dump()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--claims", type=int, default=200)
    given = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pgserver.postgres_server import get_server
    server = get_server(Path(tempfile.mkdtemp(prefix="acmix-claims-")) / "data", cleanup_mode="delete")
    engine = connect(server.get_uri())
    migrate(engine)
    there = 0
    for queued in (given.queued // 10, given.queued):
        enqueue(engine, queued - there)
        server.psql("ANALYZE jobs;")  # as the server does by itself within a minute
        took = [seconds_of_a_claim(Ledger(engine)) for _ in range(given.claims)]
        there = queued - given.claims
        late = sorted(took)[round(0.95 * (len(took) - 1))]
        print(f"{queued} queued: a claim takes {1e3 * statistics.median(took):.1f} ms, p95 {1e3 * late:.1f} ms")
    engine.dispose()
    server.cleanup()


def enqueue(engine: Engine, count: int) -> None:
    """Rows as submit makes them, many at a time."""
    with writing(engine).begin() as connection:
        now = clock(connection)
        for start in range(0, count, BATCH):
            connection.execute(insert(jobs), [row(now, number) for number in range(start, min(start + BATCH, count))])


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
