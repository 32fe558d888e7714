"""Who is able to run what: a worker is asked once for each demand, and its verdict is kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from acmix.fleet import Demand, demand_of
from service.store import _lanes
from service.store._lanes import Lane
from service.store.database import conflicting_insert
from service.store.rows import Json
from service.store.tables import abilities, demands, jobs

MOST_ASKED = 500  # in one statement
WRITE_DEMAND = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.demand.is_(None))


@dataclass(frozen=True)
class Offer:
    """What a worker has to give: the numbers of its free slots, of so many that it has, GPUs or not."""

    worker: str
    free: tuple[int, ...]
    slots: int
    has_gpus: bool
    can_run: Callable[[Demand, Json], bool]

    def is_able(self, demand: Demand, resolved_spec: Json) -> bool:
        """Whether it could run such a job with all of its slots free."""
        gpus = self.slots if self.has_gpus else 0
        return (demand.gpus or 0) <= gpus and self.can_run(demand, resolved_spec)


def columns_of(resolved_spec: Json) -> tuple[Demand, dict[str, Any]]:
    """What a spec demands, and what the row of its job says of it."""
    demand = demand_of(resolved_spec)
    longest = resolved_spec["resources"].get("max_runtime_seconds")
    return demand, {"demand": demand.id, "slots": demand.slots, "max_runtime_seconds": longest}


def keep(connection: Connection, now: datetime, asked: Iterable[Demand]) -> None:
    """Have these demands known; in one order, or two that write the same could wait for each other."""
    rows = {each.id: {"id": each.id, "demand": each.as_json(), "created_at": now} for each in asked}
    if rows:
        unless_there = conflicting_insert(connection, demands).on_conflict_do_nothing()
        connection.execute(unless_there, [rows[each] for each in sorted(rows)])


def judged(connection: Connection, now: datetime, offer: Offer, names: Sequence[str]) -> dict[str, list[Lane]]:
    """The lanes of these tenants, with the worker's verdict on each: it is asked for those that it never met."""
    found = _lanes.of_tenants(connection, now, offer.worker, names)
    older = [tenant for tenant, lanes in found.items() if any(lane.demand is None for lane in lanes)]
    if older:
        for tenant in older:
            _write_down(connection, now, tenant)
        found = _lanes.of_tenants(connection, now, offer.worker, names)
    lanes = [lane for its in found.values() for lane in its]
    unmet = {lane.demand: lane.head.id for lane in lanes if lane.able is None and lane.demand is not None}
    if not unmet:
        return found
    verdicts: dict[str, bool] = {}
    for some in _portions(unmet):
        verdicts |= _ask(connection, now, offer, some)
    return {
        tenant: [replace(lane, able=verdicts.get(lane.demand or "", lane.able)) for lane in its]
        for tenant, its in found.items()
    }


def forget(connection: Connection, worker_id: str) -> None:
    """It is to be asked anew: one that has just started may have another menu."""
    connection.execute(delete(abilities).where(abilities.c.worker == worker_id))


def _ask(connection: Connection, now: datetime, offer: Offer, unmet: dict[str, str]) -> dict[str, bool]:
    """Verdicts by demand, each on one job that has it."""
    wanted = select(jobs.c.demand, jobs.c.gpus, jobs.c.resolved_spec).where(jobs.c.id.in_(unmet.values()))
    specs = {row.demand: _unclaimed(row.resolved_spec, row.gpus) for row in connection.execute(wanted)}
    asked = {demand_id: demand_of(resolved_spec) for demand_id, resolved_spec in specs.items()}
    verdicts = {demand_id: offer.is_able(asked[demand_id], specs[demand_id]) for demand_id in sorted(specs)}
    keep(connection, now, (demand for demand_id, demand in asked.items() if demand.id == demand_id))
    if verdicts:
        rows = [{"worker": offer.worker, "demand": each, "able": able} for each, able in verdicts.items()]
        connection.execute(conflicting_insert(connection, abilities).on_conflict_do_nothing(), rows)
    return verdicts


def _portions(unmet: dict[str, str]) -> Iterator[dict[str, str]]:
    pairs = iter(unmet.items())
    while some := dict(islice(pairs, MOST_ASKED)):
        yield some


def _write_down(connection: Connection, now: datetime, tenant: str) -> None:
    """What jobs demand that an older version queued; one that another claim is at is left to it."""
    rows = _lanes.without_demand(connection, tenant)
    older = {row.id: columns_of(_unclaimed(row.resolved_spec, row.gpus)) for row in rows}
    keep(connection, now, (demand for demand, _ in older.values()))
    for job_id, (_, columns) in older.items():
        connection.execute(WRITE_DEMAND.values(**columns), {"job": job_id})


def _unclaimed(resolved_spec: Json, gpus: int | None) -> Json:
    """The spec as it was queued first: a claim writes into it what "auto" is there, and the next may be elsewhere."""
    return {**resolved_spec, "resources": {**resolved_spec["resources"], "gpus": "auto" if gpus is None else gpus}}
