"""Prometheus' own checker, of the package `prometheus`."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import tests

ROOT = Path(tests.__path__[0]).parent
MONITORING = ROOT / "docker" / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here; the package prometheus has it")


def promtool(*arguments: str | Path) -> None:
    """Run it; what it finds is the message of the failure."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions_of_the_dashboard() -> dict[str, str]:
    """What each panel asks, by its title and the letter of the question."""
    board = json.loads((MONITORING / "grafana" / "dashboards" / "acmix.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
