"""Two hundred who listen to the events of one job: whether any misses one, and what they cost the API.

    python -m benchmarks.streams [--clients 200] [--minutes 1] [--events 20]

A real PostgreSQL, the API in two processes as it is deployed, a writer that records so many events a second as a
worker does. Printed every tenth of the time: memory of the API's processes and the share of a core that they take;
at the end how many events each client was told, which must be all of them, once and in order.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from acmix.events import Event
from benchmarks.clients import Http, request
from benchmarks.rivals import claimed, submission
from benchmarks.stack import api, database, postgresql
from service.store.database import connect
from service.store.ledger import Ledger
from service.store.rows import Outcome

MEGABYTE = 2**20
BATCHES_A_SECOND = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--events", type=int, default=20, help="a second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-streams-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as server:
            url = database(server, "acmix")
            with api(url, Path(folder)) as (port, engine, key):
                job = claimed(Http(port).send(submission(key)), engine)
                writer = threading.Thread(target=write, args=(url, job, given.minutes, given.events))
                writer.start()
                heard = asyncio.run(listen(port, key, job, given.clients, given.minutes))
                writer.join()
    last = max(map(len, heard))
    complete = sum(numbers == list(range(1, last + 1)) for numbers in heard)
    print(f"{complete} of {given.clients} clients were told all {last} events, once and in order")


def write(url: str, job: str, minutes: float, events: int) -> None:
    """As a worker does: a batch at a time, and the end."""
    ledger, give_up_at, count = Ledger(connect(url)), time.monotonic() + 60 * minutes, 0
    while time.monotonic() < give_up_at:
        batch = [Event("progress", "", {"step": count + more}) for more in range(events // BATCHES_A_SECOND)]
        ledger.record(job, 1, batch)
        count += len(batch)
        time.sleep(1 / BATCHES_A_SECOND)
    ledger.finish(job, 1, Outcome("succeeded"))


async def listen(port: int, key: str, job: str, clients: int, minutes: float) -> list[list[int]]:
    """What each client heard until its stream was closed."""
    watching = asyncio.create_task(watch(port, 60 * minutes / 10))
    heard = await asyncio.gather(*(stream(port, key, job, number / 40) for number in range(clients)))
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return heard


async def stream(port: int, key: str, job: str, after_seconds: float) -> list[int]:
    await asyncio.sleep(after_seconds)
    headers = [f"Authorization: Bearer {key}", "Accept: text/event-stream"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("GET", f"/v1/jobs/{job}/events", headers=headers))
    numbers = []
    while (line := await reader.readline()) != b"0\r\n":  # the last chunk's size
        if not line:
            raise AssertionError("a stream was cut off")
        if line.startswith(b"id: "):
            numbers.append(int(line[4:]))
    writer.close()
    return numbers


async def watch(port: int, every_seconds: float) -> None:
    """Memory and processor time of those who answer, again and again."""
    began = time.monotonic()
    parents = [each for each in psutil.process_iter() if f"--port {port} " in " ".join(_command(each)) + " "]
    serving = [child for parent in parents for child in parent.children(recursive=True)]
    before = _used(serving)
    while True:
        await asyncio.sleep(every_seconds)
        used = _used(serving)
        sizes = " ".join(f"{each.memory_info().rss / MEGABYTE:.1f}" for each in serving)
        share = (used - before) / every_seconds
        print(f"{time.monotonic() - began:5.0f} s  MB {sizes}  cores {share:.2f}", flush=True)
        before = used


def _used(processes: list[psutil.Process]) -> float:
    return float(sum(sum(each.cpu_times()[:2]) for each in processes))


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


if __name__ == "__main__":
    main()
