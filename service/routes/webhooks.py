"""Webhooks: whom to tell of jobs, and what became of each message."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, StringConstraints

from acmix.spec import ULID
from service import json_body, webhook_answers, webhook_request
from service.answers import Listing, listing
from service.depends import DeliveryId, Store, WebhookId
from service.openapi import WEBHOOK_BODY
from service.query import Limit, Parameters
from service.store import rows
from service.store.backend import Backend
from service.store.rows import DeliveryStatus
from service.webhook_answers import Delivery, Message, NewWebhook, Webhook

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
sent = APIRouter(tags=["webhooks"])  # what receivers are sent: described, not served


class WebhookFilter(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^whk_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )


class DeliveryFilter(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^dlv_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )
    status: DeliveryStatus | None = None


@router.post("", status_code=201, openapi_extra=WEBHOOK_BODY)
async def post_webhook(
    body: Annotated[bytes, Depends(json_body.read_body)], store: Store, response: Response
) -> NewWebhook:
    """Have a URL told of jobs from now on, signed as Standard Webhooks has it. Its `secret` is shown this once."""
    made = await run_in_threadpool(_added, store, body)
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewWebhook.model_validate(made)


@router.get("")
def list_webhooks(store: Store, query: Annotated[WebhookFilter, Query()]) -> Listing[Webhook]:
    """Webhooks, newest first."""
    return listing(store.reader.webhooks(query.limit, query.after), Webhook.model_validate)


@router.get("/{webhook_id}")
def get_webhook(webhook_id: WebhookId, store: Store) -> Webhook:
    """One webhook, without its secret."""
    return Webhook.model_validate(store.reader.webhook(webhook_id))


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(webhook_id: WebhookId, store: Store) -> None:
    """Tell it nothing more: what was still to be sent is gone with it."""
    store.webhooks.delete(webhook_id)


@router.post("/{webhook_id}/test", status_code=202)
def test_webhook(webhook_id: WebhookId, store: Store) -> Delivery:
    """Send a message of type `webhook.test`. What becomes of it is told by `deliveries`."""
    made = store.webhooks.test(webhook_id)
    store.queue.nudge_light()
    return webhook_answers.delivery(made)


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: WebhookId, store: Store, query: Annotated[DeliveryFilter, Query()]
) -> Listing[Delivery]:
    """What it was told or is to be told, newest first; those delivered are kept for 7 days, those dead for 30."""
    store.reader.webhook(webhook_id)
    page = store.reader.deliveries(webhook_id, query.limit, query.after, query.status)
    return listing(page, webhook_answers.delivery)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry", status_code=202)
def retry_delivery(webhook_id: WebhookId, delivery_id: DeliveryId, store: Store) -> Delivery:
    """Send a message again, dead or delivered, with all attempts before it; one that still waits goes at once."""
    asked = store.webhooks.retry(webhook_id, delivery_id)
    store.queue.nudge_light()
    return webhook_answers.delivery(asked)


@sent.post("job", status_code=204, responses={"default": {"description": "not taken, but for other 2xx; sent again"}})
def tell_job(message: Message) -> None:
    """Sent to a webhook's URL when a job takes on a status of its `types`, with the headers of Standard Webhooks.

    `webhook-id` stays the same when it is sent again, as it is until an answer of 2xx comes within 15 seconds.
    """
    raise AssertionError(f"{message.type} is for a receiver to answer")


def _added(store: Backend, body: bytes) -> rows.Webhook:
    asked = webhook_request.parse(json_body.loads(body), store.settings.webhook_networks)
    return store.webhooks.add(name=asked.name, url=asked.url, types=list(dict.fromkeys(asked.types)))
