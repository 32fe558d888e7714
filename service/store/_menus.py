"""What all workers together can run: a megabyte that every job that comes asks for, and which is read once."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select

from acmix.catalog import Catalog, Device
from acmix.fleet import Machine
from service.store.database import clock_time
from service.store.rows import Menu
from service.store.tables import workers

Version = tuple[str, datetime]  # of a worker's menu, which changes with its start alone

LATELY = workers.c.seen_at >= clock_time(ago_seconds=bindparam("seconds"))
SEEN_LATELY = (
    select(workers.c.id, workers.c.started_at, workers.c.devices, workers.c.labels, workers.c.cores)
    .where(LATELY)
    .order_by(workers.c.started_at, workers.c.id)
)


class Menus:
    """Remembers those that it has read, and what came of them together."""

    def __init__(self) -> None:
        self._catalogs: dict[Version, Catalog] = {}
        self._union: tuple[list[Version], Catalog] = ([], Catalog())

    def of_workers_seen(self, connection: Connection, within_seconds: float) -> Menu | None:
        """None while there is none."""
        rows = connection.execute(SEEN_LATELY, {"seconds": within_seconds}).all()
        if not rows:
            return None
        versions = [(row.id, row.started_at) for row in rows]
        return Menu(self._united(connection, versions, within_seconds), [_machine(row) for row in rows])

    def catalogs(self, connection: Connection, within_seconds: float) -> Mapping[Version, Catalog]:
        """Of each worker seen within so long."""
        self.of_workers_seen(connection, within_seconds)
        return self._catalogs

    def _united(self, connection: Connection, versions: list[Version], within_seconds: float) -> Catalog:
        known, union = self._union
        if known != versions:
            self._catalogs = self._read(connection, versions, within_seconds)
            union = Catalog.union([self._catalogs[each] for each in versions if each in self._catalogs])
            self._union = (versions, union)
        return union

    def _read(self, connection: Connection, versions: list[Version], within_seconds: float) -> dict[Version, Catalog]:
        """Those catalogs, of which the unknown ones are read; one replaced at this very moment may be missing."""
        found = {each: self._catalogs[each] for each in versions if each in self._catalogs}
        unread = [worker_id for worker_id, started_at in versions if (worker_id, started_at) not in found]
        if unread:
            columns = (workers.c.id, workers.c.started_at, workers.c.catalog)
            wanted = select(*columns).where(LATELY, workers.c.id.in_(unread))
            for row in connection.execute(wanted, {"seconds": within_seconds}):
                found[row.id, row.started_at] = Catalog.model_validate(row.catalog)
        return found


def _machine(row: Any) -> Machine:
    devices = tuple(Device.model_validate(device) for device in row.devices)
    return Machine(devices, frozenset(row.labels or ()), row.cores or 1)
