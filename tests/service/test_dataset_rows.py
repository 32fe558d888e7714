"""Data sets of users, as the store keeps them: uploads and checks that fence each other off, deletions."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from acmix.errors import Reason
from service.store.checks import Checks
from service.store.database import clock
from service.store.datasets import Datasets, parts_of
from service.store.errors import (
    DatasetInCheck,
    DatasetNeeded,
    DatasetNotFound,
    DatasetNotReady,
    UploadUnderWay,
)
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Dataset, DatasetPart, ToldJob, Upload
from service.store.tables import datasets as table
from tests.service.work import at_once, spec_of

REPORT = {
    "status": "ready",
    "sha256": "c" * 64,
    "size_bytes": 300,
    "files": 3,
    "classes": ["cat", "dog"],
    "num_classes": 2,
    "splits": {"train": {"samples": 3}},
    "root": "flowers",
}
REJECTED = {"status": "rejected", "faults": [{"file": "a.png", "code": "dataset_corrupt", "message": "no image"}]}
TRIED_AGAIN = Reason("internal", "the check was ended by SIGKILL", retryable=True)


@pytest.fixture
def datasets(engine: Engine) -> Datasets:
    return Datasets(engine)


@pytest.fixture
def checks(engine: Engine) -> Checks:
    return Checks(engine, max_failures=2, max_losses=2)


def added(datasets: Datasets, **more: Any) -> Dataset:
    return datasets.add(name="flowers", task="classification", format_="image_folder", options={}, **more)


def part(upload: Upload, size_bytes: int) -> DatasetPart:
    key = f"{parts_of(upload.dataset, upload.number)}/{upload.start:015d}"
    return DatasetPart(upload.start, size_bytes, upload.number, key)


def uploaded(datasets: Datasets) -> Dataset:
    """One whose archive of 100 bytes is there."""
    upload = datasets.begin_upload(added(datasets).id, 0, 100)
    return datasets.commit_upload(upload, [part(upload, 100)], 100)


def claimed(checks: Checks) -> Dataset:
    found = checks.claim()
    assert found is not None
    return found


def made_ready(datasets: Datasets, checks: Checks) -> Dataset:
    made = uploaded(datasets)
    assert checks.ready(claimed(checks), REPORT)
    return made


def set_back(engine: Engine, dataset_id: str, column: str, **span: float) -> None:
    """As if so much time had passed since."""
    with engine.execution_options(writes=True).begin() as connection:
        then = clock(connection) - timedelta(**span)
        connection.execute(update(table).where(table.c.id == dataset_id).values({column: then}))


def submit_reading(ledger: Ledger, dataset_id: str) -> ToldJob:
    resolved = spec_of()
    resolved["dataset"] = {"id": dataset_id}
    return ledger.submit(resolved, resolved)[0]


# Uploads


def test_an_archive_comes_part_by_part_and_is_to_be_checked_with_the_last(datasets: Datasets, reader: Reader) -> None:
    made = added(datasets)
    first = datasets.begin_upload(made.id, 0, 100)
    stands = datasets.commit_upload(first, [part(first, 60)], 100)
    assert (stands.status, stands.received_bytes, stands.total_bytes) == ("uploading", 60, 100)
    second = datasets.begin_upload(made.id, 60, 100)
    assert (second.number, second.abandoned) == (2, None)
    stands = datasets.commit_upload(second, [part(second, 40)], 100)
    assert (stands.status, stands.received_bytes, stands.upload_expires_at) == ("checking", 100, None)
    assert reader.dataset_parts(made.id) == [part(first, 60), part(second, 40)]


def test_of_uploads_that_begin_at_once_one_is_taken(datasets: Datasets) -> None:
    made = added(datasets)

    def begin() -> Upload | None:
        try:
            return datasets.begin_upload(made.id, 0, 100)
        except UploadUnderWay:
            return None

    begun = [upload for upload in at_once(*[begin] * 6) if upload]
    assert len(begun) == 1


def test_an_upload_that_stood_still_is_overtaken_and_can_list_nothing(
    engine: Engine, datasets: Datasets, reader: Reader
) -> None:
    made = added(datasets)
    first = datasets.begin_upload(made.id, 0, 100)
    with pytest.raises(UploadUnderWay, match="is being uploaded by another request"):
        datasets.begin_upload(made.id, 0, 100)
    datasets.renew_upload(first)
    set_back(engine, made.id, "upload_expires_at", seconds=1)
    second = datasets.begin_upload(made.id, 0, 100)
    assert second.abandoned == first.number
    for write in (datasets.renew_upload, lambda upload: datasets.commit_upload(upload, [part(upload, 100)], 100)):
        with pytest.raises(UploadUnderWay):
            write(first)
    assert datasets.abandon_upload(first), "what it stored is nobody's"
    datasets.commit_upload(second, [part(second, 100)], 100)
    assert not datasets.abandon_upload(second), "what it stored is listed"
    assert reader.dataset_parts(made.id) == [part(second, 100)]


def test_an_upload_that_lets_go_makes_room_at_once(datasets: Datasets, reader: Reader) -> None:
    made = added(datasets)
    assert datasets.abandon_upload(datasets.begin_upload(made.id, 0, None))
    assert reader.dataset(made.id).status == "empty"
    assert datasets.begin_upload(made.id, 0, None).abandoned is None


# Checks


def test_what_lies_below_the_data_root_is_checked_at_once(datasets: Datasets, checks: Checks) -> None:
    made = added(datasets, path="flowers/2026")
    assert made.status == "checking"
    assert claimed(checks).path == "flowers/2026"


def test_a_check_tells_how_far_it_is_and_what_came_out(datasets: Datasets, checks: Checks, reader: Reader) -> None:
    made = uploaded(datasets)
    check = claimed(checks)
    assert (check.id, check.claims, checks.claim()) == (made.id, 1, None)
    assert checks.renew(check, {"phase": "unpacking", "done": 5, "of": None})
    assert reader.dataset(made.id).progress == {"phase": "unpacking", "done": 5, "of": None}
    assert checks.ready(check, REPORT)
    ready = reader.dataset(made.id)
    assert (ready.status, ready.sha256, ready.size_bytes, ready.files) == ("ready", "c" * 64, 300, 3)
    assert (ready.num_classes, ready.report, ready.progress, ready.lease_expires_at) == (2, REPORT, None, None)
    assert ready.checked_at is not None
    assert not checks.reject(check, REJECTED), "what is ready stays so"


def test_of_housekeepers_at_once_each_data_set_has_one(datasets: Datasets, checks: Checks) -> None:
    made = [uploaded(datasets).id for _ in range(8)]

    def work() -> list[str]:
        found = []
        while check := checks.claim():
            found.append(check.id)
        return found

    assert sorted(each for several in at_once(*[work] * 4) for each in several) == made


def test_a_check_that_ran_out_is_anothers_and_the_first_can_write_no_more(
    engine: Engine, datasets: Datasets, checks: Checks, reader: Reader
) -> None:
    made = uploaded(datasets)
    first = claimed(checks)
    set_back(engine, made.id, "lease_expires_at", seconds=1)
    second = claimed(checks)
    assert (second.claims, second.losses) == (2, 1)
    for late in (
        checks.renew(first),
        checks.ready(first, REPORT),
        checks.reject(first, REJECTED),
        checks.fail(first, TRIED_AGAIN),
        checks.release(first),
    ):
        assert not late
    assert checks.ready(second, REPORT)
    assert reader.dataset(made.id).status == "ready"


def test_a_check_that_is_given_back_is_free_at_once(datasets: Datasets, checks: Checks) -> None:
    uploaded(datasets)
    assert checks.release(claimed(checks))
    again = claimed(checks)
    assert (again.failures, again.losses) == (0, 0)


def test_a_check_that_fails_is_tried_again_later_each_time_then_the_platform_is_blamed(
    engine: Engine, datasets: Datasets, checks: Checks, reader: Reader
) -> None:
    made = uploaded(datasets)
    waits = []
    for _ in range(2):
        assert checks.fail(claimed(checks), TRIED_AGAIN)
        assert checks.claim() is None
        waiting = reader.dataset(made.id)
        assert (waiting.status, waiting.status_reason) == ("checking", TRIED_AGAIN.as_json())
        assert waiting.not_before is not None
        waits.append((waiting.not_before - waiting.created_at).total_seconds())
        set_back(engine, made.id, "not_before", seconds=1)
    assert waits[1] > waits[0] > 9
    assert checks.fail(claimed(checks), TRIED_AGAIN)
    rejected = reader.dataset(made.id)
    assert (rejected.status, rejected.failures, rejected.report) == ("rejected", 3, None)
    assert rejected.status_reason is not None
    assert (rejected.status_reason["blame"], rejected.status_reason["retryable"]) == ("platform", False)


def test_a_data_set_that_takes_every_housekeeper_along_is_given_up(
    engine: Engine, datasets: Datasets, checks: Checks, reader: Reader
) -> None:
    made, behind = uploaded(datasets), uploaded(datasets)
    for _ in range(3):
        set_back(engine, claimed(checks).id, "lease_expires_at", seconds=1)
    assert claimed(checks).id == behind.id
    rejected = reader.dataset(made.id)
    assert rejected.status == "rejected"
    assert rejected.status_reason is not None
    assert "3 housekeepers never came back from it" in rejected.status_reason["message"]


def test_the_parts_of_a_rejected_one_are_known_until_they_are_gone(
    datasets: Datasets, checks: Checks, reader: Reader
) -> None:
    made = uploaded(datasets)
    assert checks.rejected_with_parts() == []
    checks.reject(claimed(checks), REJECTED)
    assert checks.rejected_with_parts() == [made.id]
    checks.forget_parts(made.id)
    assert (checks.rejected_with_parts(), reader.dataset_parts(made.id)) == ([], [])


# Deletions


def test_a_deleted_one_is_hidden_first_and_goes_last(
    engine: Engine, datasets: Datasets, checks: Checks, reader: Reader, ledger: Ledger
) -> None:
    made = made_ready(datasets, checks)
    datasets.begin_delete(made.id)
    with pytest.raises(DatasetNotFound):
        reader.dataset(made.id)
    assert reader.datasets().data == []
    with pytest.raises(DatasetNotFound):
        submit_reading(ledger, made.id)
    datasets.begin_delete(made.id)
    assert checks.deleted() == []
    set_back(engine, made.id, "deleted_at", minutes=2)
    assert checks.deleted() == [made.id], "cut short: a housekeeper does the rest"
    datasets.delete(made.id)
    with pytest.raises(DatasetNotFound):
        datasets.begin_delete(made.id)
    assert reader.dataset_parts(made.id) == []


def test_an_upload_to_one_that_is_deleted_meanwhile_lists_nothing(datasets: Datasets, reader: Reader) -> None:
    made = added(datasets)
    upload = datasets.begin_upload(made.id, 0, 100)
    datasets.begin_delete(made.id)
    with pytest.raises(DatasetNotFound):
        datasets.commit_upload(upload, [part(upload, 100)], 100)
    assert datasets.abandon_upload(upload)
    assert reader.dataset_parts(made.id) == []


def test_one_in_check_is_not_deleted(datasets: Datasets, checks: Checks) -> None:
    made = uploaded(datasets)
    with pytest.raises(DatasetInCheck, match=f"data set {made.id} is being checked; delete it once"):
        datasets.begin_delete(made.id)


def test_a_job_reads_only_what_is_ready_and_holds_on_to_it_until_it_ends(
    datasets: Datasets, checks: Checks, ledger: Ledger
) -> None:
    with pytest.raises(DatasetNotReady, match="is empty; a job can read it once it is ready"):
        submit_reading(ledger, added(datasets).id)
    made = made_ready(datasets, checks)
    job = submit_reading(ledger, made.id)
    with pytest.raises(DatasetNeeded, match=f"job {job.id} is queued and reads {made.id}"):
        datasets.begin_delete(made.id)
    ledger.request_cancel(job.id)
    datasets.begin_delete(made.id)


def test_of_a_deletion_and_jobs_submitted_at_once_no_job_is_left_without_its_data(
    datasets: Datasets, checks: Checks, ledger: Ledger, reader: Reader
) -> None:
    for _ in range(5):
        made = made_ready(datasets, checks)

        def submitted(dataset_id: str = made.id) -> ToldJob | None:
            try:
                return submit_reading(ledger, dataset_id)
            except DatasetNotFound:
                return None

        def deleted(dataset_id: str = made.id) -> bool:
            try:
                datasets.begin_delete(dataset_id)
            except DatasetNeeded:
                return False
            return True

        *jobs, gone = at_once(submitted, submitted, deleted)
        assert gone is not any(jobs)
