"""Webhooks, as the API writes them: made, tried, deleted, told again. Reads are the Reader's."""

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from service.store import _outbox
from service.store.database import clock, one_at_a_time, writing
from service.store.errors import DeliveryNotFound, WebhookDisabled, WebhookNotFound, WebhooksExhausted
from service.store.ids import new_id
from service.store.rows import Delivery, EventType, Webhook, read
from service.store.scope import Scoped
from service.store.signatures import new_secret
from service.store.tables import deliveries, webhooks

MOST_WEBHOOKS = 20  # of a tenant: each costs a row and a request for every event


class Webhooks(Scoped):
    """Whom a tenant has told of its jobs."""

    def __init__(self, engine: Engine) -> None:
        self._writing = writing(engine)

    def add(self, *, name: str, url: str, types: Sequence[EventType]) -> Webhook:
        """A new one, with a secret of its own, which is told whatever happens from now on; WebhooksExhausted."""
        row = {"id": new_id("whk"), "tenant": self._owner, "name": name, "url": url, "types": list(types)}
        with self._writing.begin() as connection:
            one_at_a_time(connection, f"webhooks of {self._owner}")
            counted = select(func.count()).select_from(webhooks).where(webhooks.c.tenant == self._owner)
            if connection.execute(counted).scalar_one() >= MOST_WEBHOOKS:
                raise WebhooksExhausted(MOST_WEBHOOKS)
            made = insert(webhooks).values(**row, secret=new_secret(), created_at=clock(connection))
            return read(Webhook, connection.execute(made.returning(*webhooks.c)).mappings().one())

    def delete(self, webhook_id: str) -> None:
        """Remove it with all its deliveries, sent or not; WebhookNotFound."""
        with self._writing.begin() as connection:
            this = delete(webhooks).where(webhooks.c.id == webhook_id, self._mine(webhooks))
            if not connection.execute(this).rowcount:
                raise WebhookNotFound(webhook_id)

    def test(self, webhook_id: str) -> Delivery:
        """Tell it something that means nothing; WebhookNotFound, WebhookDisabled."""
        with self._writing.begin() as connection:
            found = self._lock_enabled(connection, webhook_id)
            told = {"webhook": found.id, "name": found.name}
            return _outbox.enqueue(connection, found.id, _outbox.TEST_TYPE, clock(connection), told)

    def retry(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send it again, the same under the same id, with all attempts before it; one that waits goes at once.

        Raises:
            WebhookNotFound, DeliveryNotFound: there is none.
            WebhookDisabled: nothing is sent any more.
        """
        this = (deliveries.c.id == delivery_id) & (deliveries.c.webhook == webhook_id)
        with self._writing.begin() as connection:
            self._lock_enabled(connection, webhook_id)
            again = {"status": "pending", "attempts": 0, "not_before": clock(connection), "ended_at": None}
            changed = update(deliveries).where(this).values(**again).returning(*deliveries.c)
            row = connection.execute(changed).mappings().one_or_none()
            if row is None:
                raise DeliveryNotFound(delivery_id)
            return read(Delivery, row)

    def _lock_enabled(self, connection: Connection, webhook_id: str) -> Webhook:
        """The webhook, which stays as it is until the transaction ends."""
        this = select(webhooks).where(webhooks.c.id == webhook_id, self._mine(webhooks))
        row = connection.execute(this.with_for_update()).mappings().one_or_none()
        if row is None:
            raise WebhookNotFound(webhook_id)
        found = read(Webhook, row)
        if found.disabled_at is not None:
            raise WebhookDisabled(found)
        return found
