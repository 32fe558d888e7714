"""A job that comes in by one statement of PostgreSQL: what is asked of it and written for it, in one round trip.

Where something has to be held meanwhile, a limit of its tenant, a webhook that is to be told, or what it starts from,
nothing is written, and the ledger goes its long way, as it always does on SQLite.
"""

import json
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any

from sqlalchemy import Connection, text

from service.store.rows import ToldJob
from service.store.states import AGING_SECONDS

TEXTS = ("spec", "resolved_spec", "metadata")
GIVEN = (
    *("id", "tenant", "kind", "name", "status", *TEXTS, "parent", "attempt", "failures", "losses", "priority", "gpus"),
    *("demand", "slots", "max_runtime_seconds"),
    *("last_event", "last_log_line", "idempotency_key", "body_sha256", "request_id"),
)
EVENT = json.dumps({"status": "queued", "reason": None})
ADD = text(
    f"""
    WITH moment AS (SELECT clock_timestamp() AS now),
    job AS (
        INSERT INTO jobs ({", ".join(GIVEN)}, created_at, queued_at, turn_at)
        SELECT {", ".join(f":{name}" for name in GIVEN)}, now, now, now - :ahead FROM moment
        WHERE NOT EXISTS (
            SELECT FROM tenants
            WHERE name = :tenant AND num_nonnulls(most_queued, most_gpu_hours, most_stored_bytes) > 0
        ) AND NOT EXISTS (
            SELECT FROM webhooks
            WHERE tenant = :tenant AND disabled_at IS NULL AND CAST(types AS text) LIKE '%"job.queued"%'
        )
        RETURNING id, created_at, turn_at
    ),
    label AS (
        INSERT INTO labels (job, key, value)
        SELECT id, pair.key, pair.value FROM job, json_each_text(:metadata) AS pair
    ),
    event AS (
        INSERT INTO events (job, number, at, attempt, type, message, data)
        SELECT id, :last_event, created_at, :attempt, 'status', 'queued', :event FROM job
    )
    SELECT created_at, (
        SELECT 1 + count(*) FROM jobs AS ahead
        WHERE ahead.status = 'queued' AND ahead.tenant = :tenant AND (ahead.turn_at, ahead.id) < (job.turn_at, job.id)
    ) AS position
    FROM job
    """  # noqa: S608  # names of columns, all of them written above
)


def at_once(connection: Connection, row: Mapping[str, Any]) -> ToldJob | None:
    """The job of this row, written and told of; None where it has to go the long way.

    Raises:
        IntegrityError: its key was used before.
    """
    texts = {name: json.dumps(row[name], allow_nan=False) for name in TEXTS}
    ahead = timedelta(seconds=AGING_SECONDS * row["priority"])
    added = connection.execute(ADD, {**row, **texts, "ahead": ahead, "event": EVENT}).one_or_none()
    if added is None:
        return None
    told = {**row, **texts, "created_at": added.created_at.astimezone(UTC), "position": added.position}
    return ToldJob._make(map(told.get, ToldJob._fields))
