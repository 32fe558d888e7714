"""What the command takes to refuse an archive: little memory and little time, whatever the archive claims."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acmix.archives.test_hostile import CASES

MOST_BYTES = 100 * 2**20
MOST_SECONDS = 30
EVERY = 25  # of all cases, besides the greedy ones
GREEDY = ("bomb", "gigabytes", "window", "zeros", "petabytes", "exabytes", "far more", "megabyte")

# A process of its own: one that was started from a large process counts that one's memory as its own.
MEASURE = """
import json, resource, subprocess, sys, time
slowest = 0.0
for number, archive in enumerate(json.load(sys.stdin)):
    command = [sys.executable, "-m", "acmix", "inspect", "--archive", archive, "--into", f"{archive}-into"]
    begun = time.monotonic()
    done = subprocess.run(command + ["--task", "classification", "--format", "image_folder"], stdout=subprocess.PIPE)
    slowest = max(slowest, time.monotonic() - begun)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["status"] == "rejected", (archive, report)
    assert report["faults"][0]["code"] == "archive_refused", (archive, report)
print(json.dumps([resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, slowest]))
"""


@pytest.mark.slow
def test_the_command_refuses_in_little_memory_and_time(tmp_path: Path) -> None:
    names = [name for number, name in enumerate(CASES) if number % EVERY == 0 or any(word in name for word in GREEDY)]
    files = [tmp_path / str(number) for number in range(len(names))]
    for file, name in zip(files, names, strict=True):
        file.write_bytes(CASES[name][0])
    request = json.dumps(list(map(str, files)))
    done = subprocess.run([sys.executable, "-c", MEASURE], input=request, stdout=subprocess.PIPE, text=True, check=True)
    peak_bytes, slowest_seconds = json.loads(done.stdout)
    assert peak_bytes < MOST_BYTES
    assert slowest_seconds < MOST_SECONDS
