"""Signs of life of worker and housekeeper, and the check that looks at them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import settings
from tests.service.work import until
from worker.alive import FORGOTTEN_SECONDS, SignOfLife

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of processes that find neither database nor broker."""
    away = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "BROKER_URL": NOWHERE, "ACMIX_DATA": str(tmp_path)}
    return {**os.environ, **away, "ACMIX_SWEEP_SECONDS": "0.1", "PLANNER_IDLE_SECONDS": "600"}


@pytest.fixture
def housekeeper(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "worker", "housekeeping"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_process_that_stands_still_is_not_healthy(
    environment: dict[str, str], housekeeper: subprocess.Popen[bytes]
) -> None:
    def check(*within: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "worker.healthy", "housekeeping", *within]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    until(lambda: check().returncode == 0)
    until(lambda: check("--within", "3").returncode == 0)
    housekeeper.send_signal(signal.SIGSTOP)
    until(lambda: check("--within", "3").returncode == 1)
    assert "housekeeping gave its last sign of life" in check("--within", "3").stderr
    housekeeper.send_signal(signal.SIGCONT)
    until(lambda: check("--within", "3").returncode == 0)


def test_who_never_gave_a_sign_is_not_healthy(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.healthy", "train"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "train has given no sign of life yet\n")


def test_signs_of_containers_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    sign = SignOfLife(settings.load({"ACMIX_DATA": str(tmp_path)}), "train")
    sign.give()
    old, young = tmp_path / "alive" / "train-old", tmp_path / "alive" / "train-young"
    for file, age_seconds in ((old, FORGOTTEN_SECONDS + 60), (young, FORGOTTEN_SECONDS - 60)):
        file.touch()
        os.utime(file, 2 * (time.time() - age_seconds,))
    sign.forget_others()
    assert (old.exists(), young.exists()) == (False, True)
    assert sign.age_seconds() < 60


def test_patience_is_longer_than_a_round(tmp_path: Path) -> None:
    slow = settings.load({"ACMIX_DATA": str(tmp_path), "ACMIX_IDLE_LOOK_SECONDS": "600"})
    assert SignOfLife(slow, "train").patience_seconds == 2400
