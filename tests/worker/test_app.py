"""What Celery has to do with it: messages ring, and the signal to end drains."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store.queue import Queue, celery_app
from tests.service.work import until

SERVED = """
import sys
import threading
from service import settings
from worker import app

class Noted:
    draining = threading.Event()
    def note(self, word):
        with open(sys.argv[1], "a") as notes:
            notes.write(word + "\\n")
    def start(self):
        self.note("start")
    def ring(self):
        self.note("ring")
        if sys.argv[2] == "cannot":
            raise OSError("the store is away")
        if sys.argv[2] == "works":
            self.draining.wait()
            self.note("done")
    def drain(self):
        self.note("drain")
        self.draining.set()
    def stop(self):
        self.note("stop")

app.serve(settings.load({"BROKER_URL": sys.argv[3]}), Noted(), queues=["train"], threads=1)
"""
Serve = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[str]]:
    """What the service was told so far."""
    file = tmp_path / "notes"
    return lambda: file.read_text().split() if file.exists() else []


@pytest.fixture
def serve(tmp_path: Path, broker_url: str) -> Iterator[Serve]:
    """Begins to serve, in a process of its own, a service that notes what it is told."""
    elsewhere = dict.fromkeys(("BROKER_URL", "CELERY_BROKER_URL"), "redis://127.0.0.1:1/0")  # Celery would read them
    started: list[subprocess.Popen[bytes]] = []

    def serve(rings: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-c", SERVED, str(tmp_path / "notes"), rings, broker_url]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **elsewhere}))
        return started[-1]

    yield serve
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    queue = Queue(broker_url)
    yield queue
    queue.close()


def test_every_message_rings(serve: Serve, queue: Queue, notes: Callable[[], list[str]]) -> None:
    serve("can")
    assert queue.nudge_train()
    until(lambda: sorted(notes()) == ["ring", "start"], seconds=30)
    assert queue.nudge_train()
    until(lambda: notes().count("ring") == 2)


def test_the_signal_to_end_drains_what_is_at_work_and_waits_for_it(
    serve: Serve, queue: Queue, notes: Callable[[], list[str]]
) -> None:
    process = serve("works")
    assert queue.nudge_train()
    until(lambda: "ring" in notes(), seconds=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert notes()[2] == "drain"
    assert notes()[-1] == "stop"
    assert notes().count("done") == 1


def test_what_a_message_cannot_do_harms_no_later_one(
    serve: Serve, queue: Queue, broker_url: str, notes: Callable[[], list[str]]
) -> None:
    serve("cannot")
    app = celery_app(broker_url)
    app.send_task("no such task", args=["with arguments"], queue="train")
    app.close()
    assert queue.nudge_train()
    until(lambda: notes().count("ring") == 1, seconds=30)
    assert queue.nudge_train()
    until(lambda: notes().count("ring") == 2)
