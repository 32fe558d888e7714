"""The judge: reads what a deployment has written down, when all is over, and says what of it must not be."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select

from acmix import manifest
from service.store.artifacts import Artifacts
from service.store.errors import ArtifactNotFound
from service.store.reading import Reader
from service.store.rows import Job, StoredEvent
from service.store.states import ENDED
from service.store.tables import jobs
from tests.chaos.chain import losses

NEVER = 0  # attempt of what was written before any claim


@dataclass
class Record:
    """What clients saw: accepted jobs by the steps they have, and how ended ones stood when first seen so."""

    accepted: dict[str, int] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    first_seen_ended: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)  # keys of checkpoints that were damaged on purpose


def faults(engine: Engine, artifacts: Artifacts, record: Record) -> list[str]:
    """Every sentence is one promise broken."""
    reader = Reader(engine)
    known = all_jobs(engine)
    found = [f"{job_id}: was accepted and is not there" for job_id in record.accepted if job_id not in known]
    found += [f"{job_id}: is there and nobody knows of it" for job_id in known if job_id not in record.accepted]
    for job_id in record.accepted.keys() & known.keys():
        about_it = _of_job(reader, artifacts, known[job_id], record)
        found += [f"{job_id}: {fault}" for fault in about_it]
    return found


def as_ended(reader: Reader, job: Job) -> str:
    """All of an ended job that may never change again."""
    events = reader.events(job.id, limit=10**6)
    return json.dumps([vars(job), len(events), [vars(each) for each in reader.attempts(job.id)]], default=str)


def _of_job(reader: Reader, artifacts: Artifacts, job: Job, record: Record) -> Iterator[str]:
    events = reader.events(job.id, limit=10**6)
    yield from _of_numbers(events)
    yield from _of_attempts(job, events)
    yield from _of_end(job, events)
    yield from _of_steps(events)
    if job.id in record.first_seen_ended and record.first_seen_ended[job.id] != as_ended(reader, job):
        yield "changed after its end"
    if job.status == "succeeded":
        yield from _of_curve(reader, job, record.accepted[job.id])
    elif job.status != "cancelled" or job.id not in record.cancelled:
        yield f"is {job.status}: {json.dumps(job.status_reason)}"
    yield from _of_checkpoints(reader, artifacts, job, record.damaged)


def _of_numbers(events: list[StoredEvent]) -> Iterator[str]:
    numbers = [event.number for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "its events are not numbered 1, 2, 3, ... without gaps"


def _of_attempts(job: Job, events: list[StoredEvent]) -> Iterator[str]:
    """Attempts rise; none writes after the claim of the next."""
    attempts = [event.attempt for event in events]
    if attempts != sorted(attempts):
        yield "an attempt wrote after the next one's claim"
    claims = [event.attempt for event in events if event.type == "status" and event.data.get("worker")]
    if claims != list(range(1, job.attempt + 1)):
        yield f"was claimed as {claims}, and its attempt is {job.attempt}"


def _of_end(job: Job, events: list[StoredEvent]) -> Iterator[str]:
    """It ends once, and that is the last that is told."""
    told = [event.data["status"] for event in events if event.type == "status"]
    ends = [status for status in told if status in ENDED]
    if ends != [job.status]:
        yield f"is {job.status}, and its ends are {ends}"
    elif events[-1].data.get("status") != job.status:
        yield "something was told after its end"


def _of_steps(events: list[StoredEvent]) -> Iterator[str]:
    """Within an attempt no step comes twice: of two that train at once, one would tell the other's again."""
    by_attempt = Counter(
        (event.attempt, step) for event in events if event.type == "metrics" for step in event.data["step"]
    )
    if twice := sorted(key for key, count in by_attempt.items() if count > 1):
        yield f"attempt {twice[0][0]} told step {twice[0][1]} twice, and {len(twice) - 1} more"


def _of_curve(reader: Reader, job: Job, steps: int) -> Iterator[str]:
    """What training would have told undisturbed, to the last bit."""
    series = reader.metrics(job.id, ["train/loss"])
    if [one.step for one in series] != [list(range(1, steps + 1))]:
        yield f"{steps - sum(len(one.step) for one in series)} of its {steps} points are missing"
    elif series[0].value != losses(steps):
        yield "its curve is not that of an undisturbed run"


def _of_checkpoints(reader: Reader, artifacts: Artifacts, job: Job, damaged: set[str]) -> Iterator[str]:
    """What is listed is whole."""
    for listed in (each for each in reader.checkpoints(job.id) if each.key not in damaged):
        try:
            said: Mapping[str, Any] = json.loads(b"".join(artifacts.stream(f"{listed.key}/{manifest.MANIFEST}")))
            for name, expected in said["files"].items():
                content = b"".join(artifacts.stream(f"{listed.key}/{name}"))
                if (len(content), hashlib.sha256(content).hexdigest()) != (expected["size_bytes"], expected["sha256"]):
                    yield f"checkpoint of step {listed.step}: {name} is not as listed"
        except (ArtifactNotFound, ValueError) as error:
            yield f"checkpoint of step {listed.step}: {error}"


def all_jobs(engine: Engine) -> dict[str, Job]:
    reader = Reader(engine)
    with engine.connect() as connection:
        ids = connection.execute(select(jobs.c.id)).scalars().all()
    return {job_id: reader.job(job_id) for job_id in ids}
