"""Vitals: what a process tells Prometheus of itself. Here their registry, and those of whoever holds the store.

docs/monitoring.md lists them all; a test compares.
"""

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics

from service import settings
from service.store import _shared_vitals
from service.store.rows import Job

FOLDER = settings.vitals_folder()
if FOLDER:
    _shared_vitals.prepare(FOLDER)
disable_created_metrics()  # a series more for each, which nothing reads

REGISTRY = CollectorRegistry(auto_describe=True)
if not FOLDER:
    ProcessCollector(registry=REGISTRY)

REASONS = {
    "succeeded": ("none",),
    "cancelled": ("cancelled_by_user",),
    "failed": (
        *("out_of_memory_device", "out_of_memory_host", "diverged", "dataset_missing", "dataset_corrupt"),
        *("shape_mismatch", "checkpoint_incompatible", "weights_missing", "worker_lost", "stalled", "disk_full"),
        *("max_runtime_exceeded", "internal", "other"),
    ),
}

NUDGES = Counter("acmix_nudges", "Messages to workers and housekeeper", ["queue", "result"], registry=REGISTRY)
JOBS_ENDED = Counter("acmix_jobs_ended", "Jobs that this process ended", ["status", "reason"], registry=REGISTRY)
for _status, _reasons in REASONS.items():
    for _reason in _reasons:
        JOBS_ENDED.labels(_status, _reason)  # from 0: the first of a kind is a rise, too


def count_end(job: Job) -> None:
    """Count a job that has just ended, if it has."""
    if job.status in REASONS:
        code = job.status_reason["code"] if job.status_reason else None
        JOBS_ENDED.labels(job.status, reason_label(code)).inc()


def reason_label(code: str | None) -> str:
    """The code of a reason, which a run may have said: only those we know become a label."""
    if code is None:
        return "none"
    return code if any(code in known for known in REASONS.values()) else "other"


def readable() -> CollectorRegistry:
    """What is told when Prometheus asks: of this process, or of all that share its folder."""
    return _shared_vitals.registry_of(FOLDER) if FOLDER else REGISTRY
