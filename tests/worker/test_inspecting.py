"""The housekeeper checks data sets: what it does with each verdict, and what becomes of checks that are cut short."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from service.store.artifacts import Artifacts
from service.store.backend import Backend
from service.store.errors import ArtifactsAway
from service.store.rows import Dataset
from tests.scrapes import Counted
from tests.service.test_dataset_rows import set_back
from tests.service.work import until
from tests.worker.runs import is_gone
from tests.worker.uploaded import STAND_IN, upload
from worker import archives, inspecting
from worker.housekeeping import Housekeeper
from worker.inspecting import Inspector

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(inspecting, "FIRST_PAUSE_SECONDS", 0.05)


@contextmanager
def inspecting_(backend: Backend) -> Iterator[Inspector]:
    inspector = Inspector(backend, STAND_IN)
    inspector.start()
    try:
        yield inspector
    finally:
        inspector.drain()
        inspector.stop()


def look(backend: Backend) -> None:
    Inspector(backend, STAND_IN).look()


def stored(backend: Backend, dataset: Dataset) -> list[str]:
    folder = backend.settings.data_folder / "artifacts" / "datasets" / dataset.id
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def left(backend: Backend) -> list[Path]:
    """What checks left on the disk."""
    return list((backend.settings.data_folder / "inspections").glob("*"))


def child_of(backend: Backend, dataset: Dataset) -> int:
    """The process that looks into it, which is there once it has told how far it is."""

    def told() -> dict[str, Any]:
        return backend.reader.dataset(dataset.id).progress or {"phase": None}

    until(lambda: told()["phase"] == "checking")
    return int(told()["done"])


def waiting(backend: Backend, then: str = "ready") -> tuple[Dataset, Path]:
    """One whose check goes on until a file is there."""
    go_on = backend.settings.data_folder / "go_on"
    return upload(backend, f"wait {go_on} {then}"), go_on


def test_a_good_one_is_ready_with_its_report_its_samples_and_its_archive(backend: Backend) -> None:
    made = upload(backend, "ready", declared_sha256="a" * 64)
    parts = backend.reader.dataset_parts(made.id)
    look(backend)
    ready = backend.reader.dataset(made.id)
    assert ready.status == "ready", ready.status_reason
    assert (ready.files, ready.size_bytes, ready.num_classes) == (1, 5, 2)
    assert ready.report is not None
    assert ready.report["statistics"] == {"told": ["detection", "coco", {"px": 8}, "a" * 64]}
    assert ready.report["options"] == {"folder": "."}
    assert stored(backend, made) == ["parts/000001/000000000000000", "parts/000002/000000000000002", "samples.png"]
    assert backend.reader.dataset_parts(made.id) == parts
    assert left(backend) == []


def test_a_bad_one_is_rejected_and_keeps_its_report_only(backend: Backend) -> None:
    made = upload(backend, "reject")
    look(backend)
    rejected = backend.reader.dataset(made.id)
    assert (rejected.status, rejected.status_reason) == ("rejected", None)
    assert rejected.report is not None
    assert rejected.report["faults"] == [{"file": "a?\ufffd.png", "code": "dataset_corrupt", "message": "no image"}]
    assert (stored(backend, made), backend.reader.dataset_parts(made.id), left(backend)) == ([], [], [])


@on_sqlite
def test_checks_are_counted_by_their_verdict(backend: Backend) -> None:
    counted = Counted()
    for word in ("ready", "reject", "reject", "babble"):
        upload(backend, word)
    look(backend)
    results = ("ready", "rejected", "failed")
    assert [counted("acmix_dataset_checks_total", result=result) for result in results] == [1, 2, 1]
    assert counted("acmix_dataset_check_seconds_count") == 3


@on_sqlite
def test_what_lies_below_the_data_root_is_looked_at_where_it_lies(backend: Backend) -> None:
    folder = backend.settings.data_root / "flowers"
    folder.mkdir(parents=True)
    (folder / "text").write_text("ready")
    made = backend.datasets.add(name="", task="detection", format_="coco", options={}, path="flowers")
    look(backend)
    assert backend.reader.dataset(made.id).status == "ready"
    assert list(folder.iterdir()) == [folder / "text"]
    assert stored(backend, made) == ["samples.png"]


@on_sqlite
@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        ("absent", "dataset_missing", "absent is not a folder"),
        ("out", "option_invalid", "path='out' is a link out of the data root; mount or copy the files instead"),
        ("../x", "option_invalid", "path='../x' must be a path below the data root, without '..'"),
    ],
)
def test_a_path_that_is_none_or_leads_out_is_rejected(path: str, code: str, sentence: str, backend: Backend) -> None:
    backend.settings.data_root.mkdir(parents=True)
    (backend.settings.data_root / "out").symlink_to(backend.settings.data_folder)
    made = backend.datasets.add(name="", task="detection", format_="coco", options={}, path=path)
    look(backend)
    rejected = backend.reader.dataset(made.id)
    assert (rejected.status, rejected.report and rejected.report["faults_total"]) == ("rejected", 1)
    assert rejected.report is not None
    [fault] = rejected.report["faults"]
    assert (fault["file"], fault["code"]) == (path, code)
    assert fault["message"].endswith(sentence)


@on_sqlite
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("die", "the process that inspects data sets was ended by SIGKILL"),
        ("leave", "the process that inspects data sets was ended with exit status 3"),
        ("babble", "the process that inspects data sets ended without a report"),
    ],
)
def test_a_check_that_the_child_does_not_survive_is_tried_again_then_the_platform_is_blamed(
    text: str, message: str, backend: Backend
) -> None:
    made = upload(backend, text)
    for _ in range(3):
        look(backend)
        set_back(backend.engine, made.id, "not_before", seconds=1)
    rejected = backend.reader.dataset(made.id)
    assert (rejected.status, rejected.claims, rejected.failures) == ("rejected", 3, 3)
    assert rejected.status_reason is not None
    assert (rejected.status_reason["code"], rejected.status_reason["blame"]) == ("inspection_failed", "platform")
    assert rejected.status_reason["message"] == message
    look(backend)
    assert (stored(backend, made), left(backend)) == ([], [])


@on_sqlite
def test_a_child_that_hangs_is_ended(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "MOST_SECONDS", 0.5)
    made, _ = waiting(backend)
    look(backend)
    failed = backend.reader.dataset(made.id)
    assert (failed.status, failed.failures) == ("checking", 1)
    assert failed.status_reason is not None
    assert failed.status_reason["message"] == "the process that inspects data sets took longer than 0.5 s"


@on_sqlite
def test_a_disk_without_room_is_the_platforms_fault(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SPARE_BYTES", 2**60)
    made = upload(backend, "ready")
    look(backend)
    failed = backend.reader.dataset(made.id)
    assert failed.status_reason is not None
    assert (failed.status, failed.status_reason["code"]) == ("checking", "disk_full")
    assert "a data set takes 10 bytes, and 1152921504606846976 are to be left; " in failed.status_reason["message"]


@on_sqlite
def test_an_archive_that_is_gone_is_the_platforms_fault(backend: Backend) -> None:
    made = upload(backend, "ready")
    backend.artifacts.delete_prefix(f"datasets/{made.id}")
    look(backend)
    failed = backend.reader.dataset(made.id)
    assert failed.status_reason is not None
    assert (failed.status, failed.status_reason["code"]) == ("checking", "archive_missing")


@on_sqlite
def test_a_message_rings_for_it_and_without_one_it_looks_by_itself(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    housekeeper = Housekeeper(backend, STAND_IN)
    housekeeper.inspector.start()
    try:
        unrung = upload(backend, "ready")
        until(lambda: backend.reader.dataset(unrung.id).status == "ready")
        monkeypatch.setattr(inspecting, "LOOK_SECONDS", 1000.0)
        housekeeper.ring()
        rung = upload(backend, "ready")

        def is_ready() -> bool:
            housekeeper.ring()
            return backend.reader.dataset(rung.id).status == "ready"

        until(is_ready)
    finally:
        housekeeper.drain()
        housekeeper.stop()


@on_sqlite
def test_the_api_rings_where_the_housekeeper_listens(backend: Backend) -> None:
    assert backend.queue.nudge_light()
    with Redis(unix_socket_path=backend.settings.broker_url.removeprefix("redis+socket://")) as broker:
        [message] = broker.lrange("light", 0, -1)
        assert json.loads(message)["headers"]["task"] == "light"


@on_sqlite
def test_the_child_has_no_credentials(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "ARTIFACTS_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    made, go_on = waiting(backend)
    with inspecting_(backend):
        child_of(backend, made)
        [folder] = left(backend)
        told = json.loads((folder / "environment").read_text())
        go_on.touch()
        until(lambda: backend.reader.dataset(made.id).status == "ready")
    assert "PATH" in told
    assert [name for name in told if name.endswith("_URL") or name.startswith("AWS")] == []


def test_a_check_keeps_its_claim_for_as_long_as_it_takes_and_another_housekeeper_lets_it_be(backend: Backend) -> None:
    made, go_on = waiting(backend)
    with inspecting_(backend), inspecting_(backend):
        child_of(backend, made)
        first = backend.reader.dataset(made.id).lease_expires_at
        assert first is not None

        def is_renewed() -> bool:
            now = backend.reader.dataset(made.id).lease_expires_at
            assert now is not None
            return (now - first).total_seconds() > backend.settings.lease_seconds

        until(is_renewed)
        assert len(left(backend)) == 1
        go_on.touch()
        until(lambda: backend.reader.dataset(made.id).status == "ready")
    assert backend.reader.dataset(made.id).claims == 1


@on_sqlite
def test_a_housekeeper_that_drains_ends_the_child_and_gives_the_check_back(backend: Backend) -> None:
    made, _ = waiting(backend)
    with inspecting_(backend):
        pid = child_of(backend, made)
    assert is_gone(pid)
    free = backend.reader.dataset(made.id)
    assert (free.status, free.lease_expires_at, free.failures, free.losses) == ("checking", None, 0, 0)
    assert left(backend) == []


def test_a_housekeeper_whose_check_was_given_to_another_ends_its_child_and_writes_nothing(backend: Backend) -> None:
    made, _ = waiting(backend, "reject")
    with inspecting_(backend) as inspector:
        pid = child_of(backend, made)
        inspector.checks = Silent(inspector.checks)  # it does not look for other work
        set_back(backend.engine, made.id, "lease_expires_at", seconds=-60)
        with backend.engine.execution_options(writes=True).begin() as connection:
            connection.exec_driver_sql(f"UPDATE datasets SET claims = 2 WHERE id = '{made.id}'")
        until(lambda: is_gone(pid))
        until(lambda: left(backend) == [])
    after = backend.reader.dataset(made.id)
    assert (after.status, after.claims, after.failures) == ("checking", 2, 0)
    assert len(stored(backend, made)) == 2


class Silent:
    """Checks of which no further one is to be had."""

    def __init__(self, checks: Any) -> None:
        self._checks = checks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checks, name)

    def claim(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_housekeeper_that_is_killed_takes_its_child_along_and_another_takes_over(backend: Backend) -> None:
    """The other begins only once the lease has run out, and clears what the first left on the disk."""
    made, go_on = waiting(backend)
    code = """
import signal, sys
from service import settings
from service.store.backend import open_backend
from worker.inspecting import Inspector
Inspector(open_backend(settings.load()), sys.argv[1:]).start()
signal.pause()
"""
    settings = backend.settings
    environment = {
        **os.environ,
        "DATABASE_URL": settings.database_url,
        "BROKER_URL": settings.broker_url,
        "ACMIX_DATA": str(settings.data_folder),
        "LEASE_SECONDS": "2",
    }
    with subprocess.Popen([sys.executable, "-c", code, *STAND_IN], env=environment) as killed:
        pid = child_of(backend, made)
        assert psutil.Process(pid).ppid() == killed.pid
        [folder] = left(backend)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    until(lambda: is_gone(pid))
    go_on.touch()
    look(backend)
    assert backend.reader.dataset(made.id).claims == 1, "its lease has not run out yet"
    with inspecting_(backend):
        until(lambda: backend.reader.dataset(made.id).status == "ready")
    after = backend.reader.dataset(made.id)
    assert (after.claims, after.losses, after.failures) == (2, 1, 0)
    assert not folder.exists()
    assert left(backend) == []


@on_sqlite
def test_deletions_and_rejections_that_were_cut_short_are_brought_to_an_end(backend: Backend) -> None:
    deleted, rejected = upload(backend, "ready"), upload(backend, "reject")
    checks = [backend.checks.claim(), backend.checks.claim()]
    assert checks[0]
    assert checks[1]
    backend.checks.ready(checks[0], {"sha256": "0" * 64, "size_bytes": 1, "files": 1, "num_classes": None})
    backend.checks.reject(checks[1], {})
    backend.datasets.begin_delete(deleted.id)
    set_back(backend.engine, deleted.id, "deleted_at", minutes=2)
    assert stored(backend, deleted)
    assert stored(backend, rejected)
    look(backend)
    assert (stored(backend, deleted), stored(backend, rejected)) == ([], [])
    assert (backend.checks.deleted(), backend.checks.rejected_with_parts()) == ([], [])


@on_sqlite
def test_the_database_may_be_away_for_a_while(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    made, go_on = waiting(backend)
    with inspecting_(backend):
        pid = child_of(backend, made)
        rename(backend, "datasets", "datasets_away")
        until(lambda: "the claim could not be renewed" in caplog.text)
        go_on.touch()
        until(lambda: "tried again in a second" in caplog.text)
        rename(backend, "datasets_away", "datasets")
        until(lambda: backend.reader.dataset(made.id).status == "ready")
    assert is_gone(pid)
    assert backend.reader.dataset(made.id).failures == 0


@on_sqlite
def test_files_that_cannot_be_reached_now_are_waited_for(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_away(*_: Any) -> Any:
        raise ArtifactsAway("no answer")

    made = upload(backend, "ready")
    with monkeypatch.context() as away, inspecting_(backend):
        away.setattr(Artifacts, "stream", is_away)
        until(lambda: caplog.text.count("the database or the files do not answer") >= 2)
        away.undo()
        until(lambda: backend.reader.dataset(made.id).status == "ready")
    assert backend.reader.dataset(made.id).failures == 0


def rename(backend: Backend, table: str, to: str) -> None:
    """Without its table every query is refused, as by a database that is away."""
    with backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {to}")
