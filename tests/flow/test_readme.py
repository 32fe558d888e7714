"""What the README shows: the demo, and the walk-through's job."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.cli.up import EXAMPLE

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readmes_job_is_the_demos() -> None:
    assert _job_of_the_readme() == EXAMPLE


@pytest.mark.slow
def test_the_demo_is_right_on_97_of_100_digits_shows_traces_and_leaves_nothing_running() -> None:
    before = {process.pid for process in psutil.process_iter()}
    command = [sys.executable, "-c", "from service.cli import main; main()", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [accuracy] = re.findall(
        r"^succeeded +test of the best checkpoint .*: accuracy (\d\.\d+) ", done.stdout, re.MULTILINE
    )
    assert float(accuracy) >= 0.97
    assert len(re.findall(r"^layer\d\.\d\.conv2 +\d", done.stdout, re.MULTILINE)) == 8
    figures = [Path(path) for path in re.findall(r"^trace figure: (.+)$", done.stdout, re.MULTILINE)]
    assert len(figures) == 2
    assert all("<svg" in figure.read_text() for figure in figures)
    data = str(figures[0].parent)
    left = [process for process in psutil.process_iter() if process.pid not in before and _works_on(process, data)]
    assert left == []


def _job_of_the_readme() -> dict:
    found = re.search(r"cat > job.json <<'END'\n(.*?)\nEND", README, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def _works_on(process: psutil.Process, data: str) -> bool:
    try:
        return process.environ().get("ACMIX_DATA") == data
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return False
