"""A whole backend for workers, and a short script in the library's place where the subject is the process alone."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service import settings
from service.store.backend import Backend, open_backend
from service.store.ledger import Ledger
from service.store.reading import Reader
from tests.worker.receivers import certificates
from tests.worker.runs import Attempts

PRELUDE = """
import hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

parent = int(sys.argv[sys.argv.index("--tether") + 1])
folder = Path(sys.argv[sys.argv.index("--folder") + 1])

def tell(kind, /, **data):
    print(json.dumps({"type": kind, "message": kind, "data": data}), flush=True)

def sleep():
    subprocess.run(["sleep", "1000"])

def wait_for(file):
    while not Path(file).exists() and os.getppid() == parent:
        time.sleep(0.01)

def save(step):
    target = folder / "checkpoints" / f"step-{step:09d}"
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.safetensors").write_bytes(b"weights")
    file = {"size_bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    (target / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": file}}))
    tell("checkpoint", folder=target.name, epoch=1, step=step, kind="time", metrics={}, metric="val/loss", **file)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the library's place: `python -m acmix` looks for it in the working folder first."""
    package = tmp_path / "stand_in" / "acmix"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()  # without it one on PYTHONPATH would go first
    monkeypatch.chdir(package.parent)

    def write(script: str) -> None:
        (package / "__main__.py").write_text(PRELUDE + textwrap.dedent(script))

    return write


@pytest.fixture
def backend(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Backend]:
    """Graces and leases are short, so that tests are."""
    environment = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "ACMIX_DATA": str(tmp_path / "data")}
    short = {"LEASE_SECONDS": "1", "CANCEL_GRACE_SECONDS": "1", "STOP_GRACE_SECONDS": "5"}
    looks = {"ACMIX_SWEEP_SECONDS": "0.05", "ACMIX_IDLE_LOOK_SECONDS": "0.05"}
    backend = open_backend(settings.load({**environment, **short, **looks}))
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What receivers of webhooks show, and the authority that vouches for them."""
    return certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture
def attempts(backend: Backend) -> Iterator[Attempts]:
    attempts = Attempts(backend)
    yield attempts
    attempts.end_all()


@pytest.fixture
def engine(backend: Backend) -> Engine:
    return backend.engine


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    return backend.ledger


@pytest.fixture
def reader(backend: Backend) -> Reader:
    return backend.reader
