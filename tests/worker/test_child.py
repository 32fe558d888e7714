"""The process of an attempt: what it sees, what is read from it, and that nothing of it is left."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acmix.catalog import Device
from acmix.events import Event
from service.settings import SECRETS
from tests.service.work import until
from tests.worker.runs import is_gone
from worker import child as child_module
from worker.child import MAX_LINE_CHARACTERS, Child

Start = Callable[[str], Child]


@pytest.fixture
def start(stand_in: Callable[[str], None], tmp_path: Path) -> Iterator[Start]:
    """Starts a script as the run of an attempt, on GPU 3 and with 5 threads."""
    started: list[Child] = []

    def start(script: str) -> Child:
        stand_in(script)
        device = Device(index=3, name="card", memory_bytes=2**34)
        started.append(Child(tmp_path / "spec.json", tmp_path, tmp_path, [device], threads=5))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.process.wait()


def test_a_run_sees_its_devices_and_no_credentials(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("DATABASE_URL", "BROKER_URL", "ARTIFACTS_URL", "PGPASSWORD", "API_KEY", *SECRETS):
        monkeypatch.setenv(secret, "a secret")
        monkeypatch.setenv(f"{secret}_FILE", "a secret")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")  # of those that this process sees it is the one numbered 3
    child = start("tell('status', environment=dict(os.environ))")
    [told] = said(child)
    environment = told.data["environment"]
    assert "a secret" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment["OMP_NUM_THREADS"] == "5"
    assert environment["PATH"] == os.environ["PATH"]


def test_events_come_in_the_order_they_were_told(start: Start) -> None:
    child = start("for number in range(1000): tell('progress', number=number)")
    assert [event.data["number"] for event in said(child)] == list(range(1000))


def test_output_that_is_no_event_goes_to_the_log(start: Start) -> None:
    lines = ["a library printed this", '{"type": "no such type", "data": {}}', '["a list"]', '{"type": "progress"}']
    child = start(f"for line in {lines}: print(line)\ntell('progress')\nprint('on stderr', file=sys.stderr)")
    assert [event.type for event in said(child)] == ["progress"]
    assert sorted(child.take_lines(100)) == sorted([*lines, "on stderr"])


def test_a_log_line_is_text_of_bounded_length_whatever_the_bytes(start: Start) -> None:
    child = start(rf"sys.stderr.buffer.write(b'\xff\0\n' + b'x' * {2 * MAX_LINE_CHARACTERS} + b'\nlast')")
    assert said(child) == []
    assert child.take_lines(100) == ["\ufffd\ufffd", "x" * MAX_LINE_CHARACTERS, "last"]


def test_a_run_that_nobody_listens_to_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "MAX_WAITING_BYTES", 2**20)
    child = start("for number in range(200): tell('progress', number=number, weight='x' * 10**5)")
    child.wait(1)
    assert child.process.poll() is None, "20 MB went into a queue that takes 1 MB"
    assert [event.data["number"] for event in said(child)] == list(range(200))


def test_grandchildren_die_with_the_group(start: Start) -> None:
    child = start("tell('progress', pid=subprocess.Popen(['sleep', '1000']).pid)\nsleep()")
    grandchild = first(child).data["pid"]
    child.kill()
    until(lambda: is_gone(grandchild) and is_gone(child.process.pid))


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_run_leaves_behind_holds_nobody_up(end: str, start: Start) -> None:
    """A grandchild that outlives the run holds its pipes open: without its end, theirs would never come."""
    child = start(f"tell('progress', pid=subprocess.Popen(['sleep', '1000']).pid)\n{end}")
    [last_word] = said(child)
    until(lambda: is_gone(last_word.data["pid"]))


def test_a_process_that_no_signal_ends_holds_nobody_up_for_long(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs in a driver keeps the run's pipes open; here it is only in a session of its own."""
    monkeypatch.setattr(child_module, "PIPES_SECONDS", 0.2)
    child = start("tell('progress', pid=subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)")
    [last_word] = said(child)
    assert not is_gone(last_word.data["pid"])
    os.kill(last_word.data["pid"], signal.SIGKILL)


def test_a_run_asked_to_stop_still_has_its_own_children(start: Start) -> None:
    child = start("""
        def stop(*_):
            tell("status", loader_lives=loader.poll() is None)
            loader.kill()
            sys.exit(0)

        loader = subprocess.Popen(["sleep", "1000"])
        signal.signal(signal.SIGTERM, stop)
        tell("progress")
        sleep()
    """)
    first(child)
    child.ask_to_stop()
    assert [event.data for event in said(child)] == [{"loader_lives": True}]
    assert child.process.returncode == 0


def test_an_ended_run_is_neither_asked_nor_killed_again(start: Start) -> None:
    child = start("os.kill(os.getpid(), signal.SIGTERM)")
    assert said(child) == []
    child.ask_to_stop()
    child.kill()
    assert child.process.returncode == -signal.SIGTERM


def first(child: Child) -> Event:
    """The first event it tells."""
    told: list[Event] = []

    def has_told() -> bool:
        told.extend(child.take_events(1))
        return bool(told)

    until(has_told)
    return told[0]


def said(child: Child) -> list[Event]:
    """All that is left of what it tells to its end."""
    told: list[Event] = []

    def has_ended() -> bool:
        child.wait(0.01)
        ended = child.has_ended()
        told.extend(child.take_events(1000))
        return ended

    until(has_ended)
    return told
