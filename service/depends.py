"""What a route may ask for: its caller, the store as that one's tenant sees it, and ids from the path.

None of it waits for anything; functions that are not async would each be sent to a thread and waited for.
"""

import re
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from acmix.spec import ULID
from service.access import Access
from service.store.backend import Backend
from service.store.errors import (
    CheckpointNotFound,
    DatasetNotFound,
    DeliveryNotFound,
    JobNotFound,
    WebhookNotFound,
    WeightsNotFound,
    WorkerNotFound,
)

WORKER_ID = "[A-Za-z0-9._-]{1,300}"  # the name of its machine is in it
_WORKER = Path(examples=["wk_node-1_5fb5f7d5"], json_schema_extra={"pattern": f"^{WORKER_ID}$"})


async def _access(request: Request) -> Access:
    access: Access = request.state.access
    return access


async def _store(request: Request) -> Backend:
    """Of the caller's tenant; no route has another."""
    return (await _whole(request)).of((await _access(request)).tenant)


async def _whole(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


def _id(prefix: str) -> Any:
    """An id in a path: what none can be is absent, a 404, and no fault of form."""
    documented = {"pattern": f"^{prefix}_{ULID}$"}
    return Path(examples=[f"{prefix}_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"], json_schema_extra=documented)


async def _job_id(job_id: Annotated[str, _id("job")]) -> str:
    """An id that cannot be one is not looked up."""
    if not re.fullmatch(f"job_{ULID}", job_id):
        raise JobNotFound(job_id)
    return job_id


async def _checkpoint_id(checkpoint_id: Annotated[str, _id("ckpt")]) -> str:
    if not re.fullmatch(f"[a-z]{{1,10}}_{ULID}", checkpoint_id):
        raise CheckpointNotFound(checkpoint_id)
    return checkpoint_id


async def _weights_id(weights_id: Annotated[str, _id("wts")]) -> str:
    if not re.fullmatch(f"wts_{ULID}", weights_id):
        raise WeightsNotFound(weights_id)
    return weights_id


async def _dataset_id(dataset_id: Annotated[str, _id("ds")]) -> str:
    if not re.fullmatch(f"ds_{ULID}", dataset_id):
        raise DatasetNotFound(dataset_id)
    return dataset_id


async def _worker_id(worker_id: Annotated[str, _WORKER]) -> str:
    if not re.fullmatch(WORKER_ID, worker_id):
        raise WorkerNotFound(worker_id)
    return worker_id


async def _webhook_id(webhook_id: Annotated[str, _id("whk")]) -> str:
    if not re.fullmatch(f"whk_{ULID}", webhook_id):
        raise WebhookNotFound(webhook_id)
    return webhook_id


async def _delivery_id(delivery_id: Annotated[str, _id("dlv")]) -> str:
    if not re.fullmatch(f"dlv_{ULID}", delivery_id):
        raise DeliveryNotFound(delivery_id)
    return delivery_id


Store = Annotated[Backend, Depends(_store)]
Deployment = Annotated[Backend, Depends(_whole)]  # for the routes that tell nothing of anybody
Caller = Annotated[Access, Depends(_access)]
JobId = Annotated[str, Depends(_job_id)]
CheckpointId = Annotated[str, Depends(_checkpoint_id)]
WeightsId = Annotated[str, Depends(_weights_id)]
DatasetId = Annotated[str, Depends(_dataset_id)]
WorkerId = Annotated[str, Depends(_worker_id)]
WebhookId = Annotated[str, Depends(_webhook_id)]
DeliveryId = Annotated[str, Depends(_delivery_id)]
