"""Workers as they are kept: they come, give signs of life, get orders, and go."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal, select, update

from acmix.catalog import Catalog, Device
from service.store.database import clock, clock_time, insert_or_replace
from service.store.errors import WorkerIsOlder, WorkerNotFound
from service.store.rows import Draining, Json, Worker, WorkerCard, read
from service.store.tables import jobs, workers

KNOWN = [column for column in workers.c if column is not workers.c.catalog]  # which is large, and kept parsed
THERE = workers.c.left_at.is_(None)
ALIVE = timedelta(seconds=90)  # since its last sign of life
USABLE = workers.c.slots - func.coalesce(workers.c.slots_aside, 0)  # slots that can be given at all


def enrol(connection: Connection, card: WorkerCard) -> None:
    """One that enrols again, after the database was away, stays under the orders that it was under."""
    now = clock(connection)
    row = {
        "id": card.id,
        "host": card.host,
        "slots": card.slots,
        "busy": 0,
        "devices": [device.model_dump(mode="json") for device in card.devices],
        "labels": list(card.labels),
        "cores": card.cores,
        "load": None,
        "slots_aside": None,
        "versions": dict(card.versions),
        "catalog": card.catalog.model_dump(mode="json"),
        "started_at": now,
        "seen_at": now,
        "left_at": None,
    }
    insert_or_replace(connection, workers, [row])


def seen(connection: Connection, worker_id: str, busy: int, aside: int, load: Json | None) -> Draining | None:
    """Note a sign of life; returns what is ordered of the worker."""
    stands = {"busy": busy, "slots_aside": aside, "load": load, "seen_at": clock(connection)}
    noted = update(workers).where(workers.c.id == worker_id).values(**stands).returning(workers.c.draining)
    ordered: Draining | None = connection.execute(noted).scalar_one_or_none()
    return ordered


def leave(connection: Connection, worker_id: str) -> None:
    now = clock(connection)
    connection.execute(update(workers).where(workers.c.id == worker_id).values(busy=0, seen_at=now, left_at=now))


def order(connection: Connection, worker_id: str, ordered: Draining | None) -> bool:
    """Drain it, or be content with it again; returns whether that changed anything.

    WorkerNotFound; WorkerIsOlder of one that would not hear of it: its version tells no cores.
    """
    this = select(workers.c.draining, workers.c.cores).where(workers.c.id == worker_id, THERE).with_for_update()
    row = connection.execute(this).one_or_none()
    if row is None:
        raise WorkerNotFound(worker_id)
    if row.cores is None:
        raise WorkerIsOlder(worker_id)
    connection.execute(update(workers).where(workers.c.id == worker_id).values(draining=ordered))
    return bool(row.draining != ordered)


def are_alive(now: datetime) -> ColumnElement[bool]:
    return and_(THERE, workers.c.seen_at >= now - ALIVE)


def are_taking_jobs(now: datetime) -> ColumnElement[bool]:
    """Those alive that nobody drains."""
    return and_(are_alive(now), workers.c.draining.is_(None))


def those_alive() -> Select[Any]:
    """The longest there first."""
    lately = workers.c.seen_at >= clock_time(ago_seconds=literal(ALIVE.total_seconds()))
    return select(*KNOWN).where(lately, THERE).order_by(workers.c.started_at, workers.c.id)


def told(
    connection: Connection,
    rows: Sequence[Mapping[Any, Any]],
    catalogs: Mapping[tuple[str, datetime], Catalog],
    is_mine: ColumnElement[bool],
) -> list[Worker]:
    """Workers as a tenant is told of them: which jobs they run is told of the tenant's own alone."""
    named = {job_id for row in rows for device in _loaded(row["load"]) for job_id in device.get("jobs", ())}
    mine: set[str] = set()
    if named:
        mine = set(connection.execute(select(jobs.c.id).where(jobs.c.id.in_(named), is_mine)).scalars())
    known = ((row, catalogs.get((row["id"], row["started_at"]))) for row in rows)
    return [_worker(row, catalog, mine) for row, catalog in known if catalog is not None]


def _worker(row: Mapping[Any, Any], catalog: Catalog, mine: set[str]) -> Worker:
    devices = [Device.model_validate(device) for device in row["devices"]]
    given = {**row, "devices": devices, "labels": row["labels"] or [], "catalog": catalog}
    if row["load"]:
        loaded = [
            {**device, "jobs": [each for each in device.get("jobs", ()) if each in mine]}
            for device in _loaded(row["load"])
        ]
        given["load"] = {**row["load"], "devices": loaded}
    return read(Worker, given)


def _loaded(load: Json | None) -> list[Json]:
    loaded: list[Json] = (load or {}).get("devices", [])
    return loaded
