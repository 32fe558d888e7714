"""What jobs start from and read: checkpoints of other jobs, uploaded weights, data sets; and who needs them."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Table, select

from service.store.errors import (
    CheckpointNotFound,
    DatasetNeeded,
    DatasetNotFound,
    DatasetNotReady,
    WeightsNeeded,
    WeightsNotFound,
)
from service.store.rows import Dataset, Job, Json, read
from service.store.scope import of_tenant, of_tenants_jobs
from service.store.states import ENDED, STATUSES
from service.store.tables import checkpoints, datasets, jobs, weights

CHECKPOINT = "ckpt_"


def lock(connection: Connection, resolved_spec: Json, tenant: str | None) -> None:
    """Hold on to what a spec starts from and reads until the transaction ends.

    Raises:
        CheckpointNotFound, WeightsNotFound, DatasetNotFound: it is not there, or another tenant's.
        DatasetNotReady: it has not been checked yet, or was rejected.
    """
    _lock_weights(connection, resolved_spec, tenant)
    _lock_dataset(connection, resolved_spec, tenant)


def are_named(resolved_spec: Json) -> bool:
    """Whether a spec starts from or reads anything that could be deleted."""
    return _weights_of(resolved_spec) is not None or _dataset_of(resolved_spec) is not None


def _weights_of(resolved_spec: Json) -> str | None:
    source: str | None = resolved_spec["backbone"].get("weights")
    return None if source == "timm" else source


def _dataset_of(resolved_spec: Json) -> str | None:
    dataset_id: str | None = resolved_spec["dataset"].get("id")
    return dataset_id


def _lock_weights(connection: Connection, resolved_spec: Json, tenant: str | None) -> None:
    source = _weights_of(resolved_spec)
    if source is None:
        return
    table = checkpoints if source.startswith(CHECKPOINT) else weights
    mine = of_tenants_jobs(checkpoints, tenant) if table is checkpoints else of_tenant(weights, tenant)
    this = select(table.c.id).where(table.c.id == source, mine)
    found = connection.execute(this.with_for_update(read=True)).first()
    if found is None:
        raise CheckpointNotFound(source) if table is checkpoints else WeightsNotFound(source)


def _lock_dataset(connection: Connection, resolved_spec: Json, tenant: str | None) -> None:
    dataset_id = _dataset_of(resolved_spec)
    if dataset_id is None:
        return
    listed = datasets.c.deleted_at.is_(None)
    named = select(datasets).where(datasets.c.id == dataset_id, listed, of_tenant(datasets, tenant))
    row = connection.execute(named.with_for_update(read=True)).mappings().one_or_none()
    if row is None:
        raise DatasetNotFound(dataset_id)
    if row["status"] != "ready":
        raise DatasetNotReady(read(Dataset, row))


def needing(connection: Connection, ids: Sequence[str]) -> Job | None:
    """A job that has not ended and starts from one of these."""
    return _first_not_ended(connection, jobs.c.resolved_spec[("backbone", "weights")].as_string().in_(ids))


def check_unread(connection: Connection, dataset_id: str) -> None:
    """DatasetNeeded where a job that has not ended reads it. With its row locked, none comes to."""
    if job := _first_not_ended(connection, jobs.c.resolved_spec[("dataset", "id")].as_string() == dataset_id):
        raise DatasetNeeded(job)


def _first_not_ended(connection: Connection, condition: ColumnElement[bool]) -> Job | None:
    """No limit: for one row alone PostgreSQL would rather walk through all jobs there ever were, in order of id."""
    not_ended = jobs.c.status.in_([status for status in STATUSES if status not in ENDED])
    wanted = select(jobs).where(not_ended, condition).order_by(jobs.c.id)
    row = connection.execute(wanted).mappings().first()
    return read(Job, row) if row else None


def lock_unneeded(connection: Connection, table: Table, condition: ColumnElement[bool]) -> None:
    """Lock what is to be deleted, so that no job comes to need it; WeightsNeeded where one does already."""
    ids = connection.execute(select(table.c.id).where(condition).with_for_update()).scalars().all()
    if job := needing(connection, ids):
        raise WeightsNeeded(job)
