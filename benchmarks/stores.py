"""What a checkpoint's way to its store and back costs, in a folder and in a bucket: rates, and memory at most.

    python -m benchmarks.stores [--gigabytes 1] [--pairs 3]

A file of random bytes is stored, fetched, streamed through the API and downloaded from the store itself, by a process
of its own for each, in a folder of this disk and in a bucket of a SeaweedFS on this machine, which takes of the same
two cores what it needs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import httpx

from service import settings
from service.store.artifacts import Artifacts
from tests.seaweed import BUCKET, SeaweedFS

MEGABYTE = 2**20
BLOCK = os.urandom(MEGABYTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--do", choices=DOINGS, help="one of them, in this process, with --file")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.do:
        do(given.do, given.file)
        return
    with tempfile.TemporaryDirectory(prefix="acmix-stores-", dir="/tmp") as folder:
        server = SeaweedFS(Path(folder) / "s3")
        server.start()
        try:
            compare(Path(folder), server, int(given.gigabytes * 1024), given.pairs)
        finally:
            server.stop()


def compare(folder: Path, server: SeaweedFS, megabytes: int, pairs: int) -> None:
    file = folder / "file"
    with file.open("wb") as target:
        for _ in range(megabytes):
            target.write(BLOCK)
    urls = {"folder": f"file://{folder}/artifacts", "bucket": f"s3://{BUCKET}/stores"}
    for doing in DOINGS:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
        for _ in range(pairs):
            for name, url in urls.items():
                if name == "bucket" or doing != "download":  # of a folder, there is no other way than the API's
                    found[name].append(measured(doing, file, {**server.environment, "ARTIFACTS_URL": url}))
        for name, each in found.items():
            if each:
                rate = megabytes / statistics.median(seconds for seconds, _ in each)
                grown = max(grown for _, grown in each)
                print(f"{doing:9} {name:7} {rate:6.0f} MB/s  {grown:5.0f} MB more memory at most")


def measured(doing: str, file: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and megabytes by which the memory of a process grew that did it."""
    command = [sys.executable, "-m", "benchmarks.stores", "--do", doing, "--file", str(file)]
    told = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    seconds, grown = map(float, told.stdout.split())
    return seconds, grown


def do(doing: str, file: Path) -> None:
    chosen = settings.load()
    artifacts = Artifacts(chosen.artifacts_url, chosen.s3)
    artifacts.ping()
    before, began = peak_megabytes(), time.perf_counter()
    DOINGS[doing](artifacts, file)
    print(time.perf_counter() - began, peak_megabytes() - before)


def put(artifacts: Artifacts, file: Path) -> None:
    with file.open("rb") as content:
        artifacts.put_file("one/file", content)


def fetch(artifacts: Artifacts, file: Path) -> None:
    artifacts.fetch_file("one/file", file.with_suffix(".back"))


def stream(artifacts: Artifacts, _file: Path) -> None:
    for _ in artifacts.stream("one/file"):
        pass


def download(artifacts: Artifacts, _file: Path) -> None:
    url = artifacts.signed_url("GET", "one/file", valid=timedelta(minutes=5))
    assert url is not None
    with httpx.stream("GET", url) as response:
        for _ in response.iter_bytes(MEGABYTE):
            pass


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


DOINGS = {"put": put, "fetch": fetch, "stream": stream, "download": download}

if __name__ == "__main__":
    main()
