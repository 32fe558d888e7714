"""Back-up, wipe, restore: nothing is lost, from either database to either, while the service goes on."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Boolean, Column, Engine, Float, Integer, LargeBinary, insert, inspect, text
from typer.testing import CliRunner

from acmix import manifest
from service.cli import main
from service.store import backup
from service.store.artifacts import Artifacts
from service.store.backup import Backup, back_up, restore
from service.store.database import connect, is_current, migrate, revision_of, writing
from service.store.errors import BackupRefused
from service.store.ledger import Ledger
from service.store.rows import Job
from service.store.tables import UtcDateTime, metadata
from tests.service import work

KINDS = ("sqlite", "postgresql")
TEXTS = {
    ("jobs", "status"): "running",
    ("jobs", "requested"): "cancel",
    ("datasets", "status"): "ready",
    ("deliveries", "status"): "pending",
}
STEP = 10


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    return Artifacts((tmp_path / "store").as_uri())


@pytest.fixture
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Engine]]:
    """Makes a database without a table, of a kind."""
    engines: list[Engine] = []

    def make(kind: str) -> Engine:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path / f'other-{len(engines)}.db'}"
        else:
            administrator = request.getfixturevalue("administrator")
            with administrator.connect() as connection:
                connection.execute(text("DROP DATABASE IF EXISTS restored WITH (FORCE)"))
                connection.execute(text("CREATE DATABASE restored TEMPLATE template0"))
            url = administrator.url.set(database="restored").render_as_string(hide_password=False)
        engines.append(connect(url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_of_every_table_comes_back_in_either_kind_of_database(
    engine: Engine, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path, kind: str
) -> None:
    _fill(engine)
    made = back_up(engine, store, tmp_path / "backup")
    assert made.rows == len(metadata.sorted_tables)
    restored = other(kind)
    restore(restored, Artifacts((tmp_path / "restored").as_uri()), tmp_path / "backup")
    assert work.rows(restored) == work.rows(engine)


def test_files_come_back_and_what_no_row_names_does_not(
    engine: Engine, ledger: Ledger, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    job = work.claim_new(ledger)
    kept = _stored(ledger, store, job, STEP, tmp_path)
    store.put_stream("jobs/of-nobody/checkpoints/left/model.safetensors", iter([b"left by a killed worker"]))
    made = back_up(engine, store, tmp_path / "backup")
    assert (made.files, made.missing) == (2, [])
    back = Artifacts((tmp_path / "restored").as_uri())
    restore(other("sqlite"), back, tmp_path / "backup")
    back.fetch_folder(kept, tmp_path / "fetched")
    assert set(manifest.check(tmp_path / "fetched")) == {"model.safetensors"}
    assert back.all_below() == [f"{kept}/manifest.json", f"{kept}/model.safetensors"]


def test_a_back_up_is_of_one_moment_while_checkpoints_come_and_go(
    engine: Engine, ledger: Ledger, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    job = work.claim_new(ledger)
    stored: list[str] = []

    def go_on() -> None:
        stored.append(_stored(ledger, store, job, STEP * (1 + len(stored)), tmp_path, keep_latest=2))

    def back_up_after_more(number: int) -> Backup:
        before = len(stored)
        work.until(lambda: len(stored) > before)
        return back_up(engine, store, tmp_path / f"backup-{number}")

    for _ in range(2):
        go_on()
    with work.meanwhile(go_on):
        made = [back_up_after_more(number) for number in range(4)]
    for number, each in enumerate(made):
        assert each.missing == []
        restored = other("sqlite")
        back = Artifacts((tmp_path / f"restored-{number}").as_uri())
        restore(restored, back, tmp_path / f"backup-{number}")
        listed = work.rows(restored)["checkpoints"]
        assert len(listed) == 2
        assert each.files == 2 * len(listed)
        with restored.connect() as connection:
            for key in connection.execute(text("SELECT key FROM checkpoints")).scalars():
                back.fetch_folder(key, tmp_path / "checked" / f"{number}" / key)
                assert manifest.check(tmp_path / "checked" / f"{number}" / key)


def test_a_running_job_goes_on_from_its_checkpoint_after_a_restore(
    engine: Engine, ledger: Ledger, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    job = work.claim_new(ledger)
    _stored(ledger, store, job, STEP, tmp_path)
    back_up(engine, store, tmp_path / "backup")
    restored = other("sqlite")
    restore(restored, Artifacts((tmp_path / "restored").as_uri()), tmp_path / "backup")
    after = Ledger(restored)
    work.let_lease_run_out(restored, job.id)
    assert after.sweep() == [job.id]
    claimed = work.claim(after)
    assert (claimed.job.id, claimed.job.attempt) == (job.id, 2)
    assert claimed.resume is not None
    assert claimed.resume.step == STEP


def test_a_file_that_is_lost_is_named_and_stops_nothing(
    engine: Engine, ledger: Ledger, store: Artifacts, tmp_path: Path
) -> None:
    job = work.claim_new(ledger)
    lost, kept = (_stored(ledger, store, job, step, tmp_path) for step in (STEP, 2 * STEP))
    store.delete_prefix(lost)
    made = back_up(engine, store, tmp_path / "backup")
    assert (made.missing, made.files) == ([lost], 2)
    assert (tmp_path / "backup" / "artifacts" / kept / "manifest.json").exists()


def test_without_its_second_look_a_back_up_would_lack_files(
    engine: Engine, ledger: Ledger, store: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work.claim_new(ledger)
    _stored(ledger, store, job, STEP, tmp_path)
    take = backup._Copy.take

    def take_and_go_on(self: Any, *given: Any) -> set[str]:
        found = take(self, *given)
        if len(self._found) == 1:
            _stored(ledger, store, job, 2 * STEP, tmp_path)
        return found

    monkeypatch.setattr(backup._Copy, "take", take_and_go_on)
    assert back_up(engine, store, tmp_path / "backup").files == 4
    monkeypatch.setattr(backup._Copy, "lacks", lambda self, named: set() if self._found else named)
    assert back_up(engine, store, tmp_path / "other").files < 6


def test_a_back_up_that_broke_off_is_refused_and_goes_on_where_it_was(
    engine: Engine, ledger: Ledger, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    job = work.claim_new(ledger)
    _stored(ledger, store, job, STEP, tmp_path)
    folder = tmp_path / "backup"
    back_up(engine, store, folder)
    (folder / "backup.json").unlink()
    with pytest.raises(BackupRefused, match=r"is no whole back-up: it has no backup\.json"):
        restore(other("sqlite"), store, folder)
    model = next((folder / "artifacts").rglob("model.safetensors"))
    before = model.stat().st_mtime_ns
    assert back_up(engine, store, folder).files == 2
    assert model.stat().st_mtime_ns == before
    with pytest.raises(BackupRefused, match="holds a back-up already; choose another folder"):
        back_up(engine, store, folder)


def test_a_damaged_back_up_is_refused_before_anything_is_written(
    engine: Engine, ledger: Ledger, store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    work.submit(ledger)
    back_up(engine, store, tmp_path / "backup")
    file = tmp_path / "backup" / "tables" / "events.jsonl.gz"
    with gzip.open(file, "at") as lines:
        lines.write("[]\n")
    restored = other("sqlite")
    with pytest.raises(BackupRefused, match=r"events\.jsonl\.gz is not as it was written"):
        restore(restored, store, tmp_path / "backup")
    with restored.connect() as connection:
        assert not connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'jobs'")).first()


def test_a_database_with_a_row_takes_no_back_up(
    engine: Engine, ledger: Ledger, store: Artifacts, tmp_path: Path
) -> None:
    work.submit(ledger)
    back_up(engine, store, tmp_path / "backup")
    before = work.rows(engine)
    with pytest.raises(BackupRefused, match="the database has rows, in demands for one"):
        restore(engine, store, tmp_path / "backup")
    assert work.rows(engine) == before


def test_rows_of_an_older_version_are_brought_up_to_date(
    store: Artifacts, other: Callable[[str], Engine], tmp_path: Path
) -> None:
    new, old, restored, folder = other("sqlite"), other("sqlite"), other("sqlite"), tmp_path / "backup"
    migrate(new)
    _fill(new)
    migrate(old, "0008")
    made = back_up(new, store, folder)
    _write_as_of(old, folder)
    assert restore(restored, store, folder).rows == made.rows - 5, "no blocks of curves, nothing of a scheduler"
    assert is_current(restored)
    with restored.connect() as connection:
        assert connection.execute(text("SELECT tenant FROM checkpoints")).scalar() == "same", "migrated with its rows"


def test_one_of_a_later_version_is_refused(store: Artifacts, other: Callable[[str], Engine], tmp_path: Path) -> None:
    empty = other("sqlite")
    migrate(empty)
    back_up(empty, store, tmp_path / "backup")
    said = json.loads((tmp_path / "backup" / "backup.json").read_text())
    (tmp_path / "backup" / "backup.json").write_text(json.dumps({**said, "revision": "9999"}))
    with pytest.raises(BackupRefused, match="was made by another version, of tables 9999"):
        restore(other("sqlite"), store, tmp_path / "backup")


def test_the_commands_say_what_they_did_and_what_would_do(
    engine: Engine, ledger: Ledger, store: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work.claim_new(ledger)
    _stored(ledger, store, job, STEP, tmp_path)
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("ARTIFACTS_URL", (tmp_path / "store").as_uri())
    made = CliRunner().invoke(main, ["backup", str(tmp_path / "backup")])
    assert made.exit_code == 0
    assert "2 files of" in made.stdout
    refused = CliRunner().invoke(main, ["restore", str(tmp_path / "backup")])
    assert refused.exit_code == 1
    assert "the database has rows, in abilities for one" in refused.output
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty' / 'acmix.db'}")
    put = CliRunner().invoke(main, ["restore", str(tmp_path / "backup")])
    assert put.exit_code == 0, put.output
    assert "were restored" in put.stdout


def test_a_back_up_can_be_read_by_its_owner_alone(engine: Engine, store: Artifacts, tmp_path: Path) -> None:
    back_up(engine, store, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0


def _fill(engine: Engine) -> None:
    """A row in every table, with a value in every column."""
    with writing(engine).begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(insert(table).values({column.name: _value(column) for column in table.columns}))


def _write_as_of(old: Engine, folder: Path) -> None:
    """Leave out of a back-up what a database of an older version has no column for."""
    said = json.loads((folder / "backup.json").read_text())
    with old.connect() as connection:
        said["revision"] = revision_of(connection)
    there = inspect(old).get_table_names()
    said["tables"] = {table: told for table, told in said["tables"].items() if table in there}
    for table in said["tables"]:
        kept = {column["name"] for column in inspect(old).get_columns(table)}
        file = folder / "tables" / f"{table}.jsonl.gz"
        with gzip.open(file, "rt") as lines:
            names, *rows = map(json.loads, lines)
        places = [place for place, name in enumerate(names) if name in kept]
        with gzip.open(file, "wt") as lines:
            lines.writelines(f"{json.dumps([row[place] for place in places])}\n" for row in (names, *rows))
        said["tables"][table]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "backup.json").write_text(json.dumps(said))


def _value(column: Column[Any]) -> Any:
    """Texts are alike, so that what points to another row finds it."""
    for kind, value in (
        (UtcDateTime, datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)),
        (LargeBinary, bytes(range(256))),
        (Boolean, True),
        (Integer, 7),
        (Float, 0.1 + 0.2),
        (JSON, {"text": "ä\n\u2028", "number": 1e-300, "list": [None, True]}),
    ):
        if isinstance(column.type, kind):
            return value
    return TEXTS.get((column.table.name, column.name), "same")


def _stored(ledger: Ledger, store: Artifacts, job: Job, step: int, scratch: Path, keep_latest: int = 100) -> str:
    """Commit a checkpoint with files; what retention drops goes. Its key."""
    folder = scratch / "scratch" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"%d" % step * 1000)
    manifest.write(folder, ["model.safetensors"])
    key = f"jobs/{job.id}/checkpoints/step-{step}"
    store.put_folder(key, folder)
    _, removed = work.save(ledger, job, step, key=key, keep_best=0, keep_latest=keep_latest)
    for gone in removed:
        store.delete_prefix(gone.key)
    return key
