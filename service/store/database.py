"""Connections to SQLite and PostgreSQL, both first-class, and what the two say differently."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from select import POLLIN, poll
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Table,
    Text,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from service.store.tables import UtcDateTime

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

POSTGRESQL_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "jit": "off",  # it takes longer than any statement here
}
# What a URL's own parameters may say otherwise. Balancers forget a connection that is idle for some minutes; a server
# that has gone without a word is noticed within half a minute.
POSTGRESQL_CONNECTION = {
    "connect_timeout": 5,
    "application_name": "acmix",
    "keepalives_idle": 60,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
POOL = 10  # connections of a process, unless it is told another number
POOL_SECONDS = 10.0  # for one to become free; then the database counts as away
RECYCLE_SECONDS = 1800.0  # behind a name that has moved to another server, connections move too
ASK_AFTER_SECONDS = 5.0
SQLITE_BUSY_SECONDS = 30
SQLITE_SETTINGS = (f"busy_timeout = {SQLITE_BUSY_SECONDS * 1000}", "synchronous = FULL", "foreign_keys = ON")
# The database cannot be reached, is too busy or only reads: no verdict on what was asked, which may be asked again.
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
MIGRATION_LOCK = 0x61636D6978  # "acmix": the advisory lock of whoever migrates


def connect(database_url: str, *, pool: int = POOL) -> Engine:
    """The engine of a database. Transactions of `writing(engine)` are the ones that may write.

    Args:
        pool: how many connections to PostgreSQL there may be at most.
    """
    url = make_url(database_url)
    settings: dict[str, Any] = {
        "json_serializer": partial(json.dumps, allow_nan=False),
        "pool_timeout": POOL_SECONDS,
        "hide_parameters": True,  # errors are logged, and among the values are secrets
    }
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, settings)
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool,
        max_overflow=0,
        pool_recycle=RECYCLE_SECONDS,
        connect_args=_connect_args(url),
        **settings,
    )
    event.listen(engine, "checkin", _note_rest)
    event.listen(engine, "checkout", partial(_check_alive, engine))
    return engine


def reading(engine: Engine) -> Engine:
    """The same engine, for statements that only read and stand for themselves: none waits for a BEGIN before it.

    On SQLite a read is a transaction like any other, and costs no round trip.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT") if engine.dialect.name == "postgresql" else engine


def writing(engine: Engine) -> Engine:
    """The same engine, for transactions that write."""
    return engine.execution_options(writes=True)


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the tables up to date, in one transaction; of several processes that try at once, one does.

    Tables of a later version stay as they are: each adds to them only, and those before it work on.
    """
    from alembic import command  # half a second of every process's start, and few migrate

    with writing(engine).connect() as connection, _tables_replaceable(connection), connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        if (found := revision_of(connection)) is not None and not is_known(found):
            return  # a later version has been here, and may be at work
        config = _migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@contextmanager
def _tables_replaceable(connection: Connection) -> Iterator[None]:
    """SQLite alters a table by putting another in its place, and as the old one goes, rows that point to it go along.

    Foreign keys are therefore not heeded meanwhile, which can only be said outside a transaction.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def is_current(engine: Engine) -> bool:
    """Whether the tables are those that this code was written for, or of a later version, which leaves it its own."""
    with engine.connect() as connection:
        found = revision_of(connection)
    return found is not None and (found == _head() or not is_known(found))


def revision_of(connection: Connection) -> str | None:
    """Which migration the tables are at; None where there are none."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def is_known(revision: str) -> bool:
    """Whether a migration is one of this version's; one of a later version is not."""
    return any(revision == script.revision for script in _scripts().walk_revisions())


def clock(connection: Connection) -> datetime:
    """What time it is, by the database alone: no other clock has a say in leases."""
    return connection.execute(CLOCK).scalar_one()


def clock_time(*, ago_seconds: ColumnElement[float] | None = None) -> ColumnElement[datetime]:
    """What `clock` reads, or has read so long ago, once a statement: read row by row, no index could serve it."""
    time = _ClockTime() if ago_seconds is None else _ClockTime(cast(ago_seconds, Double))
    return select(time).scalar_subquery()


def one_at_a_time(connection: Connection, what: str) -> None:
    """Of transactions that do this, let one through at a time. On SQLite no two write at once anyway."""
    if connection.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def conflicting_insert(connection: Connection, table: Table) -> Any:
    """An insert that can say what is to be where the primary key is taken: both databases have it, each its own."""
    return conflicting_insert_of(connection.dialect.name, table)


def conflicting_insert_of(dialect: str, table: Table) -> Any:
    """The same of a dialect by its name, for a statement that is kept."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def insert_or_replace(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; where one of the same primary key is there, the new one takes its place."""
    if not rows:
        return
    statement = conflicting_insert(connection, table)
    keys = [column.name for column in table.primary_key]
    others = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others), list(rows))


def insert_or_replace_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """The same of many rows of plain numbers and texts, which PostgreSQL takes as one array a column."""
    if connection.dialect.name != "postgresql" or not rows:
        insert_or_replace(connection, table, rows)
        return
    connection.execute(_replacing(table), {column.name: [row[column.name] for row in rows] for column in table.c})


@cache
def _replacing(table: Table) -> Any:
    arrays = [bindparam(column.name, type_=postgresql.ARRAY(column.type)) for column in table.c]
    rows = func.unnest(*arrays).table_valued(*(column.name for column in table.c)).render_derived()
    statement = postgresql.insert(table).from_select([*table.c.keys()], select(rows))
    keys = [column.name for column in table.primary_key]
    others = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=others)


def insert_unless_there(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row; False where one of the same primary key is there, which stays as it is."""
    statement = conflicting_insert(connection, table).values(**row)
    return connection.execute(statement.on_conflict_do_nothing()).rowcount == 1


def _connect_args(url: URL) -> dict[str, Any]:
    """Nothing is prepared on the server: behind a pooler the next transaction may be another server process's."""
    ours = {name: value for name, value in POSTGRESQL_CONNECTION.items() if name not in url.query}
    settings = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_SETTINGS.items())
    given = url.query.get("options", "")
    options = f"{settings} {given if isinstance(given, str) else ' '.join(given)}".strip()
    return {**ours, "options": options, "prepare_threshold": None}


def _note_rest(_connection: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()


def _check_alive(engine: Engine, connection: Any, record: Any, _proxy: Any) -> None:
    """Before a connection of the pool is used. A server that ended it has said so, and what it said lies unread.

    One that has rested for long is asked: what lies between may have forgotten it without a word.
    """
    rests_since = record.info.get("rests_since")
    if rests_since is None:  # it is new
        return
    try:
        if time.monotonic() - rests_since >= ASK_AFTER_SECONDS or not _is_silent(connection):
            engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error:
        raise InvalidatePoolError from None


def _is_silent(connection: Any) -> bool:
    """Whether nothing has come that was not asked for."""
    waiting = poll()
    waiting.register(connection.fileno(), POLLIN)
    return not waiting.poll(0)


def among(dialect: str, column: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
    """Whether a column has one of the texts of a parameter. PostgreSQL takes them as one array, however many."""
    if dialect == "postgresql":
        return column == func.any(bindparam(parameter, type_=postgresql.ARRAY(Text)))
    return column.in_(bindparam(parameter, expanding=True))


def texts(dialect: str, parameter: str) -> Any:
    """A parameter that is a JSON array of texts, as rows of a `value`."""
    if dialect == "postgresql":
        elements = func.json_array_elements_text(cast(bindparam(parameter, type_=Text), JSON))
    else:
        elements = func.json_each(bindparam(parameter, type_=Text))
    return elements.table_valued("value")


def in_columns(
    connection: Connection, key: ColumnElement[str], columns: Sequence[ColumnElement[Any]], within: Sequence[Any]
) -> dict[str, list[list[Any]]]:
    """Rows as columns, by a key and in its order, sorted by the first. PostgreSQL sends each as one array."""
    if connection.dialect.name == "postgresql":
        arrays = [func.array_agg(postgresql.aggregate_order_by(column, columns[0])) for column in columns]
        grouped = connection.execute(select(key, *arrays).where(*within).group_by(key).order_by(key))
        return {name: list(found) for name, *found in grouped}
    rows = connection.execute(select(key, *columns).where(*within).order_by(key, columns[0])).all()
    by_key = groupby(rows, key=itemgetter(0))
    return {name: [list(column) for column in list(zip(*some, strict=True))[1:]] for name, some in by_key}


def _sqlite(url: URL, settings: Mapping[str, Any]) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise ValueError(
            f"{url} names no file; sqlite:///FOLDER/acmix.db would do: every process must see the same rows"
        )
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, **settings)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin on its own, and late
    for setting in SQLITE_SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    _write_ahead(connection)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Write a log ahead. Of those who turn it on at once, SQLite sends some away without any waiting."""
    deadline = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock at once and waits for it; one that began as a reader would fail instead."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _head() -> str | None:
    return _scripts().get_current_head()


@cache
def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_migrations())


def _migrations() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


class _ClockTime(GenericFunction[datetime]):
    """The moment itself; PostgreSQL's now() would be that of the transaction's start."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(_ClockTime, "postgresql")
def _clock_time_postgresql(element: _ClockTime, compiler: SQLCompiler, **options: Any) -> str:
    ago = "".join(f" - make_interval(secs => {compiler.process(each, **options)})" for each in element.clauses)
    return f"clock_timestamp(){ago}"


@compiles(_ClockTime, "sqlite")
def _clock_time_sqlite(element: _ClockTime, compiler: SQLCompiler, **options: Any) -> str:
    ago = "".join(f", '-' || {compiler.process(each, **options)} || ' seconds'" for each in element.clauses)
    return f"strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'{ago})"


CLOCK = select(clock_time())
