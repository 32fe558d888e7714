"""Reads of the store: lists, pages and the parts of a job. Filtered and cut in SQL."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, null, select

from acmix.catalog import Catalog
from service.store import _series, _sources, _told, _waits, _workers
from service.store._checkpoints import NEWEST_FIRST
from service.store._menus import Menus
from service.store.database import clock, reading
from service.store.errors import (
    CheckpointNotFound,
    DatasetNotFound,
    JobNotFound,
    WebhookNotFound,
    WeightsNotFound,
    WorkerNotFound,
)
from service.store.rows import (
    Attempt,
    Checkpoint,
    Dataset,
    DatasetPart,
    Delivery,
    Job,
    Json,
    LayerTrace,
    Menu,
    Page,
    Series,
    Status,
    StoredEvent,
    ToldJob,
    Wait,
    Webhook,
    Weights,
    Worker,
    read,
)
from service.store.scope import Scoped
from service.store.tables import (
    attempts,
    checkpoints,
    dataset_parts,
    datasets,
    deliveries,
    evaluations,
    events,
    jobs,
    log_lines,
    webhooks,
    weights,
    workers,
)

DAY_SECONDS = 86_400
SEEN_WITHIN_DAYS = 7.0  # a worker whose menu is known
T = TypeVar("T")
Listed = TypeVar("Listed", ToldJob, Weights, Dataset, Webhook, Delivery)


class Reader(Scoped):
    """Reads of the API, the worker and the housekeeper. Lists of an unknown job are empty."""

    def __init__(self, engine: Engine) -> None:
        self._engine = reading(engine)
        self._menus = Menus()

    def ping(self) -> None:
        """Raises if the database does not answer, or has no tables."""
        with self._engine.connect() as connection:
            connection.execute(select(jobs.c.id).limit(1))

    def now(self) -> datetime:
        """What time it is, by the database's clock."""
        with self._engine.connect() as connection:
            return clock(connection)

    # Jobs

    def job(self, job_id: str) -> Job:
        """JobNotFound."""
        found = self._all(Job, select(jobs).where(jobs.c.id == job_id, self._mine(jobs)))
        if not found:
            raise JobNotFound(job_id)
        return found[0]

    def jobs(
        self,
        limit: int = 20,
        after: str | None = None,
        status: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[ToldJob]:
        """Newest first; those whose fields and labels are all as given."""
        asked = {"tenant": self._tenant, "status": status, "kind": kind, "name": name, "after": after}
        given = {key: value for key, value in asked.items() if value is not None}
        labels: dict[str, str] = {}
        for number, (key, value) in enumerate((metadata or {}).items()):
            labels |= {f"key_{number}": key, f"value_{number}": value}
        wanted = _told.newest(tuple(given), len(metadata or {}))
        return self._page_told(wanted, limit, {**given, **labels})

    def queue(self, limit: int = 20, after: str | None = None) -> Page[ToldJob]:
        """Queued jobs in the fair order, those held back by a backoff or a limit too.

        JobNotFound if `after` is gone; behind one that waits no more there is nothing.
        """
        queue = _waits.in_fair_order(self._tenant).cte("queue")
        wanted = select(*_told.COLUMNS).join(queue, queue.c.id == jobs.c.id)
        if after:
            self.job(after)
            wanted = wanted.where(_waits.behind(queue, after))
        return self._page_told(wanted.order_by(*_waits.order_of(queue)).limit(_told.LIMIT), limit)

    def waits(self, job_ids: Sequence[str]) -> dict[str, Wait]:
        """Why queued jobs wait, and until when; those that wait no more are left out."""
        with self._engine.connect() as connection:
            return _waits.of_jobs(connection, job_ids)

    def told(self, job_id: str) -> ToldJob:
        """JobNotFound."""
        with self._engine.connect() as connection:
            found = _told.one(connection, job_id, self._tenant)
        if found is None:
            raise JobNotFound(job_id)
        return found

    def position(self, job_id: str) -> int | None:
        """Where a queued job stands among its tenant's, 1 being next; None for any other."""
        return self.told(job_id).position

    # What a job said

    def last_event(self, job_id: str) -> tuple[int, Status]:
        """The number of the last event that is written, and the job's status with it; JobNotFound."""
        wanted = select(jobs.c.last_event, jobs.c.status).where(jobs.c.id == job_id, self._mine(jobs))
        with self._engine.connect() as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None:
            raise JobNotFound(job_id)
        return row.last_event, row.status

    def events(self, job_id: str, after: int = 0, types: Sequence[str] = (), limit: int = 1000) -> list[StoredEvent]:
        """In rising number, those above `after`; of all types if none is given."""
        wanted = select(events).where(events.c.job == job_id, events.c.number > after, self._my_jobs(events))
        wanted = wanted.where(events.c.type.in_(types)) if types else wanted
        return self._all(StoredEvent, wanted.order_by(events.c.number).limit(limit))

    def log_lines(
        self, job_id: str, after: int = 0, tail: int | None = None, limit: int = 1000
    ) -> list[tuple[int, str]]:
        """(number, line) above `after`, numbered from 1 over all attempts; with `tail`, the last so many of them."""
        wanted = select(log_lines.c.number, log_lines.c.line)
        wanted = wanted.where(log_lines.c.job == job_id, log_lines.c.number > after, self._my_jobs(log_lines))
        newest_first = tail is not None
        order = log_lines.c.number.desc() if newest_first else log_lines.c.number
        most = limit if tail is None else min(tail, limit)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(order).limit(most)).all()
        found = [(row.number, row.line) for row in rows]
        return found[::-1] if newest_first else found

    def evaluations(self, job_id: str) -> list[Json]:
        """Data of the evaluation events in step order, the final one last."""
        wanted = select(evaluations.c.data).where(evaluations.c.job == job_id, self._my_jobs(evaluations))
        order = (evaluations.c.final, evaluations.c.step, evaluations.c.split)
        with self._engine.connect() as connection:
            return list(connection.execute(wanted.order_by(*order)).scalars())

    def metrics(
        self,
        job_id: str,
        names: Sequence[str] = (),
        x_from: int | None = None,
        x_to: int | None = None,
        max_points: int | None = None,
    ) -> list[Series]:
        """Curves by name, cut to steps `x_from` to `x_to`, both included.

        Longer ones are thinned out to `max_points` at most, 4 at least: first, last and, of each bucket between,
        the least and the greatest value, so that no peak is lost.
        """
        with self._engine.connect() as connection:
            if not self._sees(connection, job_id):
                return []
            return _series.metrics(connection, job_id, names, x_from, x_to, max_points)

    def traces(
        self,
        job_id: str,
        layers: Sequence[str] = (),
        x_from: int | None = None,
        x_to: int | None = None,
        max_points: int | None = None,
    ) -> list[LayerTrace]:
        """What the layers that match any of the globs did, in depth order; of all layers if no glob is given.

        More than `max_points` steps are thinned out evenly, first and last kept.
        """
        with self._engine.connect() as connection:
            if not self._sees(connection, job_id):
                return []
            traces = _series.traces(connection, job_id, x_from, x_to, max_points)
        return [trace for trace in traces if not layers or any(fnmatchcase(trace.layer, glob) for glob in layers)]

    # Its attempts and checkpoints

    def attempts(self, job_id: str) -> list[Attempt]:
        """Newest first."""
        wanted = select(attempts).where(attempts.c.job == job_id, self._my_jobs(attempts))
        return self._all(Attempt, wanted.order_by(attempts.c.number.desc()))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Newest first."""
        wanted = select(checkpoints).where(checkpoints.c.job == job_id, self._my_jobs(checkpoints))
        return self._all(Checkpoint, wanted.order_by(*NEWEST_FIRST))

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """CheckpointNotFound."""
        wanted = select(checkpoints).where(checkpoints.c.id == checkpoint_id, self._my_jobs(checkpoints))
        found = self._all(Checkpoint, wanted)
        if not found:
            raise CheckpointNotFound(checkpoint_id)
        return found[0]

    # What jobs start from

    def weights(self, weights_id: str) -> Weights:
        """WeightsNotFound."""
        found = self._all(Weights, select(weights).where(weights.c.id == weights_id, self._mine(weights)))
        if not found:
            raise WeightsNotFound(weights_id)
        return found[0]

    def uploaded(self, limit: int = 20, after: str | None = None) -> Page[Weights]:
        """Uploaded weights, newest first."""
        wanted = select(weights).where(self._mine(weights)).order_by(weights.c.id.desc())
        wanted = wanted.where(weights.c.id < after) if after else wanted
        return _page(self._all(Weights, wanted.limit(limit + 1)), limit)

    def source(self, source_id: str) -> Checkpoint | Weights:
        """What `backbone.weights` names by this id; CheckpointNotFound, WeightsNotFound."""
        is_checkpoint = source_id.startswith(_sources.CHECKPOINT)
        return self.checkpoint(source_id) if is_checkpoint else self.weights(source_id)

    def needing(self, source_ids: Sequence[str]) -> Job | None:
        """A job that has not ended and starts from one of these."""
        with self._engine.connect() as connection:
            return _sources.needing(connection, source_ids)

    # Data sets of users

    def dataset(self, dataset_id: str) -> Dataset:
        """DatasetNotFound."""
        this = (datasets.c.id == dataset_id) & datasets.c.deleted_at.is_(None)
        found = self._all(Dataset, select(datasets).where(this, self._mine(datasets)))
        if not found:
            raise DatasetNotFound(dataset_id)
        return found[0]

    def datasets(
        self,
        limit: int = 20,
        after: str | None = None,
        name: str | None = None,
        task: str | None = None,
        status: str | None = None,
    ) -> Page[Dataset]:
        """Newest first, without their reports, which may be long; those whose fields are all as given."""
        columns = [column for column in datasets.c if column is not datasets.c.report]
        listed = (datasets.c.deleted_at.is_(None), self._mine(datasets))
        wanted = select(*columns, null().label("report")).where(*listed)
        for column, value in ((datasets.c.name, name), (datasets.c.task, task), (datasets.c.status, status)):
            wanted = wanted if value is None else wanted.where(column == value)
        wanted = wanted.where(datasets.c.id < after) if after else wanted
        return _page(self._all(Dataset, wanted.order_by(datasets.c.id.desc()).limit(limit + 1)), limit)

    def dataset_parts(self, dataset_id: str) -> list[DatasetPart]:
        """What is stored of its archive, from its beginning."""
        parts = select(dataset_parts).join(datasets).where(datasets.c.id == dataset_id, self._mine(datasets))
        return self._all(DatasetPart, parts.order_by(dataset_parts.c.start))

    # Webhooks

    def webhook(self, webhook_id: str) -> Webhook:
        """WebhookNotFound."""
        found = self._all(Webhook, select(webhooks).where(webhooks.c.id == webhook_id, self._mine(webhooks)))
        if not found:
            raise WebhookNotFound(webhook_id)
        return found[0]

    def webhooks(self, limit: int = 20, after: str | None = None) -> Page[Webhook]:
        """Newest first."""
        wanted = select(webhooks).where(self._mine(webhooks)).order_by(webhooks.c.id.desc())
        wanted = wanted.where(webhooks.c.id < after) if after else wanted
        return _page(self._all(Webhook, wanted.limit(limit + 1)), limit)

    def deliveries(
        self, webhook_id: str, limit: int = 20, after: str | None = None, status: str | None = None
    ) -> Page[Delivery]:
        """What a webhook was told or is to be told, newest first."""
        wanted = select(deliveries).join(webhooks).where(deliveries.c.webhook == webhook_id, self._mine(webhooks))
        wanted = wanted if status is None else wanted.where(deliveries.c.status == status)
        wanted = wanted.where(deliveries.c.id < after) if after else wanted
        return _page(self._all(Delivery, wanted.order_by(deliveries.c.id.desc()).limit(limit + 1)), limit)

    # Workers and what they can run

    def workers(self) -> list[Worker]:
        """Those alive, the longest there first."""
        with self._engine.connect() as connection:
            return self._workers(connection, _workers.those_alive())

    def worker(self, worker_id: str) -> Worker:
        """One that has not left; WorkerNotFound."""
        with self._engine.connect() as connection:
            this = select(*_workers.KNOWN).where(workers.c.id == worker_id, _workers.THERE)
            found = self._workers(connection, this)
        if not found:
            raise WorkerNotFound(worker_id)
        return found[0]

    def menu(self, seen_within_days: float = SEEN_WITHIN_DAYS) -> Menu | None:
        """What workers seen lately can run, all of them together; None while there is none."""
        with self._engine.connect() as connection:
            return self._menus.of_workers_seen(connection, DAY_SECONDS * seen_within_days)

    def catalog(self, seen_within_days: float = SEEN_WITHIN_DAYS) -> Catalog | None:
        """The union of all menus posted by workers seen lately; None while there is none."""
        found = self.menu(seen_within_days)
        return found.catalog if found else None

    def _workers(self, connection: Connection, wanted: Select[Any]) -> list[Worker]:
        rows = connection.execute(wanted).mappings().all()
        catalogs = self._menus.catalogs(connection, DAY_SECONDS * SEEN_WITHIN_DAYS)
        return _workers.told(connection, rows, catalogs, self._mine(jobs))

    def _page_told(self, wanted: Select[Any], limit: int, given: Mapping[str, Any] | None = None) -> Page[ToldJob]:
        with self._engine.connect() as connection:
            return _page(_told.page(connection, wanted, {**(given or {}), "limit": limit + 1}, self._tenant), limit)

    def _sees(self, connection: Connection, job_id: str) -> bool:
        this = select(jobs.c.id).where(jobs.c.id == job_id, self._mine(jobs))
        return connection.execute(this).first() is not None

    def _all(self, kind: type[T], wanted: Select[Any]) -> list[T]:
        with self._engine.connect() as connection:
            return [read(kind, row) for row in connection.execute(wanted).mappings()]


def _page(found: list[Listed], limit: int) -> Page[Listed]:
    """One more than `limit` was asked for, to learn whether there is more."""
    has_more = len(found) > limit
    data = found[:limit]
    return Page(data, has_more, data[-1].id if has_more else None)
