"""Submitting, cancelling, pausing, deleting, recording."""

import pytest
from sqlalchemy import Engine

from acmix.events import Event
from service.store.database import clock, writing
from service.store.errors import IdempotencyKeyReused, JobNotEnded, JobNotFound
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Outcome
from tests.service.work import at_once, claim, evaluation, look, metrics, rows, save, spec_of, submit, trace


def test_a_submitted_job_is_queued_and_says_so(ledger: Ledger, reader: Reader, engine: Engine) -> None:
    resolved = spec_of(name="first", metadata={"study": "depth"}, priority=7)
    told, created = ledger.submit({"as": "written"}, resolved, parent="job_parent")
    assert created
    job = reader.job(told.id)
    assert (job.kind, job.name, job.metadata, job.priority) == ("train", "first", {"study": "depth"}, 7)
    assert (job.status, job.attempt, job.gpus, job.parent) == ("queued", 0, None, "job_parent")
    assert (job.spec, job.resolved_spec) == ({"as": "written"}, resolved)
    with engine.connect() as connection:
        assert 0 <= (clock(connection) - job.created_at).total_seconds() < 60
    [event] = reader.events(job.id)
    assert (event.number, event.attempt, event.type) == (1, 0, "status")
    assert event.data == {"status": "queued", "reason": None}
    assert reader.told(job.id) == told


def test_gpus_asked_for_are_kept(ledger: Ledger) -> None:
    assert submit(ledger, resources={"gpus": 4}).gpus == 4


def test_the_same_key_and_body_give_the_first_job(ledger: Ledger, reader: Reader) -> None:
    first, _ = ledger.submit({}, spec_of(), idempotency_key="key", body_sha256="a" * 64)
    assert ledger.submit({}, spec_of(), idempotency_key="key", body_sha256="a" * 64) == (first, False)
    assert ledger.submit({}, spec_of(), idempotency_key="other", body_sha256="a" * 64)[1]
    assert len(reader.jobs().data) == 2


def test_the_same_key_with_another_body_is_refused(ledger: Ledger) -> None:
    first, _ = ledger.submit({"a": 1}, spec_of(), idempotency_key="key")
    with pytest.raises(IdempotencyKeyReused, match=first.id):
        ledger.submit({"a": 2}, spec_of(), idempotency_key="key")


def test_one_key_sent_by_eight_threads_at_once_makes_one_job(ledger: Ledger, reader: Reader) -> None:
    spec = spec_of()
    for round_number in range(5):
        key = f"key-{round_number}"
        results = at_once(*[lambda key=key: ledger.submit(spec, spec, idempotency_key=key)] * 8)
        assert sum(created for _, created in results) == 1
        assert len({job.id for job, _ in results}) == 1
    assert len(reader.jobs().data) == 5


def test_a_queued_job_is_cancelled_at_once(ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger)
    cancelled, changed = ledger.request_cancel(job.id)
    assert changed
    assert cancelled.status == "cancelled"
    assert cancelled.ended_at is not None
    assert cancelled.status_reason is not None
    assert cancelled.status_reason["code"] == "cancelled_by_user"
    last = reader.events(job.id)[-1]
    assert (last.type, last.data["status"], last.data["reason"]["blame"]) == ("status", "cancelled", "user")
    assert ledger.request_cancel(job.id) == (cancelled, False)


def test_a_running_job_is_only_wished_to_be_cancelled(ledger: Ledger) -> None:
    submit(ledger)
    job = claim(ledger).job
    wished, changed = ledger.request_cancel(job.id)
    assert changed
    assert (wished.status, wished.requested) == ("running", "cancel")
    assert ledger.request_cancel(job.id) == (wished, False)
    assert ledger.wish(job.id, 1) == "cancel"
    assert ledger.heartbeat(job.id, 1) == "cancel"


def test_cancel_outranks_pause_and_a_pause_can_be_taken_back(ledger: Ledger) -> None:
    submit(ledger)
    job = claim(ledger).job
    assert ledger.request_pause(job.id)[0].requested == "pause"
    assert ledger.resume(job.id)[0].requested is None
    ledger.request_pause(job.id)
    assert ledger.request_cancel(job.id)[0].requested == "cancel"
    assert ledger.request_pause(job.id)[1] is False
    assert ledger.wish(job.id, 1) == "cancel"


def test_a_paused_job_is_not_claimed_until_it_is_resumed(ledger: Ledger) -> None:
    job = submit(ledger)
    assert ledger.request_pause(job.id)[0].status == "paused"
    assert look(ledger) is None
    assert ledger.resume(job.id)[0].status == "queued"
    assert claim(ledger).job.id == job.id


@pytest.mark.parametrize("method", ["request_cancel", "request_pause", "resume", "delete"])
def test_an_unknown_job_is_not_found(method: str, ledger: Ledger) -> None:
    with pytest.raises(JobNotFound, match="there is no job 'job_none'"):
        getattr(ledger, method)("job_none")


def test_a_job_that_has_not_ended_is_not_deleted(ledger: Ledger) -> None:
    job = submit(ledger)
    with pytest.raises(JobNotEnded, match="is queued; cancel it first") as raised:
        ledger.delete(job.id)
    assert raised.value.job == job


def test_deleting_a_job_leaves_no_row_of_it(ledger: Ledger, reader: Reader, engine: Engine) -> None:
    submit(ledger, metadata={"study": "depth"})
    kept = claim(ledger).job
    before = rows(engine)
    submit(ledger, metadata={"study": "width"})
    job = claim(ledger).job
    ledger.record(job.id, 1, [metrics(1, 2), trace(1), evaluation(2, best=True)])
    ledger.log(job.id, 1, ["line"])
    save(ledger, job, 2)
    ledger.finish(job.id, 1, Outcome("succeeded"))
    files, requests = {"weights", "datasets", "dataset_parts"}, {"plans", "predictions"}
    told = {"webhooks", "deliveries"}  # a message outlives its job
    scheduled = {"demands", "abilities", "holdings", "reservations"}
    others = {"workers", "tenants", "keys", "usage", *scheduled, *files, *requests, *told}
    assert all(found != before[table] for table, found in rows(engine).items() if table not in others)
    ledger.delete(job.id)
    assert rows(engine) == before
    assert reader.job(kept.id) == kept


def test_events_leave_curves_traces_results_and_progress(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    running = Event("status", "", {"status": "running", "versions": {"torch": "2.14"}, "devices": ["cpu"]})
    progress = Event("progress", "", {"phase": "training", "epoch": 1, "step": 2})
    ledger.record(job.id, 1, [running, metrics(1, 2), trace(1), progress, evaluation(2, 0.75, best=True)])
    assert [event.type for event in reader.events(job.id)][2:] == [
        "status", "metrics", "trace", "progress", "evaluation",
    ]  # fmt: skip
    found = reader.job(job.id)
    assert (found.versions, found.devices) == ({"torch": "2.14"}, ["cpu"])
    assert (found.phase, found.progress) == ("training", {"epoch": 1, "step": 2})
    assert found.progress_at is not None
    assert found.best == {"metric": "accuracy", "value": 0.75, "epoch": 0, "checkpoint": None}
    assert reader.metrics(job.id)[0].value == [1.0, 0.5]
    assert reader.traces(job.id)[0].alpha == [1.0]
    assert reader.evaluations(job.id)[0]["metrics"] == {"accuracy": 0.75}
    assert reader.attempts(job.id)[0].devices == ["cpu"]


def test_progress_of_a_phase_alone_keeps_the_steps_told_before(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.record(job.id, 1, [Event("progress", "", {"phase": "training", "step": 5})])
    ledger.record(job.id, 1, [Event("progress", "", {"phase": "evaluating"})])
    found = reader.job(job.id)
    assert (found.phase, found.progress) == ("evaluating", {"step": 5})


def test_points_told_twice_are_stored_once(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    said = [metrics(1, 2), metrics(2), trace(1), trace(1), evaluation(2), evaluation(2)]
    ledger.record(job.id, 1, said)
    ledger.record(job.id, 1, said)
    assert reader.metrics(job.id)[0].step == [1, 2]
    assert reader.traces(job.id)[0].step == [1]
    assert len(reader.evaluations(job.id)) == 1


def test_the_final_evaluation_chooses_no_best(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    final = evaluation(10, 0.9, best=True, split="test", final=True)
    ledger.record(job.id, 1, [evaluation(10, 0.5, best=True), final])
    best = reader.job(job.id).best
    assert best is not None
    assert best["value"] == 0.5
    assert [data["split"] for data in reader.evaluations(job.id)] == ["val", "test"]


def test_numbers_have_no_gap_though_many_write_at_once(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job

    def write() -> None:
        for _ in range(10):
            ledger.record(job.id, 1, [Event("warning", "a"), Event("warning", "b")])
            ledger.log(job.id, 1, ["c", "d"])

    at_once(*[write] * 6)
    events, lines = reader.events(job.id), reader.log_lines(job.id)
    assert [event.number for event in events] == list(range(1, 123))
    assert [number for number, _ in lines] == list(range(1, 121))
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert [line for _, line in lines] == ["c", "d"] * 60


def test_text_that_a_database_cannot_hold_is_mended(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.record(job.id, 1, [Event("warning", "nul \0, half \ud83d", {"raw": "\0 \ud83d"})])
    ledger.log(job.id, 1, ["nul \0, half \ud83d", ""])
    assert reader.events(job.id)[-1].message == "nul \ufffd, half ?"
    assert reader.log_lines(job.id) == [(1, "nul \ufffd, half ?"), (2, "")]


def test_what_fails_half_way_leaves_nothing(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    before = rows(engine)
    with pytest.raises(KeyError):
        ledger.record(job.id, 1, [metrics(1), Event("trace", "without a step", {})])
    assert rows(engine) == before


def test_leases_are_counted_by_the_databases_clock(engine: Engine) -> None:
    ledger = Ledger(engine, lease_seconds=30)
    submit(ledger)
    with writing(engine).begin() as connection:
        before = clock(connection)
    job = claim(ledger).job
    assert job.lease_expires_at is not None
    assert 30 <= (job.lease_expires_at - before).total_seconds() < 60
