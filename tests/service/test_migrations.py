from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, inspect, text

from service.store.database import _migrations, connect, is_current, migrate, writing
from service.store.reading import Reader
from service.store.tables import metadata
from tests.service.work import at_once

FIRST_IN_PLACE = "0008"  # of the first version that others are put in the place of while it is at work

OLD_JOB = """
    INSERT INTO jobs (id, kind, name, status, spec, resolved_spec, metadata, attempt, failures, losses, priority,
                      created_at, queued_at, last_event, last_log_line)
    VALUES (:id, 'train', '', 'queued', '{}', '{}', '{}', 0, 0, 0, :priority,
            '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 0, 0)
"""

OF_A_JOB = (
    "labels (job, key, value) VALUES ('job', 'study', 'depth')",
    "events (job, number, at, attempt, type, message, data)"
    " VALUES ('job', 1, '2026-01-01T00:00:00.000000Z', 0, 'status', 'queued', '{}')",
    "metric_points (job, name, step, value) VALUES ('job', 'train/loss', 1, 0.5)",
    "trace_steps (job, step, data) VALUES ('job', 1, '{}')",
    "evaluations (job, step, split, final, best, data) VALUES ('job', 1, 'val', false, true, '{}')",
    "attempts (job, number, worker, started_at, heartbeat_at)"
    " VALUES ('job', 1, 'worker', '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z')",
    "checkpoints (id, job, attempt, epoch, step, kind, metrics, size_bytes, sha256, key, best, latest, created_at)"
    " VALUES ('ckpt', 'job', 1, 1, 1, 'epoch', '{}', 1, '', '', true, true, '2026-01-01T00:00:00.000000Z')",
    "log_lines (job, number, line) VALUES ('job', 1, 'hello')",
)


def test_migrations_make_the_tables_that_the_code_names(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_is_current_once_it_is_migrated(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    assert not is_current(engine)
    migrate(engine)
    assert is_current(engine)
    engine.dispose()


def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    migrate(engine)
    assert is_current(engine)
    engine.dispose()


def test_processes_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    engines = [connect(empty_database_url) for _ in range(6)]
    at_once(*[lambda engine=engine: migrate(engine) for engine in engines])
    assert all(is_current(engine) for engine in engines)
    for engine in engines:
        engine.dispose()


def test_tables_of_a_later_version_stay_as_they_are_and_will_do(empty_database_url: str) -> None:
    """While an upgrade is rolled out, and after it was taken back: processes of before meet what came after."""
    engine = connect(empty_database_url)
    migrate(engine)
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert is_current(engine)
    migrate(engine)
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "9999"
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))
    assert not is_current(engine)
    engine.dispose()


def test_jobs_queued_before_priority_aged_keep_their_order(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, "0005")
    with writing(engine).begin() as connection:
        for name, priority in (("first", 0), ("urgent", 1), ("last", -1)):
            connection.execute(text(OLD_JOB), {"id": name, "priority": priority})
    migrate(engine)
    assert [job.id for job in Reader(engine).queue().data] == ["urgent", "first", "last"]
    engine.dispose()


def test_what_belongs_to_a_job_stays_when_its_table_is_altered(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, "0005")
    with writing(engine).begin() as connection:
        connection.execute(text(OLD_JOB), {"id": "job", "priority": 0})
        for row in OF_A_JOB:
            connection.execute(text(f"INSERT INTO {row}"))
    migrate(engine)
    with engine.connect() as connection:
        for row in OF_A_JOB:
            table = row.split()[0]
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 1, table
        assert connection.execute(text("DELETE FROM jobs")).rowcount == 1
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 0, "foreign keys are heeded again"
    engine.dispose()


def test_curves_that_were_there_before_are_summed_up(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, "0008")
    points = [{"step": step, "value": (step - 130) ** 2} for step in range(120, 140)]
    with writing(engine).begin() as connection:
        row = f"{OLD_JOB}".replace("(id,", "(id, tenant, turn_at,").replace("(:id,", "(:id, 'lab', '2026-01-01Z',")
        connection.execute(text(row), {"id": "job", "priority": 0})
        connection.execute(text("INSERT INTO metric_points VALUES ('job', 'x', :step, :value)"), points)
    migrate(engine)
    figures = "SELECT block, points, least, least_step, greatest, greatest_step FROM metric_blocks ORDER BY block"
    with engine.connect() as connection:
        found = [tuple(each) for each in connection.execute(text(figures))]
    assert found == [(0, 8, 9, 127, 100, 120), (1, 12, 0, 130, 81, 139)]
    engine.dispose()


def test_checkpoints_are_their_jobs_tenants(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, "0005")
    with writing(engine).begin() as connection:
        connection.execute(text(OLD_JOB), {"id": "job", "priority": 0})
        connection.execute(text(f"INSERT INTO {next(row for row in OF_A_JOB if row.startswith('checkpoints'))}"))
    migrate(engine, "0008")
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE jobs SET tenant = 'lab'"))
    migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT tenant FROM checkpoints")).scalar_one() == "lab"
    engine.dispose()


def test_downgrading_leaves_no_table(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    with writing(engine).begin() as connection:
        command.downgrade(_config(connection), "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    engine.dispose()


def test_the_version_before_can_work_on_with_newer_tables(empty_database_url: str) -> None:
    """An upgrade changes the tables first: all that was there stays, and what is new may be left out of an insert."""
    engine = connect(empty_database_url)
    migrate(engine, FIRST_IN_PLACE)
    before = _columns(engine)
    migrate(engine)
    after = _columns(engine)
    for table, columns in before.items():
        assert columns.keys() <= after[table].keys(), f"{table} lost a column"
        new = [after[table][name] for name in after[table].keys() - columns.keys()]
        assert all(column["nullable"] or column["default"] for column in new), f"{table} asks for more: {new}"
    engine.dispose()


def _columns(engine: Engine) -> dict[str, dict[str, Any]]:
    inspector = inspect(engine)
    return {
        table: {column["name"]: column for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }


def _config(connection: Connection) -> Config:
    config = _migrations()
    config.attributes["connection"] = connection
    return config
