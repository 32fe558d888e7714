"""The store's parts, opened together: what every process of a deployment stands on."""

from dataclasses import dataclass, field, replace

from sqlalchemy import Engine

from service.settings import Settings
from service.store.artifacts import Artifacts
from service.store.checks import Checks
from service.store.database import connect
from service.store.datasets import Datasets
from service.store.deliveries import Deliveries
from service.store.ledger import Ledger
from service.store.plans import Plans
from service.store.predictions import Predictions
from service.store.pruning import Pruning
from service.store.queue import Queue
from service.store.reading import Reader
from service.store.tenants import Tenants
from service.store.webhooks import Webhooks


@dataclass(frozen=True)
class Backend:
    """The ledger, plans, predictions, data sets, files, broker, tenants and webhooks of one deployment."""

    settings: Settings
    engine: Engine
    ledger: Ledger
    reader: Reader
    plans: Plans
    predictions: Predictions
    datasets: Datasets
    checks: Checks
    artifacts: Artifacts
    queue: Queue
    tenants: Tenants
    webhooks: Webhooks
    deliveries: Deliveries
    pruning: Pruning
    _scoped: dict[str, "Backend"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, tenant: str) -> "Backend":
        """The same for one tenant: nothing of another's is there. Plans and predictions have no owner.

        Who asks for one of those names data sets and checkpoints, which are looked up before.
        """
        if tenant not in self._scoped:  # every request asks, and tenants are few
            ledger, reader, datasets = self.ledger.of(tenant), self.reader.of(tenant), self.datasets.of(tenant)
            webhooks = self.webhooks.of(tenant)
            self._scoped[tenant] = replace(self, ledger=ledger, reader=reader, datasets=datasets, webhooks=webhooks)
        return self._scoped[tenant]

    def close(self) -> None:
        self.queue.close()
        self.engine.dispose()


def open_backend(settings: Settings) -> Backend:
    """Nothing is connected yet: what cannot be reached says so when it is asked."""
    engine = connect(settings.database_url, pool=settings.database_pool)
    budgets = {"max_failures": settings.max_failures, "max_losses": settings.max_losses}
    return Backend(
        settings=settings,
        engine=engine,
        ledger=Ledger(engine, lease_seconds=settings.lease_seconds, **budgets),
        reader=Reader(engine),
        plans=Plans(engine),
        predictions=Predictions(engine),
        datasets=Datasets(engine, lease_seconds=settings.lease_seconds),
        checks=Checks(engine, lease_seconds=settings.lease_seconds, **budgets),
        artifacts=Artifacts(settings.artifacts_url, settings.s3),
        queue=Queue(settings.broker_url),
        tenants=Tenants(engine),
        webhooks=Webhooks(engine),
        deliveries=Deliveries(engine),
        pruning=Pruning(engine, settings.keep_events_days, settings.keep_series_days),
    )
