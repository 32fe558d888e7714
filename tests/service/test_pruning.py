"""What of old jobs is removed: which rows, of which jobs, how many at a time, and what the API then says."""

import math
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, select, update

from acmix.catalog import Catalog
from acmix.events import Event
from service.store import pruning
from service.store.database import writing
from service.store.ledger import Ledger
from service.store.pruning import Pruning
from service.store.reading import Reader
from service.store.rows import Job, Outcome, WorkerCard
from service.store.tables import abilities, demands, workers
from tests.service.deployed import Deployed
from tests.service.work import at_once, claim, evaluation, look, metrics, rows, save, submit, trace

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SAID = [metrics(1, 2), trace(2), Event("progress", "training", {"phase": "training"}), Event("warning", "hot", {})]


def ended(ledger: Ledger) -> Job:
    """A job that has said something of every kind."""
    job = submit(ledger)
    running = claim(ledger).job
    ledger.record(job.id, 1, [*SAID, evaluation(2, best=True), *SAID])
    ledger.log(job.id, 1, ["hello", "world"])
    save(ledger, running, 2, 0.5, best=True)
    return ledger.finish(job.id, 1, Outcome("succeeded"))


def all_of(pruner: Pruning) -> int:
    """Prune until nothing is left to remove; in how many batches."""
    batches = 0
    while pruner.prune():
        batches += 1
    return batches


def test_old_events_go_and_how_the_job_went_stays_under_its_numbers(
    engine: Engine, ledger: Ledger, reader: Reader
) -> None:
    job = ended(ledger)
    before = {event.number: event for event in reader.events(job.id)}
    assert all_of(Pruning(engine, 0, math.inf)) > 0
    left = reader.events(job.id)
    kept = ["status", "status", "warning", "evaluation", "warning", "checkpoint", "status"]
    assert [event.type for event in left] == kept
    assert [before[event.number] for event in left] == left
    assert reader.log_lines(job.id) == []
    assert (len(reader.metrics(job.id)), len(reader.traces(job.id)), len(reader.evaluations(job.id))) == (1, 1, 1)
    pruned = reader.job(job.id)
    assert pruned.events_pruned_at is not None
    assert (pruned.series_pruned_at, pruned.last_event) == (None, job.last_event)


def test_old_curves_go_and_the_events_stay(engine: Engine, ledger: Ledger, reader: Reader) -> None:
    job = ended(ledger)
    all_of(Pruning(engine, math.inf, 0))
    assert (reader.metrics(job.id), reader.traces(job.id)) == ([], [])
    assert len(reader.evaluations(job.id)) == 1
    assert [event.number for event in reader.events(job.id)] == list(range(1, job.last_event + 1))
    assert len(reader.log_lines(job.id)) == 2
    assert reader.job(job.id).series_pruned_at is not None


def test_jobs_that_have_not_ended_or_ended_lately_are_left_alone(engine: Engine, ledger: Ledger) -> None:
    ended(ledger)
    running = submit(ledger)
    claim(ledger)
    ledger.record(running.id, 1, SAID)
    before = rows(engine)
    assert all_of(Pruning(engine, 1, 1)) == 0
    assert rows(engine) == before
    all_of(Pruning(engine, 0, 0))
    assert Reader(engine).events(running.id)[-1].type == "warning"
    assert Reader(engine).metrics(running.id) != []


def test_nothing_is_removed_unless_an_age_is_set(engine: Engine, ledger: Ledger) -> None:
    ended(ledger)
    before = rows(engine)
    assert not Pruning(engine, math.inf, math.inf).prune()
    assert rows(engine) == before


def test_no_more_rows_go_at_a_time_than_a_batch_has(
    engine: Engine, ledger: Ledger, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH_ROWS", 2)
    job = ended(ledger)
    pruner = Pruning(engine, 0, 0)
    count = len(reader.events(job.id)) + len(reader.log_lines(job.id))
    while pruner.prune():
        now = len(reader.events(job.id)) + len(reader.log_lines(job.id))
        assert count - now <= 2
        count = now
    assert reader.job(job.id).series_pruned_at is not None


def test_two_housekeepers_prune_as_one_does(engine: Engine, ledger: Ledger, reader: Reader) -> None:
    jobs = [ended(ledger) for _ in range(4)]
    at_once(*[lambda: all_of(Pruning(engine, 0, 0))] * 2)
    all_of(Pruning(engine, 0, 0))
    for job in jobs:
        assert reader.job(job.id).events_pruned_at is not None
        assert len(reader.events(job.id)) == 7


def test_a_pruned_job_says_so_and_a_stream_of_it_ends(api: Deployed) -> None:
    api.enrol()
    job = ended(api.ledger)
    assert api.get(f"/v1/jobs/{job.id}")["events_pruned_at"] is None
    all_of(Pruning(api.app.state.backend.engine, 0, 0))
    told = api.get(f"/v1/jobs/{job.id}")
    assert told["events_pruned_at"].endswith("Z")
    assert told["series_pruned_at"].endswith("Z")
    stream = api.http.get(f"/v1/jobs/{job.id}/events", headers={"Accept": "text/event-stream"}).text
    assert stream.count("event: ") == len(api.get(f"/v1/jobs/{job.id}/events")["data"]) == 7
    assert api.get(f"/v1/jobs/{job.id}/metrics") == {"series": []}
    assert api.get(f"/v1/jobs/{job.id}/results")["complete"] is True
    assert api.http.get(f"/v1/jobs/{job.id}/traces.svg").status_code == 200


def test_a_worker_that_has_gone_long_ago_is_forgotten_and_what_it_was_able_to_do(
    ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    for worker in ("gone", "here"):
        ledger.enrol(WorkerCard(worker, "node", 1, [], {}, Catalog()))
        submit(ledger)
        assert look(ledger, worker) is not None
    with writing(engine).begin() as connection:
        connection.execute(update(demands).values(created_at=LONG_AGO))
        connection.execute(update(workers).where(workers.c.id == "gone").values(seen_at=LONG_AGO))
    pruning = Pruning(engine, math.inf, math.inf)
    assert pruning.prune()
    assert not pruning.prune()
    with engine.connect() as connection:
        assert connection.execute(select(workers.c.id)).scalars().all() == ["here"]
        assert connection.execute(select(abilities.c.worker)).scalars().all() == ["here"]
        assert len(connection.execute(select(demands)).all()) == 1, "two jobs that run have it"
    assert {job.worker for job in reader.jobs().data} == {"gone", "here"}


def test_a_demand_that_no_job_waits_with_is_forgotten_and_comes_back(ledger: Ledger, engine: Engine) -> None:
    job = submit(ledger)
    ledger.request_pause(job.id)
    with writing(engine).begin() as connection:
        connection.execute(update(demands).values(created_at=LONG_AGO))
    pruning = Pruning(engine, math.inf, math.inf)
    assert not pruning.prune(), "it may be resumed"
    ledger.request_cancel(job.id)
    assert pruning.prune()
    submit(ledger)
    assert look(ledger) is not None
    with engine.connect() as connection:
        assert len(connection.execute(select(demands)).all()) == 1
