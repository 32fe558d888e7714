"""`python -m service`: the API behind uvicorn, in as many processes as wanted; it logs as all others do."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from service import logs, settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--processes", type=int, default=1, help="that answer behind the port, one after the other")
    parser.add_argument("--grace-seconds", type=int, default=3, help="for requests under way when it is to end")
    given = parser.parse_args()
    logs.begin("api")
    with _counted_together(given.processes):
        uvicorn.run(
            "service.app:app",
            host=given.host,
            port=given.port,
            workers=given.processes,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=given.grace_seconds,
        )


@contextmanager
def _counted_together(processes: int) -> Iterator[None]:
    """Several processes count into one folder, gone with them, unless the environment names one."""
    if processes == 1 or settings.vitals_folder():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="acmix-vitals-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


if __name__ == "__main__":
    main()
