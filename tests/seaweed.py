"""A real S3 server of this machine: SeaweedFS from its wheel, which can be stopped, hung and started again."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service import settings
from service.settings import S3
from service.store.artifacts import Artifacts
from service.store.errors import ArtifactsAway
from tests.service.work import until

BUCKET = "artifacts"
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readers-secret"}
IDENTITIES = {
    "identities": [
        {
            "name": "acmix",
            "credentials": [{"accessKey": "acmix", "secretKey": "acmix-secret"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": "reader", "secretKey": "readers-secret"}],
            "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"],
        },
    ]
}
SERVERS = ("master", "volume", "filer", "s3", "admin")
OFF = ("master.telemetry=false", "admin.ui=false", "webdav=false", "s3.port.iceberg=0", "s3.port.lance=0")


@dataclass
class SeaweedFS:
    """One server with one bucket. `start` returns once it takes files; its address and files outlive `stop`."""

    folder: Path
    certificates: Path | None = None
    ports: dict[str, int] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.ports['s3.port.https']}" if self.certificates else self.http_endpoint

    @property
    def http_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What the service is told of it, but for ARTIFACTS_URL."""
        keys = {"AWS_ACCESS_KEY_ID": "acmix", "AWS_SECRET_ACCESS_KEY": "acmix-secret"}
        how = {"AWS_CA_BUNDLE": str(self.certificates / "authority.pem")} if self.certificates else {}
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "" if how else "true", **how, **keys}

    def s3(self, **changes: str) -> S3:
        return settings.load({**self.environment, **changes}).s3

    def artifacts(self, prefix: str, **changes: str) -> Artifacts:
        return Artifacts(f"s3://{BUCKET}/{prefix}", self.s3(**changes))

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        names = [f"{server}.port{kind}" for server in SERVERS for kind in ("", ".grpc")]
        names += ["s3.port.https"] if self.certificates else []
        self.ports = self.ports or _free_ports(names)
        identities = self.folder / "identities.json"
        identities.write_text(json.dumps(IDENTITIES))
        options = [f"dir={self.folder}", "ip=127.0.0.1", "ip.bind=127.0.0.1", f"s3.config={identities}", *OFF]
        options += [
            f"bucket={BUCKET}",
            "s3.autoCreateBucket=false",
            *(f"{name}={at}" for name, at in self.ports.items()),
        ]
        options += [f"{server}.localSocket={self.folder}/{server}.sock" for server in ("s3", "filer")]
        if self.certificates:
            options += [f"s3.cert.file={self.certificates}/server.pem", f"s3.key.file={self.certificates}/server.key"]
        weed = Path(sys.executable).parent / "weed"
        with (self.folder / "log").open("ab") as log:
            command = [str(weed), "-logtostderr", "mini", *(f"-{option}" for option in options)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._takes_files, seconds=60)

    def stop(self) -> None:
        """Its grace is long; what is written survives a kill."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def down(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _takes_files(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            probe = self.artifacts("probe")
            probe.delete_prefix("probe")
            with (self.folder / "identities.json").open("rb") as file:
                probe.put_file("probe/file", file)
        except ArtifactsAway:
            return False
        return True


def _free_ports(names: Sequence[str]) -> dict[str, int]:
    """One each; all are held until the last is found, so that none comes twice."""
    with ExitStack() as held:
        listeners = {name: held.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        return {name: listener.getsockname()[1] for name, listener in listeners.items()}
