from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from service.store.database import _migrations, connect, is_current, migrate, writing
from service.store.tables import metadata
from tests.service.work import at_once


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


def test_downgrading_leaves_no_table(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine)
    with writing(engine).begin() as connection:
        config = _migrations()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    engine.dispose()
