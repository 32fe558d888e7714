"""What webhooks are to be told, written in the transaction in which it comes true: no end of a job goes untold."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from service.store.ids import new_id
from service.store.rows import Delivery, Job, read
from service.store.tables import deliveries, webhooks

TEST_TYPE = "webhook.test"
LISTENING = (
    select(webhooks.c.id, webhooks.c.types)
    .where(webhooks.c.tenant == bindparam("tenant"), webhooks.c.disabled_at.is_(None))
    .order_by(webhooks.c.id)
    .with_for_update(read=True, key_share=True)
)


def tell(connection: Connection, job: Job, now: datetime) -> None:
    """The status that a job has taken on, by its last event, to whoever asked to be told."""
    kind = f"job.{job.status}"
    # Held until all of this is committed: one that is being deleted meanwhile would take the job's end along.
    for row in connection.execute(LISTENING, {"tenant": job.tenant}).all():
        if kind in row.types:
            enqueue(connection, row.id, kind, now, _told(job), job=job.id)


def enqueue(
    connection: Connection, webhook_id: str, kind: str, now: datetime, data: Mapping[str, Any], job: str | None = None
) -> Delivery:
    """A message that is due at once. Its body is what will be signed, to the last byte."""
    message = {"type": kind, "timestamp": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}", "data": data}
    row = {
        "id": new_id("dlv"),
        "webhook": webhook_id,
        "job": job,
        "type": kind,
        "body": json.dumps(message, separators=(",", ":"), allow_nan=False),
        "status": "pending",
        "attempts": 0,
        "claims": 0,
        "not_before": now,
        "created_at": now,
    }
    inserted = insert(deliveries).values(**row).returning(*deliveries.c)
    return read(Delivery, connection.execute(inserted).mappings().one())


def _told(job: Job) -> dict[str, Any]:
    return {
        "job": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "status_reason": job.status_reason,
        "attempt": job.attempt,
        "event": job.last_event,
        "metadata": job.metadata,
    }
