"""What the API answers of webhooks."""

from datetime import datetime

from pydantic import Field

from service.answers import Answer, Reason
from service.store import rows
from service.store.rows import DeliveryStatus, EventType, Status

EXAMPLE_ID = "whk_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"


class Webhook(Answer):
    """A webhook without its secret."""

    id: str = Field(examples=[EXAMPLE_ID])
    name: str
    url: str
    types: list[EventType]
    created_at: datetime
    disabled_at: datetime | None = Field(description="since when it is told nothing more")
    disabled_reason: str | None


class NewWebhook(Webhook):
    """A webhook with its secret, which is told this once."""

    secret: str = Field(description="what deliveries are signed with: whsec_ and 32 bytes in Base64")


class Delivery(Answer):
    """A message to a webhook. Its id is the `webhook-id` that the receiver sees, however often it is sent."""

    id: str = Field(examples=["dlv_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
    webhook: str = Field(examples=[EXAMPLE_ID])
    job: str | None = Field(description="the one it tells of, which may be gone")
    type: str = Field(examples=["job.succeeded"])
    status: DeliveryStatus
    attempts: int = Field(description="since it was last asked for")
    next_attempt_at: datetime | None = Field(description="null once it has ended")
    response_status: int | None = Field(description="what the receiver last answered")
    error: str | None = Field(description="why the last attempt failed")
    body: str = Field(description="as it is signed")
    created_at: datetime
    attempted_at: datetime | None
    ended_at: datetime | None


class Told(Answer):
    """A job as it stood when the event came."""

    job: str = Field(examples=["job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
    kind: str = Field(examples=["train"])
    name: str
    status: Status
    status_reason: Reason | None
    attempt: int
    event: int = Field(description="the number of the job's event that tells the same: it orders what came")
    metadata: dict[str, str]


class Message(Answer):
    """What a receiver is sent."""

    type: EventType
    timestamp: datetime
    data: Told


def delivery(row: rows.Delivery) -> Delivery:
    """A stored delivery."""
    own = {name: getattr(row, name) for name in Delivery.model_fields if hasattr(row, name)}
    return Delivery(**own, next_attempt_at=row.not_before if row.status == "pending" else None)
