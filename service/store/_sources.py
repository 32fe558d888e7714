"""What jobs start from, checkpoints of other jobs and uploaded weights: whether it is there, and who needs it."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Table, select

from service.store.errors import CheckpointNotFound, WeightsNeeded, WeightsNotFound
from service.store.rows import Job, Json, read
from service.store.states import ENDED, STATUSES
from service.store.tables import checkpoints, jobs, weights

CHECKPOINT = "ckpt_"


def lock(connection: Connection, resolved_spec: Json) -> None:
    """Hold on to what a spec starts from until the transaction ends; CheckpointNotFound, WeightsNotFound."""
    source = resolved_spec["backbone"].get("weights")
    if source in {None, "timm"}:
        return
    table = checkpoints if source.startswith(CHECKPOINT) else weights
    found = connection.execute(select(table.c.id).where(table.c.id == source).with_for_update(read=True)).first()
    if found is None:
        raise CheckpointNotFound(source) if table is checkpoints else WeightsNotFound(source)


def needing(connection: Connection, ids: Sequence[str]) -> Job | None:
    """A job that has not ended and starts from one of these."""
    not_ended = jobs.c.status.in_([status for status in STATUSES if status not in ENDED])
    source = jobs.c.resolved_spec[("backbone", "weights")].as_string()
    wanted = select(jobs).where(not_ended, source.in_(ids)).order_by(jobs.c.id).limit(1)
    row = connection.execute(wanted).mappings().one_or_none()
    return read(Job, row) if row else None


def lock_unneeded(connection: Connection, table: Table, condition: ColumnElement[bool]) -> None:
    """Lock what is to be deleted, so that no job comes to need it; WeightsNeeded where one does already."""
    ids = connection.execute(select(table.c.id).where(condition).with_for_update()).scalars().all()
    if job := needing(connection, ids):
        raise WeightsNeeded(job)
