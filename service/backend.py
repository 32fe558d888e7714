"""What the routes stand on: the store's parts, opened once by the app and handed to each request."""

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy import Engine

from service.settings import Settings
from service.store.artifacts import Artifacts
from service.store.database import connect
from service.store.errors import CheckpointNotFound, JobNotFound
from service.store.ledger import Ledger
from service.store.queue import Queue
from service.store.reading import Reader

ULID = "[0-9A-HJKMNP-TV-Z]{26}"


@dataclass(frozen=True)
class Backend:
    """The ledger, the files and the broker of one deployment."""

    settings: Settings
    engine: Engine
    ledger: Ledger
    reader: Reader
    artifacts: Artifacts
    queue: Queue

    def close(self) -> None:
        self.queue.close()
        self.engine.dispose()


def open_backend(settings: Settings) -> Backend:
    """Nothing is connected yet: what cannot be reached answers 503 when it is asked for."""
    engine = connect(settings.database_url)
    return Backend(
        settings=settings,
        engine=engine,
        ledger=Ledger(
            engine,
            lease_seconds=settings.lease_seconds,
            max_failures=settings.max_failures,
            max_losses=settings.max_losses,
        ),
        reader=Reader(engine),
        artifacts=Artifacts(settings.artifacts_url),
        queue=Queue(settings.broker_url),
    )


def of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


def _job_id(job_id: Annotated[str, Path(examples=["job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])]) -> str:
    """An id that cannot be one is not looked up."""
    if not re.fullmatch(f"job_{ULID}", job_id):
        raise JobNotFound(job_id)
    return job_id


def _checkpoint_id(checkpoint_id: Annotated[str, Path(examples=["ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])]) -> str:
    if not re.fullmatch(f"[a-z]{{1,10}}_{ULID}", checkpoint_id):
        raise CheckpointNotFound(checkpoint_id)
    return checkpoint_id


Store = Annotated[Backend, Depends(of)]
JobId = Annotated[str, Depends(_job_id)]
CheckpointId = Annotated[str, Depends(_checkpoint_id)]
