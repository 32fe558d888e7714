"""The vitals of worker and housekeeper, told on a port of their own."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from acmix.events import Event
from acmix.fleet import samples_a_step
from service.settings import Settings
from service.store.rows import Job, Outcome
from service.store.vitals import REGISTRY, reason_label

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
WAITS = (0.1, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 300, 900, 3600, 14400)

log = logging.getLogger(__name__)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


# The worker's

ATTEMPTS_STARTED = _counter("acmix_attempts_started", "Attempts begun", "kind")
ATTEMPTS_ENDED = _counter("acmix_attempts_ended", "Attempts ended", "outcome", "reason")
ATTEMPTS_RUNNING = _gauge("acmix_attempts_running", "Attempts under way")
START_DELAY = _histogram("acmix_job_start_delay_seconds", "From queued to the first claim", WAITS)
PROVISION = _histogram("acmix_provision_seconds", "Until checkpoints, weights and data were laid down", LONG)
STEP = _histogram("acmix_step_seconds", "An optimizer step, by the mean of each progress event", SHORT, "kind", "task")
STEPS = _counter("acmix_steps", "Optimizer steps made", "kind", "task")
SAMPLES = _counter("acmix_samples", "Samples trained on", "kind", "task")
RENEWALS = _counter("acmix_lease_renewals", "Renewals of leases of jobs", "result")
RENEWAL = _histogram("acmix_lease_renewal_seconds", "Renewing a lease", SHORT)
LEASES_LOST = _counter("acmix_leases_lost", "Attempts that were given to another and ended here")
EVENTS = _counter("acmix_events_recorded", "Events recorded", "type")
RECORD = _histogram("acmix_record_seconds", "Writing a batch of events", SHORT)
UNRECORDED = _gauge("acmix_events_unrecorded", "Events told by runs and not yet recorded")
STORE = _histogram("acmix_checkpoint_store_seconds", "Storing the files of a checkpoint", LONG)
STORED_BYTES = _counter("acmix_checkpoint_stored_bytes", "Bytes of checkpoints stored")
UNSTORED = _counter("acmix_checkpoints_unstored", "Checkpoints that found no room")

# The housekeeper's

ROUNDS = _counter("acmix_housekeeping_rounds", "Rounds of the housekeeper", "result")
LAST_ROUND = _gauge("acmix_housekeeping_last_round_timestamp_seconds", "When its last whole round ended")
SWEPT = _counter("acmix_jobs_swept", "Jobs whose lease ran out")
DELIVERIES = _counter("acmix_deliveries", "Attempts to send to a webhook", "outcome")
DELIVERY = _histogram("acmix_delivery_seconds", "Sending to a webhook", SHORT)
ANSWERS = _counter("acmix_answers", "Plans and predictions made", "kind", "result")
ANSWER = _histogram("acmix_answer_seconds", "Making a plan or a prediction, from its claim on", LONG, "kind")
CHECKS = _counter("acmix_dataset_checks", "Checks of data sets ended", "result")
CHECK = _histogram("acmix_dataset_check_seconds", "A check of a data set", LONG)

# Of both

DISK_FREE = _gauge("acmix_disk_free_bytes", "Room left where the data folder is")
DISK_SIZE = _gauge("acmix_disk_size_bytes", "Size of the disk where the data folder is")

for _result in ("ok", "failed", "lost"):
    RENEWALS.labels(_result)
for _result in ("ok", "failed"):
    ROUNDS.labels(_result)
for _outcome in ("delivered", "failed", "dead", "disabled"):
    DELIVERIES.labels(_outcome)


def serve(settings: Settings) -> None:
    """Answer on METRICS_PORT, if one is set. Work goes on where it cannot be had."""
    _watch_disk(settings.data_folder)
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, REGISTRY)
    except OSError as error:
        log.error("METRICS_PORT %s of %s cannot be had: %s", settings.metrics_port, settings.metrics_host, error)
    else:
        log.info("vitals are told on port %s of %s", settings.metrics_port, settings.metrics_host)


@contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Note how long it takes, where it succeeds."""
    began = time.monotonic()
    yield
    histogram.observe(time.monotonic() - began)


@contextmanager
def attempt(job: Job, backlog: Callable[[], int]) -> Iterator[None]:
    """An attempt is under way; `backlog` is how many events of it are not recorded yet."""
    ATTEMPTS_STARTED.labels(job.kind).inc()
    if job.attempt == 1 and job.claimed_at:
        START_DELAY.observe((job.claimed_at - job.queued_at).total_seconds())
    _backlogs.append(backlog)
    try:
        with ATTEMPTS_RUNNING.track_inprogress():
            yield
    finally:
        _backlogs.remove(backlog)


def count_outcome(outcome: Outcome) -> None:
    ATTEMPTS_ENDED.labels(outcome.kind, reason_label(outcome.reason.code if outcome.reason else None)).inc()


def count_fence() -> None:
    """An attempt ended because its job was another's by then."""
    LEASES_LOST.inc()
    ATTEMPTS_ENDED.labels("fenced", "none").inc()


@contextmanager
def renewal(lost: type[Exception]) -> Iterator[None]:
    """A renewal of a lease: how long it took, or that it failed."""
    try:
        with timed(RENEWAL):
            yield
    except Exception as error:
        RENEWALS.labels("lost" if isinstance(error, lost) else "failed").inc()
        raise
    RENEWALS.labels("ok").inc()


def count_recorded(job: Job, told: Sequence[Event]) -> None:
    """Events were recorded; what they say of steps and samples is counted along."""
    spec = job.resolved_spec
    labels = (job.kind, str(spec["task"]["name"]))
    for event in told:
        EVENTS.labels(event.type).inc()
        _count_training(event.type, event.data, labels, samples_a_step(spec))


def _count_training(kind: str, data: Mapping[str, Any], labels: tuple[str, str], samples: int) -> None:
    """A run is not to be believed: what is no figure counts nothing."""
    values, step = data.get("values"), data.get("step")
    if kind == "metrics" and isinstance(values, Mapping) and isinstance(step, list) and "train/loss" in values:
        steps = len(step)
        STEPS.labels(*labels).inc(steps)
        SAMPLES.labels(*labels).inc(steps * samples)
    elif kind == "progress" and isinstance(rate := data.get("samples_per_second"), int | float) and rate > 0:
        STEP.labels(*labels).observe(samples / rate)


def _watch_disk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    DISK_FREE.set_function(lambda: _disk(folder, "free"))
    DISK_SIZE.set_function(lambda: _disk(folder, "total"))


def _disk(folder: Path, what: str) -> float:
    """Not a number where the disk does not answer: the other figures are told all the same."""
    try:
        return float(getattr(shutil.disk_usage(folder), what))
    except OSError:
        return math.nan


_backlogs: list[Callable[[], int]] = []
UNRECORDED.set_function(lambda: sum(backlog() for backlog in list(_backlogs)))
