"""The API over a store of its own, and a worker made of the ledger's calls."""

import copy
import threading
from collections.abc import Callable, Iterator
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
from service.store.checks import Checks
from service.store.datasets import Datasets
from service.store.ledger import Ledger
from service.store.plans import Plans
from service.store.reading import Reader
from service.store.rows import WorkerCard
from tests.service.menu import catalog
from tests.service.work import meanwhile, until

SPEC: dict[str, Any] = {
    "name": "late attention",
    "metadata": {"study": "depth"},
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "layer[34].*", "mixer": {"name": "acmix", "options": {"heads": 4, "kernel_att": 7}}}],
    "dataset": {"name": "digits", "options": {}},
    "training": {"epochs": 3, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
}
_LAYER = {"params": 9216, "macs": 589_824, "activation_bytes": 65_536}
_MODEL = {"params": 1_000_000, "macs": 20_000_000, "peak_memory_bytes": 2**28}
PLAN: dict[str, Any] = {
    "layers": [{"layer": "layer3.0.conv2", "mixer": "acmix", "before": _LAYER, "after": _LAYER, "notes": []}],
    "totals": {"before": _MODEL, "after": _MODEL},
    "warnings": ["layer3 swaps take 61 % of the activation memory for 4 % of the MACs"],
}


@dataclass
class Deployed:
    """An API that is up, the way in, and what its workers write with."""

    app: FastAPI
    http: TestClient
    ledger: Ledger
    reader: Reader
    plans: Plans
    datasets: Datasets
    checks: Checks
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

    def plan(self, body: Any) -> Response:
        return self.http.post("/v1/plans", json=body)

    @contextmanager
    def housekeeper(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Answers requests for plans while it is there; yields those that it was asked."""
        asked: list[dict[str, Any]] = []

        def answer_all() -> None:
            while plan := self.plans.claim():
                asked.append(plan.request)
                self.plans.answer(plan, answer(plan.request), library="a" * 64)

        with meanwhile(answer_all):
            yield asked

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
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def deployed(database_url: str, broker_url: str, folder: Path, **more: str) -> Iterator[Deployed]:
    """The API and its store; `folder` takes the files, `more` are settings."""
    environment = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "ACMIX_DATA": str(folder)}
    given = settings.load({**environment, **more})
    app = create_app(given)
    parts = app.state.backend
    with TestClient(app, raise_server_exceptions=False, client=("127.0.0.1", 50000)) as http:
        stores = (parts.ledger, parts.reader, parts.plans, parts.datasets, parts.checks, parts.artifacts)
        yield Deployed(app, http, *stores, given)
