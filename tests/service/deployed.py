"""The API over a store of its own, and a worker made of the ledger's calls."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from uvicorn import Config, Server

from acmix.catalog import Catalog, Device
from service import settings
from service.app import create_app
from service.settings import Settings
from service.store.artifacts import Artifacts
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import WorkerCard
from tests.service.menu import catalog
from tests.service.work import until

SPEC: dict[str, Any] = {
    "name": "late attention",
    "metadata": {"study": "depth"},
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "layer[34].*", "mixer": {"name": "acmix", "options": {"heads": 4, "kernel_att": 7}}}],
    "dataset": {"name": "digits", "options": {}},
    "training": {"epochs": 3, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
}


@dataclass
class Deployed:
    """An API that is up, the way in, and what its workers write with."""

    app: FastAPI
    http: TestClient
    ledger: Ledger
    reader: Reader
    artifacts: Artifacts
    settings: Settings

    def enrol(self, menu: Catalog | None = None, *, gpus: int = 0) -> None:
        """A worker posts the menu."""
        cards = [Device(index=index, name="card", memory_bytes=2**34) for index in range(gpus)]
        self.ledger.enrol(WorkerCard("worker-1", "host", max(1, gpus), cards, {"acmix": "0.1"}, menu or catalog()))

    def post(self, spec: Any, **headers: str) -> Response:
        return self.http.post("/v1/jobs", json=spec, headers=headers)

    def submit(self, **changes: Any) -> dict[str, Any]:
        """A job that was taken."""
        response = self.post({**spec(), **changes})
        assert response.status_code == 201, response.text
        job: dict[str, Any] = response.json()
        return job

    def get(self, path: str, **more: Any) -> Any:
        """The JSON at a path, which must be there."""
        response = self.http.get(path, **more)
        assert response.status_code == 200, response.text
        return response.json()


def spec() -> dict[str, Any]:
    """A right spec, to be changed."""
    return copy.deepcopy(SPEC)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The URL of the app behind a real server, for what a test client cannot do: streams."""
    server = Server(Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def deployed(database_url: str, broker_url: str, folder: Path, **more: str) -> Iterator[Deployed]:
    """The API and its store; `folder` takes the files, `more` are settings."""
    environment = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "ACMIX_DATA": str(folder)}
    given = settings.load({**environment, **more})
    app = create_app(given)
    parts = app.state.backend
    with TestClient(app, raise_server_exceptions=False) as http:
        yield Deployed(app, http, parts.ledger, parts.reader, parts.artifacts, given)
