from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, MetaData, Table, insert, make_url, select, text
from sqlalchemy.exc import StatementError

from acmix.events import Event
from service.store import database
from service.store.database import clock, connect, writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.tables import UtcDateTime
from tests.service.work import at_once, claim, submit, until


def test_sqlite_waits_syncs_and_keeps_its_foreign_keys(migrated_sqlite: Path) -> None:
    engine = connect(f"sqlite:///{migrated_sqlite}")
    with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        found = [connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]
    engine.dispose()
    assert found == ["wal", 2, 30_000, 1]


def test_sqlite_waits_for_others_who_make_the_same_file(tmp_path: Path) -> None:
    for number in range(100):  # one in fifty met the others at the wrong moment
        engines = [connect(f"sqlite:///{tmp_path / str(number)}.db") for _ in range(6)]
        at_once(*[engine.connect for engine in engines])
        for engine in engines:
            engine.dispose()


def test_postgresql_gives_up_on_what_takes_too_long(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    with engine.connect() as connection:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        found = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    engine.dispose()
    assert found == ["30s", "10s", "30s"]


def test_sqlite_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names no file; sqlite:///FOLDER/acmix\.db would do"):
        connect("sqlite://")


def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path}/a/b/acmix.db").dispose()
    assert (tmp_path / "a" / "b").is_dir()


def test_eight_writers_never_find_the_database_locked(engine: Engine) -> None:
    ledger = Ledger(engine)

    def work() -> None:
        for _ in range(10):
            submit(ledger)

    at_once(*[work] * 8)
    assert len(Reader(engine).jobs(limit=100).data) == 80


def test_times_come_back_as_they_went_in_whatever_their_zone(engine: Engine) -> None:
    times = Table("times", MetaData(), Column("at", UtcDateTime))
    at = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=9)))
    with writing(engine).begin() as connection:
        times.create(connection)
        connection.execute(insert(times), [{"at": at}, {"at": None}, {"at": at - timedelta(microseconds=1)}])
        found = (
            connection.execute(select(times.c.at).where(times.c.at.is_not(None)).order_by(times.c.at)).scalars().all()
        )
    assert found == [at - timedelta(microseconds=1), at]
    assert {time.tzinfo for time in found if time} == {UTC}


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(StatementError, match="has no time zone"):
        connection.execute(select(text("1")).where(Column("at", UtcDateTime) < datetime(2026, 1, 1)))


def test_the_clock_is_the_databases_and_goes_on_within_a_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        first = clock(connection)
        while clock(connection) == first:
            pass
        assert clock(connection) > first
        assert first.tzinfo is UTC


def test_what_is_not_json_is_never_stored(engine: Engine) -> None:
    ledger = Ledger(engine)
    submit(ledger)
    job = claim(ledger).job
    with pytest.raises((StatementError, ValueError), match="not JSON compliant"):
        ledger.record(job.id, 1, [Event("progress", "", {"loss": float("nan")})])
    assert Reader(engine).job(job.id) == job


def test_a_postgresql_url_needs_no_driver(postgresql_url: str) -> None:
    engine = connect(make_url(postgresql_url).set(drivername="postgresql").render_as_string(hide_password=False))
    engine.connect().close()
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("ask_after_seconds", [0.0, 3600.0])
def test_connections_that_the_server_has_ended_are_replaced_unnoticed(
    engine: Engine, administrator: Engine, ask_after_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ASK_AFTER_SECONDS", ask_after_seconds)
    reader = Reader(engine)
    at_once(*[reader.ping] * 3)
    of_this = f"FROM pg_stat_activity WHERE datname = '{engine.url.database}'"
    with administrator.connect() as connection:
        assert connection.execute(text(f"SELECT pg_terminate_backend(pid) {of_this}")).all()
        until(lambda: connection.execute(text(f"SELECT count(*) {of_this}")).scalar_one() == 0)
    at_once(*[reader.ping] * 3)
    assert submit(Ledger(engine))
