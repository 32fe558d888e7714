"""What a deployment promises while its processes die: the short form of the campaign, and what the judge is worth."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from acmix import manifest
from acmix.events import Event
from service.store.artifacts import Artifacts
from service.store.database import writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job, Outcome
from tests.chaos import campaign, history
from tests.chaos.campaign import Plan
from tests.chaos.chain import losses
from tests.chaos.history import Record
from tests.service.work import claim, save, submit

SHORT = Plan("sqlite", jobs=6, seed=1, workers=2, steps=40, pause_seconds=1.0, readers=2, most_seconds=240)
STEPS = 3


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_job_is_lost_and_none_is_done_twice_while_everything_dies(database: str, tmp_path: Path) -> None:
    result = campaign.run(replace(SHORT, database=database, clock_shifts=(86400.0, -86400.0)), tmp_path)
    assert result.broken == [], result.table()
    assert sum(result.faults.values()) >= 10, result.table()
    assert max(result.post_seconds) < 3, result.table()


@pytest.mark.release
@pytest.mark.parametrize(
    ("guard", "kinds", "complaint"),
    [
        (
            "fence",
            {"stop a worker past its lease"},
            "twice|after its end|after the next one's claim|its ends are|points are missing",
        ),
        ("sweep", {"kill a worker"}, "jobs have not ended"),
        ("idempotency", {"stop the broker"}, "is there and nobody knows of it"),
        ("manifest", {"damage a checkpoint"}, "is not that of an undisturbed run|is failed"),
        ("outbox", {"kill a housekeeper"}, "was never told"),
        ("database clock", {"kill a worker"}, "jobs have not ended"),
    ],
)
def test_without_a_guard_the_campaign_fails(guard: str, kinds: set[str], complaint: str, tmp_path: Path) -> None:
    """And with it the same campaign does not."""
    few = replace(SHORT, kinds=frozenset(kinds), jobs=6, pause_seconds=1.0, cancel_share=0.0, most_seconds=60)
    few = replace(few, clock_shifts=(86400.0, -86400.0))
    plan = replace(few, post_every_seconds=1.0, late_seconds=1.0)  # who posts is impatient: a hung broker takes two
    assert campaign.run(plan, tmp_path / "with").broken == []
    broken = campaign.run(replace(plan, without=guard), tmp_path / "without").broken
    assert any(re.search(complaint, fault) for fault in broken), broken


# The judge


@pytest.fixture
def record(ledger: Ledger) -> Record:
    """Of one job that has ended as it should."""
    job = submit(ledger)
    claim(ledger)
    ledger.record(job.id, 1, [_trained(1, 2)])
    ledger.record(job.id, 1, [_trained(3)])
    ledger.finish(job.id, 1, Outcome("succeeded"))
    return Record({job.id: STEPS})


BREACHES = {
    "DELETE FROM jobs": "was accepted and is not there",
    "DELETE FROM events WHERE number = 3": "not numbered 1, 2, 3",
    "UPDATE events SET attempt = 2 WHERE number = 3": "an attempt wrote after the next one's claim",
    "UPDATE jobs SET attempt = 2": "was claimed as [1], and its attempt is 2",
    "UPDATE jobs SET status = 'failed'": "is failed, and its ends are ['succeeded']",
    "UPDATE events SET number = 6 WHERE number = 5; UPDATE events SET number = 5, type = 'status',"
    """ data = '{"status": "succeeded"}' WHERE number = 4""": "its ends are ['succeeded', 'succeeded']",
    "UPDATE events SET data = (SELECT data FROM events WHERE number = 3) WHERE number = 4": "told step 1 twice",
    "DELETE FROM metric_points WHERE step = 2": "1 of its 3 points are missing",
    "UPDATE metric_points SET value = 0.5 WHERE step = 2": "its curve is not that of an undisturbed run",
    "UPDATE jobs SET losses = 1": "changed after its end",
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("statements", BREACHES)
def test_the_judge_sees_a_breach(
    statements: str, record: Record, engine: Engine, reader: Reader, tmp_path: Path
) -> None:
    artifacts = Artifacts(f"file://{tmp_path / 'artifacts'}")
    [job_id] = record.accepted
    record.first_seen_ended[job_id] = history.as_ended(reader, reader.job(job_id))
    assert history.faults(engine, artifacts, record) == []
    with writing(engine).begin() as connection:
        for statement in statements.split("; "):
            connection.execute(text(statement.replace(":", "\\:")))
    assert any(BREACHES[statements] in fault for fault in history.faults(engine, artifacts, record))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_judge_sees_a_job_that_nobody_was_told_of(record: Record, engine: Engine, tmp_path: Path) -> None:
    record.accepted.clear()
    [fault] = history.faults(engine, Artifacts(f"file://{tmp_path}"), record)
    assert fault.endswith("is there and nobody knows of it")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_judge_sees_a_checkpoint_that_is_not_whole(
    record: Record, engine: Engine, ledger: Ledger, tmp_path: Path
) -> None:
    artifacts = Artifacts(f"file://{tmp_path / 'artifacts'}")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    manifest.write(folder, ["model.safetensors"])
    artifacts.put_folder("kept", folder)
    save(ledger, claim_of_another(ledger, record), 10, key="kept")
    assert not any("checkpoint" in fault for fault in history.faults(engine, artifacts, record))
    (tmp_path / "artifacts" / "kept" / "model.safetensors").write_bytes(b"weighty")
    assert any("model.safetensors is not as listed" in fault for fault in history.faults(engine, artifacts, record))
    record.damaged.add("kept")
    assert not any("checkpoint" in fault for fault in history.faults(engine, artifacts, record))


def claim_of_another(ledger: Ledger, record: Record) -> Job:
    job = submit(ledger)
    record.accepted[job.id] = STEPS
    return claim(ledger).job


def _trained(*steps: int) -> Event:
    told = [losses(STEPS)[step - 1] for step in steps]
    return Event("metrics", "", {"epoch": 1, "step": list(steps), "values": {"train/loss": told}})
