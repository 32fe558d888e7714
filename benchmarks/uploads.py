"""What an upload costs the API: how far its memory grows while an archive streams through it, and how fast that goes.

    python -m benchmarks.uploads [--gigabytes 2]

A real server takes a generated stream, first whole in one chunked request, then in parts of 64 MB as the client sends
them; its resident memory is looked at every 20 ms. Files go to a temporary folder of this disk.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import psutil

from service.client import PART_BYTES
from service.launcher import free_port

MEGABYTE = 2**20
WARM_UP_BYTES = 8 * MEGABYTE  # what the first request alone costs is not what its size costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    size_bytes = int(parser.parse_args().gigabytes * 2**30)
    with tempfile.TemporaryDirectory(prefix="acmix-uploads-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(port), "--log-level", "warning"]
        environment = {**os.environ, "ACMIX_DATA": folder, "BROKER_URL": "redis://127.0.0.1:1"}
        with subprocess.Popen(command, env=environment) as server:
            try:
                measure(f"http://127.0.0.1:{port}", server.pid, size_bytes, Path(folder))
            finally:
                server.terminate()


def measure(url: str, pid: int, size_bytes: int, folder: Path) -> None:
    with httpx.Client(base_url=url, timeout=300) as http:
        wait_for(http)
        upload_whole(http, create(http), WARM_UP_BYTES)
        for name, upload in (("whole", upload_whole), ("in parts of 64 MB", upload_in_parts)):
            dataset, before = create(http), resident(pid)
            began = time.perf_counter()
            peak = peak_while(pid, partial(upload, http, dataset, size_bytes))
            seconds = time.perf_counter() - began
            check_kept(http, dataset, size_bytes, folder)
            grown, rate = (peak - before) / MEGABYTE, size_bytes / MEGABYTE / seconds
            what = f"{size_bytes / 2**30:g} GB {name}"
            print(f"{what}: memory from {before / MEGABYTE:.0f} MB by {grown:.1f} MB at most; {rate:.0f} MB/s")


def check_kept(http: httpx.Client, dataset: str, size_bytes: int, folder: Path) -> None:
    """What is told and what lies on the disk are the whole of it."""
    told = http.get(f"/v1/datasets/{dataset}").json()
    files = (folder / "artifacts" / "datasets" / dataset).rglob("*")
    kept = sum(path.stat().st_size for path in files if path.is_file())
    assert (told["status"], told["upload"]["offset"], kept) == ("checking", size_bytes, size_bytes)


def create(http: httpx.Client) -> str:
    body = {"name": "generated", "task": "classification", "format": "image_folder"}
    response = http.post("/v1/datasets", json=body)
    response.raise_for_status()
    return str(response.json()["id"])


def upload_whole(http: httpx.Client, dataset: str, size_bytes: int) -> None:
    http.put(f"/v1/datasets/{dataset}/content", content=generated(size_bytes)).raise_for_status()


def upload_in_parts(http: httpx.Client, dataset: str, size_bytes: int) -> None:
    for start in range(0, size_bytes, PART_BYTES):
        end = min(start + PART_BYTES, size_bytes)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{size_bytes}", "Content-Length": str(end - start)}
        http.put(f"/v1/datasets/{dataset}/content", content=generated(end - start), headers=headers).raise_for_status()


def generated(size_bytes: int) -> Iterator[bytes]:
    """So many bytes that no file system can make less of, without a file."""
    block = hashlib.shake_256(b"acmix").digest(MEGABYTE)
    for at in range(0, size_bytes, MEGABYTE):
        yield block[: size_bytes - at]


def peak_while(pid: int, act: Callable[[], None]) -> int:
    """The most resident memory of a process while something is done."""
    over, peak = threading.Event(), 0

    def look() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, resident(pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        act()
    finally:
        over.set()
        looking.join()
    return peak


def resident(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def wait_for(http: httpx.Client) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        try:
            http.get("/healthz").raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
