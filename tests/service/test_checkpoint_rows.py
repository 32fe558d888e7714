"""Checkpoints in the ledger: which are listed, which go, and going back to one."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from service.store.errors import CheckpointNotFound
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job
from tests.service.work import claim, evaluation, metrics, rows, save, submit, trace


@pytest.fixture
def job(ledger: Ledger) -> Job:
    submit(ledger)
    return claim(ledger).job


def test_a_committed_checkpoint_is_listed_and_told(job: Job, ledger: Ledger, reader: Reader) -> None:
    given, removed = save(ledger, job, 10, 0.5)
    assert removed == []
    listed = reader.checkpoint(given.id)
    assert listed == replace(given, best=True, latest=True, created_at=listed.created_at)
    assert listed.created_at is not None
    event = reader.events(job.id)[-1]
    assert (event.type, event.data) == ("checkpoint", {"step": 10, "best": False, "id": given.id})
    assert reader.checkpoints(job.id) == [listed]


def test_the_best_and_the_newest_stay_and_the_rest_is_handed_back(job: Job, ledger: Ledger, reader: Reader) -> None:
    accuracies = {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.6}
    dropped = {}
    for step, accuracy in accuracies.items():
        _, removed = save(ledger, job, step, accuracy, keep_best=1, keep_latest=1)
        dropped[step] = [checkpoint.step for checkpoint in removed]
    assert dropped == {10: [], 20: [10], 30: [], 40: [30]}
    assert [(kept.step, kept.best, kept.latest) for kept in reader.checkpoints(job.id)] == [
        (40, False, True),
        (20, True, False),
    ]


@pytest.mark.parametrize(
    ("keep_best", "keep_latest", "kept"), [(0, 1, [40]), (2, 1, [40, 30, 20]), (1, 3, [40, 30, 20]), (0, 2, [40, 30])]
)
def test_as_many_stay_as_were_asked_for(
    keep_best: int, keep_latest: int, kept: list[int], job: Job, ledger: Ledger, reader: Reader
) -> None:
    for step, accuracy in {10: 0.5, 20: 0.9, 30: 0.7, 40: 0.6}.items():
        save(ledger, job, step, accuracy, keep_best=keep_best, keep_latest=keep_latest)
    assert [checkpoint.step for checkpoint in reader.checkpoints(job.id)] == kept


def test_a_checkpoint_without_the_metric_is_never_among_the_best(job: Job, ledger: Ledger, reader: Reader) -> None:
    save(ledger, job, 10, 0.1, keep_latest=1)
    save(ledger, job, 15, keep_latest=1)
    save(ledger, job, 17, keep_latest=1)
    assert [(kept.step, kept.best) for kept in reader.checkpoints(job.id)] == [(17, False), (10, True)]


def test_of_equals_the_later_is_the_better(job: Job, ledger: Ledger, reader: Reader) -> None:
    for step in (10, 20):
        save(ledger, job, step, 0.5)
    assert [kept.step for kept in reader.checkpoints(job.id) if kept.best] == [20]


def test_a_job_names_its_best_checkpoint_only_while_it_is_listed(job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(job.id, 1, [evaluation(10, 0.5, best=True)])
    given, _ = save(ledger, job, 10, 0.5, best=True, keep_best=0, keep_latest=1)
    expected = {"metric": "accuracy", "value": 0.5, "epoch": 1}
    assert reader.job(job.id).best == {**expected, "checkpoint": given.id}
    save(ledger, job, 20, 0.4, keep_best=0, keep_latest=1)
    assert reader.job(job.id).best == {**expected, "checkpoint": None}


def test_a_checkpoint_stored_again_under_its_key_takes_the_former_ones_place(
    job: Job, ledger: Ledger, reader: Reader
) -> None:
    save(ledger, job, 10, key="jobs/x/step-10", keep_latest=1)
    again, removed = save(ledger, job, 10, key="jobs/x/step-10", keep_latest=1)
    assert removed == []
    assert [checkpoint.id for checkpoint in reader.checkpoints(job.id)] == [again.id]


def test_a_rewind_unlists_what_cannot_be_read_and_cuts_the_curves(job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(job.id, 1, [metrics(*range(1, 31)), trace(10), trace(20), evaluation(10, 0.5, best=True)])
    good, _ = save(ledger, job, 10, 0.5, best=True)
    ledger.record(job.id, 1, [evaluation(20, 0.9, best=True)])
    unreadable, _ = save(ledger, job, 20, 0.9, best=True)
    removed = ledger.rewind(job.id, 1, good, why="step 20 cannot be read: its sha256 differs")
    assert [checkpoint.id for checkpoint in removed] == [unreadable.id]
    assert [(kept.id, kept.best, kept.latest) for kept in reader.checkpoints(job.id)] == [(good.id, True, True)]
    assert reader.metrics(job.id)[0].step == list(range(1, 11))
    assert reader.traces(job.id)[0].step == [10]
    assert reader.job(job.id).best == {"metric": "accuracy", "value": 0.5, "epoch": 1, "checkpoint": good.id}
    event = reader.events(job.id)[-1]
    resumed_from = {"attempt": 1, "step": 10, "checkpoint": good.id}
    assert (event.type, event.message) == ("warning", "step 20 cannot be read: its sha256 differs")
    assert event.data == {"code": "checkpoint_unreadable", "resumed_from": resumed_from}
    assert reader.attempts(job.id)[0].resumed_from == resumed_from


def test_a_rewind_to_the_start_leaves_nothing_but_history(job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(job.id, 1, [metrics(1, 2), trace(1), evaluation(2, best=True)])
    save(ledger, job, 2)
    assert len(ledger.rewind(job.id, 1, None, why="none can be read")) == 1
    assert reader.checkpoints(job.id) == []
    assert reader.metrics(job.id) == []
    assert reader.traces(job.id) == []
    assert reader.evaluations(job.id) == []
    assert reader.job(job.id).best is None
    assert len(reader.events(job.id)) == 7


def test_a_rewind_to_a_checkpoint_that_is_not_listed_is_refused(job: Job, ledger: Ledger, engine: Engine) -> None:
    good, _ = save(ledger, job, 10)
    before = rows(engine)
    with pytest.raises(CheckpointNotFound, match="there is no checkpoint 'ckpt_other'"):
        ledger.rewind(job.id, 1, replace(good, id="ckpt_other"), why="")
    assert rows(engine) == before
