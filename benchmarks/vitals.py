"""What being seen costs: a request's vitals and its line in the log, a scrape, and the census with a long queue.

    python -m benchmarks.vitals [--requests 4000] [--queued 10000]

Requests go through the whole app without a network, in turns with and without their vitals; once in a process alone,
once as one of several that share a folder. Printed: medians of processor time, and of ratios of neighbouring turns.
"""

import argparse
import asyncio
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURNS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each kind")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--as-child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_child:
        measure_requests(given.requests)
        measure_scrape()
        return
    with tempfile.TemporaryDirectory() as folder:
        for what, more in (
            ("one process", {}),
            ("several processes", {"PROMETHEUS_MULTIPROC_DIR": f"{folder}/vitals"}),
        ):
            print(f"{what}:", flush=True)
            command = [sys.executable, "-m", "benchmarks.vitals", "--as-child", "--requests", str(given.requests)]
            subprocess.run(command, env={**os.environ, "ACMIX_DATA": folder, **more}, check=True)
    measure_census(given.queued)


def measure_requests(requests: int) -> None:
    from service import logs, settings, vitals
    from service.app import create_app

    app = create_app(settings.load())
    counting = (vitals.count_request, vitals.IN_FLIGHT)
    without: tuple[Any, Any] = (lambda *_: None, _Nothing())
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * TURNS + 2):
        counted = turn % 2 == 0
        vitals.count_request, vitals.IN_FLIGHT = counting if counted else without
        took[counted].append(asyncio.run(_seconds_of_a_request(app, requests // TURNS)))
    vitals.count_request, vitals.IN_FLIGHT = counting
    pairs = list(zip(took[True][1:], took[False][1:], strict=True))  # the first of each warms up
    ratio = statistics.median(on / off for on, off in pairs)
    more = statistics.median(on - off for on, off in pairs)
    print(f"  GET /healthz with its vitals over without: {ratio:.3f}, {1e6 * more:.1f} us more")
    scope = {"type": "http", "method": "GET", "path": "/healthz", "route": app.state.routers[0].routes[0]}
    alone = _seconds_of(lambda: vitals.count_request(scope, 200, 0.01), 20_000)
    print(f"  counting one request, alone: {1e6 * alone:.1f} us")
    os.environ["LOG_FORMAT"] = "json"
    logs.begin("api")
    logging.getLogger().handlers[0].setStream(io.StringIO())  # type: ignore[attr-defined]
    fields = {"method": "GET", "route": "/healthz", "status": 200, "duration_ms": 1.5, "client": "127.0.0.1"}
    line = _seconds_of(lambda: logging.getLogger("a").info("GET /healthz 200", extra={"fields": fields}), 5000)
    print(f"  its line of JSON: {1e6 * line:.1f} us")


def measure_scrape() -> None:
    """After requests to many routes."""
    from service import vitals
    from service.store.census import Census

    for route in range(45):
        for status in range(200, 204):
            vitals.REQUESTS.labels("GET", f"/v1/{route}", str(status)).inc()
        vitals.SECONDS.labels("GET", f"/v1/{route}").observe(0.1)
    census = Census(
        jobs={("default", "queued"): 1},
        due_jobs=1,
        oldest_due_seconds=1.0,
        oldest_fitting_seconds=1.0,
        workers_alive=1,
        workers_drained=0,
        workers_lost=0,
        slots=1,
        slots_busy=1,
        slots_aside=0,
        pending_deliveries=1,
        oldest_delivery_seconds=1.0,
        unanswered={"plans": 1, "predictions": 0, "checks": 0},
        gpu_hours={"default": 1.0},
    )
    counted_now = vitals.Counted(lambda: census)
    size = len(vitals.told(counted_now).splitlines())
    print(f"  a scrape of {size} lines: {1e3 * _seconds_of(lambda: vitals.told(counted_now), 20):.1f} ms")


def measure_census(queued: int) -> None:
    from benchmarks.claims import enqueue
    from service.store import census
    from service.store.database import connect, migrate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pgserver.postgres_server import get_server
    server = get_server(Path(tempfile.mkdtemp(prefix="acmix-census-")) / "data", cleanup_mode="delete")
    engine = connect(server.get_uri())
    migrate(engine)
    enqueue(engine, queued)
    server.psql("ANALYZE jobs;")
    census.take(engine)
    took = [_seconds_of(lambda: census.take(engine), 1) for _ in range(30)]
    print(f"the census with {queued} queued, PostgreSQL: {1e3 * statistics.median(took):.1f} ms, once in five seconds")
    engine.dispose()
    server.cleanup()


async def _seconds_of_a_request(app: Any, count: int) -> float:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        pass

    began = time.process_time()
    for _ in range(count):
        await app({**scope, "state": {}}, receive, send)
    return (time.process_time() - began) / count


def _seconds_of(act: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        act()
    return (time.process_time() - began) / times


class _Nothing:
    """Counts nothing."""

    def inc(self) -> None:
        pass

    def dec(self) -> None:
        pass


if __name__ == "__main__":
    main()
