"""What the API answers of workers: what each of them has, how it fares, and which could run a job."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from acmix.fleet import Demand, Machine, unmet
from service.answers import Answer
from service.store import rows
from service.store.rows import Draining


class WorkerDevice(Answer):
    """A GPU of a worker, or a part of a divided one (MIG); what the driver does not tell is null."""

    index: int = Field(description="among those of its worker")
    name: str = Field(examples=["NVIDIA A100-SXM4-80GB"])
    memory_bytes: int
    uuid: str | None = Field(examples=["GPU-5fb5f7d5-7a3f-3f1e-9f9e-1c8f6b3f2a10"])
    memory_used_bytes: int | None = Field(None, description="by whomever")
    utilization: float | None = Field(None, description="part of the last moment in which it was at work, 0 to 1")
    temperature_celsius: int | None = None
    jobs: list[str] = Field([], description="that hold it; those of other tenants are left out")
    put_aside: str | None = Field(None, description="why it is given to no job now; null where it is well")


class WorkerCpu(Answer):
    load: float | None = Field(description="threads at work or waiting for it, on average over a minute")
    memory_used_bytes: int | None
    memory_bytes: int | None


class Worker(Answer):
    """A worker that is there, as it told of itself within the last 15 s or so."""

    id: str = Field(examples=["wk_node-1_5fb5f7d5"])
    host: str
    labels: list[str] = Field(description="what jobs can ask for by `resources.labels`")
    cores: int | None = Field(description="of the CPU, that it may use")
    slots: int
    busy: int = Field(description="slots that jobs hold")
    devices: list[WorkerDevice]
    cpu: WorkerCpu | None = Field(description="null until its first sign of life")
    versions: dict[str, Any]
    draining: Draining | None = Field(description="what becomes of its jobs, where it is to take on nothing more")
    started_at: datetime
    seen_at: datetime


class PlannedWorker(Answer):
    """Whether a worker could run a job, and how many of its slots are free now."""

    id: str
    host: str
    can_run: bool = Field(description="now or once it has slots free")
    why: str | None = Field(description="why not", examples=["its GPUs are no A100"])
    free_slots: int


def worker_answer(worker: rows.Worker) -> Worker:
    loaded = {device["index"]: device for device in (worker.load or {}).get("devices", ())}
    devices = [{**device.model_dump(), **loaded.get(device.index, {})} for device in worker.devices]
    cpu = (worker.load or {}).get("cpu")
    told = {name: getattr(worker, name) for name in Worker.model_fields if name not in ("devices", "cpu")}
    return Worker.model_validate({**told, "devices": devices, "cpu": cpu})


def for_plan(demand: Demand, workers: Sequence[rows.Worker]) -> list[PlannedWorker]:
    """Of each worker, whether it could run a job that demands this."""
    return [_planned(demand, worker) for worker in workers]


def warnings(planned: Sequence[PlannedWorker]) -> Iterator[str]:
    """What somebody should know before such a job is posted."""
    if not planned:
        yield "no worker is there now to run it"
    elif not any(each.can_run for each in planned):
        whys = dict.fromkeys(each.why for each in planned if each.why)
        yield f"no worker that is there now could run it: {'; '.join(whys)}"


def _planned(demand: Demand, worker: rows.Worker) -> PlannedWorker:
    machine = Machine(tuple(worker.devices), frozenset(worker.labels), worker.cores or 1)
    why = unmet(demand, machine, worker.catalog)
    if why is None and worker.draining:
        why = "it is being drained and takes on nothing more"
    free_slots = 0 if worker.draining else (worker.load or {}).get("free_slots", worker.slots - worker.busy)
    return PlannedWorker(id=worker.id, host=worker.host, can_run=why is None, why=why, free_slots=free_slots)
