"""What the store holds, as frozen data. Field names are the tables' column names."""

import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from sqlalchemy import Column, Table

from acmix.catalog import Catalog, Device
from acmix.errors import Reason
from acmix.fleet import Machine

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Wish = Literal["cancel", "pause"]
Draining = Literal["finish", "requeue"]  # what becomes of the jobs of a worker that is to take on nothing more
Scope = Literal["jobs:read", "jobs:write", "data:read", "data:write", "admin"]
DatasetStatus = Literal["empty", "uploading", "checking", "ready", "rejected"]
EventType = Literal["job.queued", "job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled"]
DeliveryStatus = Literal["pending", "delivered", "dead"]
WaitCode = Literal["next", "busy", "reserved", "no_worker", "held_back", "tenant_limit"]
Json = dict[str, Any]
T = TypeVar("T")

SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Job:
    """A job as it stands. `gpus` is what it asked for (None: auto); `attempt` 0 was never claimed.

    `turn_at` decides whose turn it is: when it was queued, earlier by ten minutes a point of priority. `blocked_at` is
    when a worker first passed it over for want of free slots. `demand` and `slots` are None in older versions' rows.
    """

    id: str
    tenant: str
    kind: str
    name: str
    status: Status
    phase: str | None
    status_reason: Json | None
    requested: Wish | None
    spec: Json
    resolved_spec: Json
    metadata: dict[str, str]
    parent: str | None
    attempt: int
    failures: int
    losses: int
    priority: int
    gpus: int | None
    demand: str | None
    slots: int | None
    max_runtime_seconds: float | None
    created_at: datetime
    queued_at: datetime
    turn_at: datetime
    not_before: datetime | None
    blocked_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    claimed_at: datetime | None
    expected_end_at: datetime | None
    lease_expires_at: datetime | None
    worker: str | None
    devices: list[Any] | None
    versions: Json | None
    progress: Json | None
    progress_at: datetime | None
    best: Json | None
    last_event: int
    last_log_line: int
    events_pruned_at: datetime | None
    series_pruned_at: datetime | None
    request_id: str | None  # under which the logs have the request that made it


class ToldJob(NamedTuple):
    """A job as the API tells it; a tuple, since a hundred dataclasses of so many fields take a millisecond more.

    Specs, devices, versions and metadata are the JSON text that is stored. `position` is its place
    among the queued jobs of its tenant.
    """

    id: str
    kind: str
    name: str
    status: Status
    phase: str | None
    status_reason: Json | None
    requested: Wish | None
    spec: str
    resolved_spec: str
    parent: str | None
    attempt: int
    failures: int
    losses: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Json | None
    progress_at: datetime | None
    expected_end_at: datetime | None
    best: Json | None
    worker: str | None
    devices: str | None
    versions: str | None
    metadata: str
    events_pruned_at: datetime | None
    series_pruned_at: datetime | None
    position: int | None


@dataclass(frozen=True)
class Wait:
    """Why a queued job waits; `reserved` is {worker, since} of the worker that keeps its slots for it."""

    code: WaitCode
    message: str
    reserved: Json | None
    estimated_start_at: datetime | None


@dataclass(frozen=True)
class StoredEvent:
    """An event with what the ledger adds to it; numbers of a job are 1, 2, 3, ... without gaps until it is pruned."""

    number: int
    at: datetime
    attempt: int
    type: str
    message: str
    data: Json


@dataclass(frozen=True)
class Attempt:
    """One claim of a job. `resumed_from` is {attempt, step, checkpoint}, or None where it began anew."""

    job: str
    number: int
    worker: str
    host: str | None
    devices: list[Any] | None
    started_at: datetime
    ended_at: datetime | None
    heartbeat_at: datetime
    exit_code: int | None
    signal: int | None
    reason: Json | None
    resumed_from: Json | None

    @property
    def signal_name(self) -> str | None:
        """Of the signal that ended the run."""
        return None if self.signal is None else signal_name(self.signal)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole: its files lie below `key` in the artifacts, `stored_bytes` of them in all.

    `size_bytes` and `sha256` are those of its weights.
    `best`, `latest` and `created_at` are the ledger's to say: what a caller sets there is not read.
    """

    id: str
    job: str
    attempt: int
    epoch: int
    step: int
    kind: str
    metrics: dict[str, float]
    size_bytes: int
    sha256: str
    key: str
    stored_bytes: int = 0
    best: bool = False
    latest: bool = False
    created_at: datetime | None = None


@dataclass(frozen=True)
class Weights:
    """An uploaded file of weights, below `key` in the artifacts; `about` is what its own metadata says.

    `created_at` is the ledger's to say: what a caller sets there is not read.
    """

    id: str
    name: str
    sha256: str
    size_bytes: int
    tensors: int
    params: int
    about: Json | None
    key: str
    created_at: datetime | None = None


@dataclass(frozen=True)
class Tenant:
    """Who works here; None is no limit. Stored bytes are those of checkpoints, weights and archives.

    GPU hours are of a calendar month, by UTC; requests are of a minute. `share` is its part of the fleet beside the
    others' parts; None is 1.
    """

    name: str
    most_queued: int | None
    most_running: int | None
    most_stored_bytes: int | None
    most_gpu_hours: float | None
    most_requests: int | None
    share: float | None = None


@dataclass(frozen=True)
class Used:
    """What a tenant has at present, and the GPU hours of this month."""

    queued: int
    running: int
    stored_bytes: int
    gpu_hours: float


@dataclass(frozen=True)
class Key:
    """A key to the API, as far as it can be told: of the key itself only a hash is kept, and how it begins."""

    id: str
    tenant: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


@dataclass(frozen=True)
class Dataset:
    """A user's data set as it stands.

    `received_bytes` of an archive's `total_bytes` are stored, unless it lies below the data root at `path`.
    `upload_number` fences the writes of one request that uploads, `claims` those of one housekeeper that checks.
    `sha256`, `size_bytes`, `files` and `num_classes` are the content's, as `report`, what the check found, says.
    """

    id: str
    name: str
    task: str
    format: str
    options: Json
    path: str | None
    declared_sha256: str | None
    status: DatasetStatus
    received_bytes: int
    total_bytes: int | None
    upload_number: int
    upload_expires_at: datetime | None
    claims: int
    failures: int
    losses: int
    not_before: datetime | None
    lease_expires_at: datetime | None
    progress: Json | None
    status_reason: Json | None
    sha256: str | None
    size_bytes: int | None
    files: int | None
    num_classes: int | None
    report: Json | None
    created_at: datetime
    checked_at: datetime | None
    deleted_at: datetime | None


@dataclass(frozen=True)
class DatasetPart:
    """A stretch of an uploaded archive, stored under `key`; `upload` is the number of the request that brought it."""

    start: int
    size_bytes: int
    upload: int
    key: str


@dataclass(frozen=True)
class Upload:
    """A request's hold on a data set while it brings `start` and what follows; `total` is null until the end tells.

    `abandoned` is the number of an upload before it that never said how it ended.
    """

    dataset: str
    number: int
    start: int
    total: int | None
    abandoned: int | None


@dataclass(frozen=True)
class WorkerCard:
    """What a worker says of itself when it starts."""

    id: str
    host: str
    slots: int
    devices: Sequence[Device]
    versions: Mapping[str, Any]
    catalog: Catalog
    labels: Sequence[str] = ()
    cores: int = 1


@dataclass(frozen=True)
class Worker:
    """A worker as last heard of; `busy` counts its slots at work.

    One that is `draining` takes on nothing more: its jobs are to finish, or to be queued again for others.
    """

    id: str
    host: str
    slots: int
    busy: int
    devices: list[Device]
    versions: Json
    labels: list[str]
    cores: int | None
    load: Json | None
    draining: Draining | None
    catalog: Catalog
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True)
class Menu:
    """What several workers can run, all of them together, and what each of them offers."""

    catalog: Catalog
    fleet: Sequence[Machine]


@dataclass(frozen=True)
class Claim:
    """A job that is now the worker's, and the checkpoint it goes on from; attempts before it ran for `ran_seconds`.

    `slots` are the numbers of those that it was given.
    """

    job: Job
    resume: Checkpoint | None
    ran_seconds: float
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, as its supervisor saw it."""

    kind: Literal["succeeded", "failed", "lost", "drained", "cancelled", "paused"]
    reason: Reason | None = None
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list; `next` is what `after` takes for the following one."""

    data: list[T]
    has_more: bool
    next: str | None


@dataclass(frozen=True)
class Series:
    """One metric over optimizer steps."""

    name: str
    step: list[int]
    value: list[float]


@dataclass(frozen=True)
class LayerTrace:
    """What one ACmix layer did over optimizer steps; `depth` counts layers from 0 at the input."""

    layer: str
    depth: int
    step: list[int]
    alpha: list[float]
    beta: list[float]
    attention_rms: list[float]
    convolution_rms: list[float]


@dataclass(frozen=True)
class Asked:
    """A request that a housekeeper answers; once answered, with `answer`, its own words, or `failure`, a reason.

    `claims` counts how often a housekeeper took it on: the number that fences what it writes.
    """

    id: str
    request: Json
    requested_at: datetime
    claims: int
    failures: int
    lease_expires_at: datetime | None
    answered_at: datetime | None
    library: str | None
    answer: Json | None
    failure: Json | None


@dataclass(frozen=True)
class Webhook:
    """Whom to tell of jobs. `types` are those of the events that it wants; a disabled one is told nothing more."""

    id: str
    tenant: str
    name: str
    url: str
    types: list[EventType]
    secret: str = field(repr=False)  # what is printed ends up in logs
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None


@dataclass(frozen=True)
class Delivery:
    """One event for one webhook. Its id is the message's, the same whenever it is sent again.

    `attempts` counts those since it was last asked for; `claims` all there ever were: the number that fences writes.
    """

    id: str
    webhook: str
    job: str | None
    type: str
    body: str
    status: DeliveryStatus
    attempts: int
    claims: int
    not_before: datetime
    lease_expires_at: datetime | None
    response_status: int | None
    error: str | None
    created_at: datetime
    attempted_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class Dispatch:
    """A claimed delivery and what it takes to send it; `attempted_at` is the time by the database's clock."""

    id: str
    webhook: str
    url: str
    secret: str = field(repr=False)
    body: str
    attempts: int
    claims: int
    attempted_at: datetime


def columns(kind: type[Any], table: Table) -> list[Column[Any]]:
    """Those of a table that `kind`, a dataclass of this module, names."""
    return [table.c[each.name] for each in fields(kind)]


def read(kind: type[T], row: Mapping[Any, Any]) -> T:
    """The row as `kind`, a dataclass of this module; columns it does not name are left out."""
    return kind(**{each.name: row[each.name] for each in fields(kind)})  # type: ignore[arg-type]  # T is a dataclass


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    return signals.Signals(number).name if number in list(signals.Signals) else f"signal {number}"


def storable(text: str) -> str:
    """Text that PostgreSQL takes: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
