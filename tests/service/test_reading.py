import pytest
from sqlalchemy import Engine, text

from acmix.catalog import Catalog, Device, TaskEntry
from acmix.events import Event
from service.store.database import clock, writing
from service.store.errors import CheckpointNotFound, JobNotFound
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Menu, WorkerCard
from tests.service.work import claim, submit

A100 = Device(index=0, name="A100", memory_bytes=80 * 2**30)


def card(worker_id: str, *names: str, gpus: int = 0) -> WorkerCard:
    entries = [TaskEntry(name=name, description="", options={}, metrics=["accuracy"]) for name in names]
    return WorkerCard(worker_id, "node-a", max(gpus, 1), [A100] * gpus, {"torch": "2.14"}, Catalog(tasks=entries))


def menu_of(reader: Reader) -> Menu:
    found = reader.menu()
    assert found is not None
    return found


def long_ago(engine: Engine, column: str, days: int) -> None:
    with writing(engine).begin() as connection:
        past = clock(connection).timestamp() - days * 86_400
        shown = "to_timestamp(:past)"
        if engine.dialect.name == "sqlite":
            shown = "strftime('%Y-%m-%dT%H:%M:%S.000000Z', :past, 'unixepoch')"
        connection.execute(text(f"UPDATE workers SET {column} = {shown}"), {"past": past})


def test_what_is_not_there_is_not_found(reader: Reader) -> None:
    reader.ping()
    with pytest.raises(JobNotFound):
        reader.job("job_none")
    with pytest.raises(CheckpointNotFound):
        reader.checkpoint("ckpt_none")
    assert reader.events("job_none") == []
    assert reader.jobs().data == []


def test_pages_run_through_all_jobs_newest_first(ledger: Ledger, reader: Reader) -> None:
    submitted = [submit(ledger).id for _ in range(7)]
    pages, after = [], None
    while True:
        page = reader.jobs(limit=3, after=after)
        pages.append([job.id for job in page.data])
        after = page.next
        if not page.has_more:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [job_id for page in pages for job_id in page] == submitted[::-1]
    assert after is None


def test_a_page_that_just_fills_up_has_no_more(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    page = reader.jobs(limit=1)
    assert (len(page.data), page.has_more, page.next) == (1, False, None)


def test_jobs_are_filtered_by_all_that_is_given(ledger: Ledger, reader: Reader) -> None:
    odd = 'a "quoted" key\'s $.path[0]%_'
    first = submit(ledger, name="a", metadata={"study": "depth", odd: "x"})
    second = submit(ledger, name="b", metadata={"study": "depth"})
    third = submit(ledger, name="a", metadata={"study": "width"})
    ledger.request_cancel(third.id)

    def ids(**filters: object) -> list[str]:
        return [job.id for job in reader.jobs(**filters).data]  # type: ignore[arg-type]  # any filter

    assert ids(name="a") == [third.id, first.id]
    assert ids(status="cancelled") == [third.id]
    assert ids(kind="train", name="b") == [second.id]
    assert ids(kind="evaluate") == []
    assert ids(metadata={"study": "depth"}) == [second.id, first.id]
    assert ids(metadata={"study": "depth", odd: "x"}) == [first.id]
    assert ids(metadata={"study": "dep"}) == []
    assert ids(metadata={"study": "width"}, status="queued") == []
    assert ids(metadata={"study": "depth"}, limit=1, after=second.id) == [first.id]


def test_the_queue_is_paged_in_claim_order(ledger: Ledger, reader: Reader) -> None:
    submitted = [submit(ledger, priority=priority).id for priority in (0, 1, 0, 1, 2)]
    expected = [submitted[index] for index in (4, 1, 3, 0, 2)]
    first = reader.queue(limit=2)
    second = reader.queue(limit=2, after=first.next)
    third = reader.queue(limit=2, after=second.next)
    assert [job.id for page in (first, second, third) for job in page.data] == expected
    assert (first.has_more, second.has_more, third.has_more) == (True, True, False)
    with pytest.raises(JobNotFound):
        reader.queue(after="job_none")


def test_only_a_queued_job_has_a_position(ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger)
    assert reader.position(job.id) == 1
    claim(ledger)
    assert reader.position(job.id) is None
    assert reader.queue().data == []


def test_events_are_cut_by_number_and_type(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.record(job.id, 1, [Event("warning", str(number)) for number in range(3, 6)])
    assert [event.number for event in reader.events(job.id, after=3)] == [4, 5]
    assert [event.number for event in reader.events(job.id, types=["status"])] == [1, 2]
    assert [event.number for event in reader.events(job.id, after=1, types=["status", "warning"], limit=2)] == [2, 3]


def test_log_lines_are_read_on_from_a_number_or_from_the_end(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.log(job.id, 1, [f"line {number}" for number in range(1, 6)])
    assert reader.log_lines(job.id, after=3) == [(4, "line 4"), (5, "line 5")]
    assert reader.log_lines(job.id, limit=2) == [(1, "line 1"), (2, "line 2")]
    assert reader.log_lines(job.id, tail=2) == [(4, "line 4"), (5, "line 5")]
    assert reader.log_lines(job.id, tail=0) == []


def test_workers_are_listed_while_they_are_heard_of(ledger: Ledger, reader: Reader, engine: Engine) -> None:
    ledger.enrol(card("worker-1", "classification", gpus=2))
    ledger.seen("worker-1", 1)
    [worker] = reader.workers()
    assert (worker.id, worker.host, worker.slots, worker.busy) == ("worker-1", "node-a", 2, 1)
    assert worker.devices == [A100] * 2
    assert worker.catalog.tasks[0].name == "classification"
    long_ago(engine, "seen_at", days=1)
    assert reader.workers() == []
    ledger.seen("worker-1", 0)
    assert len(reader.workers()) == 1


def test_a_worker_that_left_is_not_listed_but_its_menu_stays_for_a_week(
    ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    ledger.enrol(card("worker-1", "classification", gpus=2))
    ledger.leave("worker-1")
    assert reader.workers() == []
    assert [len(machine.devices) for machine in menu_of(reader).fleet] == [2]
    long_ago(engine, "seen_at", days=8)
    assert reader.menu() is None
    ledger.enrol(card("worker-1", "classification"))
    assert len(reader.workers()) == 1


def test_the_menu_is_the_union_of_what_workers_posted(ledger: Ledger, reader: Reader) -> None:
    assert reader.menu() is None
    ledger.enrol(card("worker-1", "classification", gpus=1))
    ledger.enrol(card("worker-2", "classification", "detection", gpus=4))
    catalog = reader.catalog()
    assert catalog is not None
    assert [entry.name for entry in catalog.tasks] == ["classification", "detection"]
    assert [len(machine.devices) for machine in menu_of(reader).fleet] == [1, 4]
