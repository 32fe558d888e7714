"""Attempts from claim to verdict: what is recorded, what ends them, and what another's claim puts a stop to."""

import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import OperationalError

from acmix import manifest
from service.store.backend import Backend
from service.store.errors import ArtifactsAway, LeaseLost
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Checkpoint, Claim, Job, Outcome
from tests.flow.service_process import small_job
from tests.service.work import claim, let_lease_run_out, metrics, rows, save, submit, until
from tests.worker.runs import Attempts, PausingArtifacts, is_gone, runs
from worker.supervise import Supervisor

StandIn = Callable[[str], None]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
FIND_CHECKPOINTS = "tell('progress', phase='found', found=sorted(path.name for path in folder.glob('*/step-*')))\n"
NEVER_STOP = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


@pytest.fixture
def outage(database_url: str, request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """Takes the database away: PostgreSQL ends and refuses connections, the file of SQLite is locked."""
    if database_url.startswith("sqlite"):
        return lambda: _locked(Path(str(make_url(database_url).database)))
    administrator = request.getfixturevalue("administrator")
    return lambda: _refused(administrator, str(make_url(database_url).database))


@pytest.fixture
def pausing(backend: Backend) -> Iterator[PausingArtifacts]:
    artifacts = PausingArtifacts(backend.settings.artifacts_url)
    yield artifacts
    artifacts.go_on.set()


# The library's own run


def test_nothing_is_missing_after_the_database_was_away(
    outage: Callable[[], AbstractContextManager[None]], backend: Backend, attempts: Attempts
) -> None:
    """Away from mid-run until the run itself has ended: all that it said in the meantime waits."""
    ledger, reader = backend.ledger, backend.reader
    job = submit(ledger, **small_job(epochs=4))
    attempt = attempts.begin(claim(ledger))
    until(lambda: bool(reader.metrics(job.id)), seconds=60)
    with outage():
        until(lambda: not runs(), seconds=60)
    attempt.result(60)

    assert reader.job(job.id).status == "succeeded"
    told = reader.events(job.id)
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    trained = [event for event in told if "train/loss" in event.data.get("values", ())]
    assert [step for event in trained for step in event.data["step"]] == list(range(1, 81))
    assert [event.data["step"] for event in told if event.type == "trace"] == list(range(0, 81, 5))
    evaluated = [(event.data["split"], event.data["step"]) for event in told if event.type == "evaluation"]
    assert evaluated == [("val", 20), ("val", 40), ("val", 60), ("val", 80), ("test", 80)]
    assert told[-1].data["status"] == "succeeded"
    assert reader.metrics(job.id, ["train/loss"])[0].step == list(range(1, 81))
    assert stored(backend, job) == listed(backend, job)


def test_nothing_is_told_twice_where_the_word_that_it_is_written_gets_lost(
    backend: Backend, attempts: Attempts, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other write is made, and then the connection breaks."""
    stand_in(
        """
        for step in range(1, 41):
            tell("metrics", epoch=1, step=[step], values={"train/loss": [0.5]})
            if step % 10 == 0:
                save(step)
            time.sleep(0.1)
        tell("status", status="succeeded")
        """
    )
    ledger, reader = backend.ledger, backend.reader
    lost: list[int] = []
    for name in ("record", "commit_checkpoint"):
        monkeypatch.setattr(ledger, name, _losing_every_other_word(getattr(ledger, name), lost))
    job = submit(ledger, checkpoints={"keep_latest": 9})
    attempts.begin(claim(ledger)).result(60)
    told = reader.events(job.id)
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    assert [step for event in told if event.type == "metrics" for step in event.data["step"]] == list(range(1, 41))
    assert [event.data["step"] for event in told if event.type == "checkpoint"] == [10, 20, 30, 40]
    assert len(lost) >= 4
    assert reader.job(job.id).status == "succeeded"


@on_sqlite
def test_a_node_that_gives_its_jobs_back_waits_for_the_database_and_not_for_files_that_others_may_reach(
    backend: Backend,
) -> None:
    submit(backend.ledger)
    impatient = replace(backend, settings=replace(backend.settings, stop_grace_seconds=0.5))
    giving_back, leaving = threading.Event(), threading.Event()
    giving_back.set()
    supervisor = Supervisor(impatient, claim(backend.ledger), [], 1, giving_back, leaving)
    away: list[Exception] = [OperationalError("", {}, Exception("gone"))] * 2

    def act() -> str:
        if away:
            raise away.pop()
        return "done"

    assert supervisor._patiently(act) == "done"
    away = [ArtifactsAway("no answer")] * 9
    with pytest.raises(LeaseLost):
        supervisor._patiently(act)


@on_sqlite
def test_an_attempt_goes_on_from_before_a_damaged_checkpoint(backend: Backend, attempts: Attempts) -> None:
    ledger, reader = backend.ledger, backend.reader
    job = submit(ledger, **small_job(epochs=4, checkpoints={"keep_latest": 2}))
    attempt = attempts.begin(claim(ledger))
    until(lambda: len(reader.checkpoints(job.id)) >= 2, seconds=60)
    attempts.draining.set()
    attempt.result(30)
    drained = reader.job(job.id)
    assert (drained.status, drained.attempt, drained.failures, drained.losses) == ("queued", 1, 0, 0)
    newest, before, *_ = reader.checkpoints(job.id)
    assert newest.kind == "stop"

    damage(backend, newest)
    attempts.draining.clear()
    attempts.see_through(claim(ledger))
    assert reader.job(job.id).status == "succeeded"
    [warning] = reader.events(job.id, types=["warning"])
    assert warning.data["code"] == "checkpoint_unreadable"
    assert f"step {newest.step}: " in warning.message
    assert warning.message.endswith(f"training goes on from step {before.step}")
    assert reader.attempts(job.id)[0].resumed_from == warning.data["resumed_from"]
    assert warning.data["resumed_from"] == {"attempt": 1, "step": before.step, "checkpoint": before.id}
    assert f"resumed from step {before.step}" in [event.message for event in reader.events(job.id, types=["status"])]
    assert reader.metrics(job.id, ["train/loss"])[0].step == list(range(1, 81))
    assert stored(backend, job) == listed(backend, job)


# An attempt that was given to another


def test_a_zombie_that_stored_a_checkpoint_cannot_commit_it(
    stand_in: StandIn, pausing: PausingArtifacts, backend: Backend, attempts: Attempts
) -> None:
    stand_in("save(10)\nsleep()")
    job = submit(backend.ledger)
    zombie = attempts.begin(claim(backend.ledger), replace(backend, artifacts=pausing))
    assert pausing.stored.wait(10)
    second = given_to_another(backend, job)
    before = rows(backend.engine)
    pausing.go_on.set()
    zombie.result(10)
    assert rows(backend.engine) == before
    assert (second.job.attempt, second.resume) == (2, None)
    assert runs() == []


def test_a_run_whose_attempt_was_given_to_another_is_killed(
    stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    stand_in(f"{NEVER_STOP}tell('progress', phase='training')\nsleep()")
    job = submit(backend.ledger)
    zombie = attempts.begin(claim(backend.ledger))
    until(lambda: backend.reader.job(job.id).phase == "training")
    given_to_another(backend, job)
    before = rows(backend.engine)
    zombie.result(10)
    assert rows(backend.engine) == before
    assert runs() == []


@on_sqlite
def test_an_attempt_that_can_never_start_ends_when_it_is_given_to_another(backend: Backend, attempts: Attempts) -> None:
    backend.settings.data_folder.mkdir(exist_ok=True)
    (backend.settings.data_folder / "attempts").write_text("a file where the folder should be")
    job = submit(backend.ledger)
    attempt = attempts.begin(claim(backend.ledger))
    given_to_another(backend, job)
    attempt.result(10)
    assert backend.reader.job(job.id).attempt == 2


@on_sqlite
def test_a_lease_is_kept_while_a_checkpoint_takes_longer_to_store(
    stand_in: StandIn, pausing: PausingArtifacts, backend: Backend, attempts: Attempts
) -> None:
    stand_in("save(10)\ntell('status', status='succeeded')")
    job = submit(backend.ledger)
    attempt = attempts.begin(claim(backend.ledger), replace(backend, artifacts=pausing))
    assert pausing.stored.wait(10)
    until(lambda: not runs())
    let_lease_run_out(backend.engine, job.id)
    began = backend.reader.attempts(job.id)[0].heartbeat_at
    until(lambda: (backend.reader.attempts(job.id)[0].heartbeat_at - began).total_seconds() > 1)
    assert backend.ledger.sweep() == []
    pausing.go_on.set()
    attempt.result(10)
    assert backend.reader.job(job.id).status == "succeeded"


# How attempts end


@on_sqlite
def test_a_run_ended_by_a_signal_is_lost_and_queued_at_once(
    stand_in: StandIn, ledger: Ledger, reader: Reader, attempts: Attempts
) -> None:
    stand_in("os.kill(os.getpid(), signal.SIGSEGV)")
    job = submit(ledger)
    attempts.see_through(claim(ledger))
    after, [attempt] = reader.job(job.id), reader.attempts(job.id)
    assert (after.status, after.failures, after.losses, after.not_before) == ("queued", 0, 1, None)
    assert (attempt.exit_code, attempt.signal) == (None, signal.SIGSEGV)
    assert attempt.reason is not None
    assert (attempt.reason["code"], attempt.reason["message"]) == ("worker_lost", "the run was ended by SIGSEGV")


@on_sqlite
def test_a_run_that_leaves_without_a_word_has_failed_and_is_tried_again_after_a_while(
    stand_in: StandIn, ledger: Ledger, reader: Reader, attempts: Attempts
) -> None:
    stand_in("print('Traceback', file=sys.stderr)\nsys.exit(3)")
    job = submit(ledger)
    attempts.see_through(claim(ledger))
    after, [attempt] = reader.job(job.id), reader.attempts(job.id)
    assert (after.status, after.failures, after.losses) == ("queued", 1, 0)
    assert after.not_before is not None
    assert (after.not_before - after.queued_at).total_seconds() == 10
    assert (attempt.exit_code, attempt.signal) == (3, None)
    assert attempt.reason is not None
    assert (attempt.reason["code"], attempt.reason["retryable"]) == ("internal", True)
    assert reader.log_lines(job.id) == [(1, "Traceback")]


@on_sqlite
@pytest.mark.parametrize(("wish", "status"), [("drain", "queued"), ("pause", "paused"), ("cancel", "cancelled")])
def test_a_run_ended_before_it_listens_for_signals_is_no_loss(
    wish: str, status: str, stand_in: StandIn, ledger: Ledger, reader: Reader, attempts: Attempts
) -> None:
    stand_in("tell('progress', phase='importing')\nsleep()")
    job = submit(ledger)
    attempt = attempts.begin(claim(ledger))
    until(lambda: reader.job(job.id).phase == "importing")
    wishes: dict[str, Callable[[], Any]] = {
        "drain": attempts.draining.set,
        "pause": lambda: ledger.request_pause(job.id),
        "cancel": lambda: ledger.request_cancel(job.id),
    }
    wishes[wish]()
    attempt.result(10)
    after = reader.job(job.id)
    assert (after.status, after.failures, after.losses, after.not_before) == (status, 0, 0, None)
    assert reader.attempts(job.id)[0].signal == signal.SIGTERM


@on_sqlite
def test_a_wish_is_seen_long_before_the_lease_is_renewed(
    stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    stand_in("tell('progress', phase='training')\nsleep()")
    patient = replace(backend, settings=replace(backend.settings, lease_seconds=3600))
    job = submit(backend.ledger)
    attempt = attempts.begin(claim(backend.ledger), patient)
    until(lambda: backend.reader.job(job.id).phase == "training")
    backend.ledger.request_cancel(job.id)
    attempt.result(10)
    assert backend.reader.job(job.id).status == "cancelled"


@on_sqlite
def test_a_run_that_will_not_end_is_killed_with_its_children_after_the_grace(
    stand_in: StandIn, ledger: Ledger, reader: Reader, attempts: Attempts
) -> None:
    stand_in(f"""{NEVER_STOP}tell("progress", pid=subprocess.Popen(["sleep", "1000"]).pid)\nsleep()""")
    job = submit(ledger)
    attempt = attempts.begin(claim(ledger))
    until(lambda: bool(reader.events(job.id, types=["progress"])))
    [loader] = reader.events(job.id, types=["progress"])
    ledger.request_cancel(job.id)
    attempt.result(10)
    after = reader.job(job.id)
    assert after.status == "cancelled"
    assert after.status_reason is not None
    assert after.status_reason["code"] == "cancelled_by_user"
    assert reader.attempts(job.id)[0].signal == signal.SIGKILL
    until(lambda: is_gone(loader.data["pid"]))


@on_sqlite
def test_a_run_that_succeeds_while_it_is_asked_to_stop_has_succeeded(
    stand_in: StandIn, ledger: Ledger, reader: Reader, attempts: Attempts
) -> None:
    stand_in("""
        def stop(*_):
            tell("status", status="succeeded")
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        tell("progress", phase="testing")
        sleep()
    """)
    job = submit(ledger)
    attempt = attempts.begin(claim(ledger))
    until(lambda: reader.job(job.id).phase == "testing")
    ledger.request_cancel(job.id)
    attempt.result(10)
    assert reader.job(job.id).status == "succeeded"


# Its checkpoints


@on_sqlite
@pytest.mark.parametrize("harm", ["a byte differs", "a file is missing", "every file is missing"])
def test_the_newest_readable_checkpoint_is_gone_on_from(
    harm: str, stand_in: StandIn, tmp_path: Path, backend: Backend, attempts: Attempts
) -> None:
    """What cannot be read is struck from the list where it is the newest, and left out where it is not."""
    job = stopped_after(backend, tmp_path, steps=[10, 20, 30])
    newest, second, _ = backend.reader.checkpoints(job.id)
    damage(backend, newest)
    harms: dict[str, Callable[[], None]] = {
        "a byte differs": lambda: damage(backend, second),
        "a file is missing": weights_of(backend, second).unlink,
        "every file is missing": lambda: backend.artifacts.delete_prefix(second.key),
    }
    harms[harm]()
    stand_in(FIND_CHECKPOINTS)
    attempts.see_through(claim(backend.ledger))
    *warnings, found = backend.reader.events(job.id, types=["warning", "progress"])
    assert [warning.message.split(":")[0] for warning in warnings] == ["step 30", "step 20"]
    assert found.data["found"] == ["step-000000010"]
    assert [checkpoint.step for checkpoint in backend.reader.checkpoints(job.id)] == [10]
    assert backend.reader.metrics(job.id)[0].step == list(range(1, 11))
    assert stored(backend, job) == listed(backend, job)


@on_sqlite
def test_an_older_unreadable_checkpoint_costs_no_newer_one(
    stand_in: StandIn, tmp_path: Path, backend: Backend, attempts: Attempts
) -> None:
    job = stopped_after(backend, tmp_path, steps=[10, 20, 30])
    damage(backend, backend.reader.checkpoints(job.id)[1])
    stand_in(FIND_CHECKPOINTS)
    attempts.see_through(claim(backend.ledger))
    [warning, found] = backend.reader.events(job.id, types=["warning", "progress"])
    assert warning.message.startswith("step 20: ")
    assert found.data["found"] == ["step-000000010", "step-000000030"]
    assert backend.reader.metrics(job.id)[0].step == list(range(1, 31))


@on_sqlite
def test_without_a_readable_checkpoint_training_begins_anew(
    stand_in: StandIn, tmp_path: Path, backend: Backend, attempts: Attempts
) -> None:
    job = stopped_after(backend, tmp_path, steps=[10])
    damage(backend, backend.reader.checkpoints(job.id)[0])
    stand_in(FIND_CHECKPOINTS)
    attempts.see_through(claim(backend.ledger))
    [warning] = backend.reader.events(job.id, types=["warning"])
    assert warning.message.endswith("training goes on from step 0")
    assert warning.data["resumed_from"] is None
    assert backend.reader.events(job.id, types=["progress"])[0].data["found"] == []
    assert stored(backend, job) == listed(backend, job) == []


@on_sqlite
def test_a_step_saved_again_by_the_next_attempt_is_listed_once(
    stand_in: StandIn, tmp_path: Path, backend: Backend, attempts: Attempts
) -> None:
    """A run that was stopped at the end of an epoch saves the same step once more, evaluated, when it goes on."""
    job = stopped_after(backend, tmp_path, steps=[10], checkpoints={"keep_latest": 3})
    stand_in("save(10)\nsave(20)")
    attempts.see_through(claim(backend.ledger))
    assert [(kept.step, kept.attempt) for kept in backend.reader.checkpoints(job.id)] == [(20, 2), (10, 2)]
    assert stored(backend, job) == listed(backend, job)


@on_sqlite
def test_a_checkpoint_that_made_way_before_it_was_stored_is_passed_over(
    stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    stand_in("save(10)\nshutil.rmtree(folder / 'checkpoints' / 'step-000000010')\nsave(20)")
    job = submit(backend.ledger)
    attempts.see_through(claim(backend.ledger))
    assert [checkpoint.step for checkpoint in backend.reader.checkpoints(job.id)] == [20]
    assert stored(backend, job) == listed(backend, job)


def _losing_every_other_word(write: Callable[..., Any], lost: list[int]) -> Callable[..., Any]:
    calls = count()

    def write_and_lose(*arguments: Any, **more: Any) -> Any:
        written = write(*arguments, **more)
        if next(calls) % 2 == 0:
            lost.append(1)
            raise OperationalError("COMMIT", None, Exception("server closed the connection"))
        return written

    return write_and_lose


def given_to_another(backend: Backend, job: Job) -> Claim:
    """Sweep it, though its holder may be renewing the lease, and claim it again."""

    def is_swept() -> bool:
        let_lease_run_out(backend.engine, job.id)
        return backend.ledger.sweep() == [job.id]

    until(is_swept)
    return claim(backend.ledger, "another")


def stopped_after(backend: Backend, tmp_path: Path, *, steps: list[int], **changes: Any) -> Job:
    """A queued job that has trained so far and left a checkpoint, files and row, at each of these steps."""
    submit(backend.ledger, **changes)
    job = claim(backend.ledger).job
    backend.ledger.record(job.id, job.attempt, [metrics(*range(1, steps[-1] + 1))])
    for step in steps:
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        manifest.write(folder, ["model.safetensors"])
        key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
        backend.artifacts.put_folder(key, folder)
        save(backend.ledger, job, step, key=key)
    return backend.ledger.finish(job.id, job.attempt, Outcome("drained"))


def damage(backend: Backend, checkpoint: Checkpoint) -> None:
    """Flip one bit of its stored weights."""
    file = weights_of(backend, checkpoint)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def weights_of(backend: Backend, checkpoint: Checkpoint) -> Path:
    return backend.settings.data_folder / "artifacts" / checkpoint.key / "model.safetensors"


def stored(backend: Backend, job: Job) -> list[str]:
    """Keys of checkpoints that have files."""
    return backend.artifacts.prefixes(f"jobs/{job.id}/checkpoints")


def listed(backend: Backend, job: Job) -> list[str]:
    """Keys of checkpoints that have rows."""
    return sorted(checkpoint.key for checkpoint in backend.reader.checkpoints(job.id))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


@contextmanager
def _refused(administrator: Engine, database: str) -> Iterator[None]:
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false"))
        all_of_it = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :database"
        connection.execute(text(all_of_it), {"database": database})
    yield
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true"))
