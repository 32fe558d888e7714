"""The API's vitals: its requests, and what the database knows, told together when Prometheus asks."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from service.store.census import LIVE, Census
from service.store.vitals import REGISTRY, readable

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PATIENCE_SECONDS = 2.0  # what the database may keep a scrape waiting
KEPT_SECONDS = 5.0  # scrapes within this time are told the same
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})

REQUESTS = Counter("acmix_http_requests", "Requests answered", ["method", "route", "status"], registry=REGISTRY)
SECONDS = Histogram(
    "acmix_http_request_seconds",
    "From a request to the beginning of its answer",
    ["method", "route"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "acmix_http_requests_in_flight", "Requests being answered", multiprocess_mode="livesum", registry=REGISTRY
)
STREAMS = Gauge("acmix_streams_open", "Streams of events being sent", multiprocess_mode="livesum", registry=REGISTRY)

log = logging.getLogger(__name__)


def count_request(scope: Scope, status: int, seconds: float) -> None:
    """Count an answer under its route's template: a path has ids, and there is no end of them."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    count, observe = _of_route(method, route_of(scope), status)
    count()
    observe(seconds)


@cache
def _of_route(method: str, route: str, status: int) -> tuple[Callable[[], None], Callable[[float], None]]:
    """What counts such a request; to look that up by its labels takes as long as to count."""
    return REQUESTS.labels(method, route, str(status)).inc, SECONDS.labels(method, route).observe


def route_of(scope: Scope) -> str:
    """The template that the path matched."""
    return getattr(scope.get("route"), "path", None) or "none"


def told(counted: "Counted") -> bytes:
    """All of them, as Prometheus reads them."""
    return generate_latest(readable()) + generate_latest(_OfDatabase(counted.census()))


class Counted:
    """The census, some seconds old at most. A database that hangs has a thread to itself, and keeps nobody waiting."""

    def __init__(self, take: Callable[[], Census]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._latest: Census | None = None
        self._taken_at = float("-inf")
        self._done: threading.Event | None = None  # of the count under way

    def census(self) -> Census | None:
        """None where the database does not answer in time."""
        with self._lock:
            if time.monotonic() < self._taken_at + KEPT_SECONDS:
                return self._latest
            if self._done is None:
                self._done = threading.Event()
                threading.Thread(target=self._count, args=(self._done,), name="census", daemon=True).start()
            done = self._done
        return self._latest if done.wait(PATIENCE_SECONDS) else None

    def _count(self, done: threading.Event) -> None:
        try:
            found = self._take()
        except Exception as error:  # whatever it is, the rest is told
            log.warning("the database cannot be counted: %s", error)
            found = None
        with self._lock:
            self._latest, self._done = found, None
            self._taken_at = time.monotonic()
        done.set()


class _OfDatabase(Collector):
    def __init__(self, census: Census | None) -> None:
        self._census = census

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("acmix_database_up", "Whether the database answered", float(self._census is not None))
        if self._census is not None:
            yield from _families(self._census)


def _families(census: Census) -> Iterator[Metric]:
    by_status = {str(status): 0 for status in LIVE}
    for (_, status), count in census.jobs.items():
        by_status[status] += count
    yield _gauge("acmix_jobs", "Jobs that have not ended", by_status, "status")
    yield _gauge("acmix_tenant_jobs", "The same by tenant", census.jobs, "tenant", "status")
    yield _gauge("acmix_tenant_gpu_hours", "GPU hours of attempts that ended this month", census.gpu_hours, "tenant")
    yield _gauge("acmix_unanswered", "What waits for the housekeeper", census.unanswered, "kind")
    for name, meaning, value in (
        ("acmix_queue_due_jobs", "Queued jobs that nothing holds back", census.due_jobs),
        ("acmix_queue_oldest_due_seconds", "How long the first of them has waited", census.oldest_due_seconds),
        (
            "acmix_queue_oldest_fitting_seconds",
            "How long the first has waited that a worker has room for",
            census.oldest_fitting_seconds,
        ),
        ("acmix_workers_alive", "Workers seen within 90 s that are not drained", census.workers_alive),
        ("acmix_workers_drained", "Workers seen within 90 s that were told to take no jobs", census.workers_drained),
        ("acmix_workers_lost", "Workers last seen 90 s to 15 min ago that took no leave", census.workers_lost),
        ("acmix_slots", "Slots of the workers alive", census.slots),
        ("acmix_slots_busy", "Of these, at work", census.slots_busy),
        ("acmix_slots_aside", "Of these, of GPUs that are put aside", census.slots_aside),
        ("acmix_deliveries_pending", "Messages to webhooks that are to be sent", census.pending_deliveries),
        ("acmix_deliveries_oldest_due_seconds", "How long the first is overdue", census.oldest_delivery_seconds),
    ):
        yield GaugeMetricFamily(name, meaning, value)


def _gauge(name: str, meaning: str, values: Any, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key if isinstance(key, tuple) else (key,), value)
    return family
