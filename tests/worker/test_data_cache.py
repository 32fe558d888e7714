"""Users' data sets on a node: unpacked once, shared, kept within bounds, and given to the attempts that read them."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from acmix.errors import AcmixError, DatasetCorrupt, DatasetMissing, DiskFull
from acmix.inspection.content import content_of
from service.store.backend import Backend
from service.store.rows import Dataset
from tests.service.work import at_once, claim, until
from tests.worker.runs import is_gone
from tests.worker.uploaded import STAND_IN, made_ready, submit_reading
from worker import archives, data_cache, fingerprint
from worker.data_cache import DataCache, GivenUp
from worker.inspection_child import InspectionChild, InspectionFailed
from worker.supervise import Supervisor

StandIn = Callable[[str], None]
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that unpacked something."""
    pids = []

    class Counted(InspectionChild):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]  # handed through as they came
            pids.append(self.process.pid)

    monkeypatch.setattr(data_cache, "InspectionChild", Counted)
    monkeypatch.setattr(data_cache, "TICK_SECONDS", 0.01)
    return pids


@pytest.fixture
def cache(backend: Backend) -> DataCache:
    return DataCache(backend, STAND_IN)


def read(cache: DataCache, dataset: Dataset) -> str:
    with cache.held(dataset.id, never) as folder:
        return (folder / "text").read_text()


def kept(cache: DataCache) -> set[str]:
    """The data sets whose content is there."""
    return {path.parent.parent.name.partition("-")[0] for path in cache.folder.glob("ds_*/content/text")}


def lying_ready(backend: Backend, text: str = "ready", *, by_stand_in: bool = True) -> Dataset:
    """One of two files below the data root that was checked and found good; the stand-in hashes the text alone."""
    folder = backend.settings.data_root / "flowers"
    (folder / "more").mkdir(parents=True)
    (folder / "text").write_text(text)
    (folder / "more/1").write_text("a")
    made = backend.datasets.add(name="", task="detection", format_="coco", options={}, path="flowers")
    check = backend.checks.claim()
    assert check is not None
    sha256 = hashlib.sha256(text.encode()).hexdigest() if by_stand_in else content_of(folder, lambda *_: None).sha256
    backend.checks.ready(check, {"sha256": sha256, "size_bytes": 1, "files": 2, "num_classes": None, "root": "."})
    return backend.reader.dataset(made.id)


def strays(cache: DataCache) -> list[Path]:
    return list(cache.folder.glob(".*"))


def test_a_data_set_is_unpacked_once_for_all_that_read_it_at_once_and_later(
    backend: Backend, cache: DataCache, unpacked: list[int]
) -> None:
    made = made_ready(backend, "ready once")
    assert at_once(*[lambda: read(DataCache(backend, STAND_IN), made)] * 4) == ["ready once"] * 4
    assert read(cache, made) == "ready once"
    assert len(unpacked) == 1
    [entry] = cache.folder.glob("ds_*/")
    assert entry.name == f"{made.id}-{(made.sha256 or '')[:16]}"
    assert sorted(path.name for path in entry.iterdir() if path.is_dir()) == ["content"]
    assert not (entry / "archive").exists()


def test_two_that_wait_for_it_have_it_while_the_first_still_reads(backend: Backend, cache: DataCache) -> None:
    """Whoever waited to make it must not wait for those who read what another has made meanwhile."""
    go_on = backend.settings.data_folder / "go_on"
    made = made_ready(backend, f"wait {go_on} ready")
    all_in = threading.Barrier(4, timeout=30)

    def hold() -> None:
        with cache.held(made.id, never):
            all_in.wait()

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    go_on.touch()
    all_in.wait()
    for thread in threads:
        thread.join()


def test_what_lies_below_the_data_root_is_read_where_it_lies(backend: Backend, cache: DataCache) -> None:
    made = lying_ready(backend)
    with cache.held(made.id, never) as folder:
        assert folder == backend.settings.data_root / "flowers"
    assert (kept(cache), strays(cache)) == (set(), [])


def test_the_one_that_was_not_of_use_for_the_longest_time_makes_way_but_never_one_in_use(
    backend: Backend, cache: DataCache
) -> None:
    small = replace(backend, settings=replace(backend.settings, data_cache_bytes=250))
    cache = DataCache(small, STAND_IN)
    first, second, third, fourth = (made_ready(backend, f"ready {n}", size_bytes=100) for n in range(4))
    for number, dataset in enumerate((first, second)):
        read(cache, dataset)
        [lock] = cache.folder.glob(f"{dataset.id}-*.lock")
        os.utime(lock, (number, number))
    read(cache, third)
    assert kept(cache) == {second.id, third.id}
    with cache.held(second.id, never):
        read(cache, fourth)
        assert kept(cache) == {second.id, fourth.id}
        with cache.held(fourth.id, never):
            read(cache, first)
            assert kept(cache) == {first.id, second.id, fourth.id}, "more than there is room for, but all in use"
    read(cache, third)
    assert len(kept(cache)) == 2
    assert strays(cache) == []


def test_a_disk_that_others_fill_leaves_room_for_fewer(
    backend: Backend, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (made_ready(backend, f"ready {n}", size_bytes=100) for n in range(3))
    read(cache, first)
    read(cache, second)
    monkeypatch.setattr(archives, "free_bytes", lambda _: archives.SPARE_BYTES + 250 - 100 * len(kept(cache)))
    read(cache, third)
    assert kept(cache) == {second.id, third.id}


def test_one_that_was_deleted_is_removed_when_another_comes(backend: Backend, cache: DataCache) -> None:
    deleted, other = made_ready(backend, "ready 1"), made_ready(backend, "ready 2")
    read(cache, deleted)
    backend.datasets.begin_delete(deleted.id)
    read(cache, other)
    assert kept(cache) == {other.id}


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("other", DatasetCorrupt, "is not what was checked: its content differs"),
        ("die", InspectionFailed, "the process that inspects data sets was ended by SIGKILL"),
        ("babble", InspectionFailed, "ended without a report"),
    ],
)
def test_what_cannot_be_unpacked_as_it_was_checked_is_not_kept(
    text: str, error: type[AcmixError], sentence: str, backend: Backend, cache: DataCache
) -> None:
    made = made_ready(backend, text)
    with pytest.raises(error, match=sentence):
        read(cache, made)
    assert (kept(cache), strays(cache)) == (set(), [])


def test_what_is_gone_or_has_no_room_is_told(
    backend: Backend, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, unstored, large = (made_ready(backend, f"ready {n}") for n in range(3))
    backend.datasets.begin_delete(hidden.id)
    backend.artifacts.delete_prefix(f"datasets/{unstored.id}")
    for gone in (hidden, unstored):
        with pytest.raises(DatasetMissing, match=f"{gone.id}, which the job reads, was removed before it began"):
            read(cache, gone)
    monkeypatch.setattr(archives, "SPARE_BYTES", 2**60)
    with pytest.raises(DiskFull):
        read(cache, large)
    assert (kept(cache), strays(cache)) == (set(), [])


def test_what_a_killed_worker_left_half_made_is_made_anew_or_goes(backend: Backend, cache: DataCache) -> None:
    first, second = made_ready(backend, "ready 1"), made_ready(backend, "ready 2")
    for dataset in (first, second):
        half = cache.folder / f".{dataset.id}-{(dataset.sha256 or '')[:16]}.making" / "content"
        half.mkdir(parents=True)
        (half / "text").write_text("half")
    assert read(cache, first) == "ready 1"
    assert strays(cache) == []


def test_one_who_gives_up_ends_the_child_and_leaves_nothing(
    backend: Backend, cache: DataCache, unpacked: list[int]
) -> None:
    made = made_ready(backend, "wait /nowhere ready")
    with pytest.raises(GivenUp), cache.held(made.id, lambda: bool(unpacked)):
        pytest.fail("it cannot be there")
    assert is_gone(unpacked[0])
    assert (kept(cache), strays(cache)) == (set(), [])


def test_one_who_gives_up_waiting_for_another_to_make_it_does_so_at_once(
    backend: Backend, cache: DataCache, unpacked: list[int]
) -> None:
    go_on = backend.settings.data_folder / "go_on"
    made = made_ready(backend, f"wait {go_on} ready")
    maker = threading.Thread(target=read, args=(cache, made))
    maker.start()
    until(lambda: bool(unpacked))
    asked = iter([False] * 3)
    with ExitStack() as held, pytest.raises(GivenUp):
        held.enter_context(cache.held(made.id, lambda: next(asked, True)))
    go_on.touch()
    maker.join()
    assert len(unpacked) == 1


# Data below the data root


def rewrite(path: Path, text: str) -> None:
    """Other bytes in the same file, its time as before."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def wrap(folder: Path) -> None:
    (folder / "wrapped").mkdir()
    for name in ("text", "more"):
        time.sleep(0.02)  # a tick of the file system's clock
        (folder / name).rename(folder / "wrapped" / name)


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {  # with what may have changed last: clocks tick
    "other bytes": (lambda folder: rewrite(folder / "more/1", "b"), {"flowers/more/1"}),
    "one more": (lambda folder: (folder / "more/2").write_text("c"), {"flowers/more", "flowers/more/2"}),
    "one less": (lambda folder: (folder / "more/1").unlink(), {"flowers/more"}),
    "one less at the top": (lambda folder: (folder / "text").unlink(), {"flowers"}),
    "another name": (lambda folder: (folder / "text").rename(folder / "t"), {"flowers", "flowers/t"}),
    "in a folder of its own": (wrap, {"flowers", "flowers/wrapped", "flowers/wrapped/more"}),
}


@pytest.mark.parametrize(("change", "last"), CHANGES.values(), ids=CHANGES)
def test_what_changed_below_the_data_root_since_it_was_checked_is_not_read(
    change: Callable[[Path], object], last: set[str], backend: Backend
) -> None:
    """By the library's own process."""
    made, cache = lying_ready(backend, by_stand_in=False), DataCache(backend)
    with cache.held(made.id, never):
        pass
    change(backend.settings.data_root / "flowers")
    with pytest.raises(DatasetCorrupt) as caught, cache.held(made.id, never):
        pytest.fail("it is not what was checked")
    told, _, name = caught.value.message.partition("; what changed last is ")
    changed = "the data below path='flowers' changed since it was checked"
    assert told == f"{made.id}, which the job reads, is not what was checked: {changed}"
    assert name.strip("'") in last
    assert caught.value.hint == "declare it as a new data set, or put back what was checked"


def test_what_is_gone_from_below_the_data_root_is_told(backend: Backend, cache: DataCache) -> None:
    made = lying_ready(backend)
    (backend.settings.data_root / "flowers").rename(backend.settings.data_root / "elsewhere")
    with pytest.raises(DatasetMissing, match="flowers is not a folder") as caught:
        read(cache, made)
    assert caught.value.hint == "declare it as a new data set, or put back what was checked"


def test_a_folder_that_shows_no_change_is_hashed_once_a_node(
    backend: Backend, cache: DataCache, unpacked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", 0.0)
    text = backend.settings.data_root / "flowers/text"
    made = lying_ready(backend)
    for reader in (cache, cache, DataCache(backend, STAND_IN)):
        assert read(reader, made) == "ready"
    assert len(unpacked) == 1
    for number in range(2, 4):  # that it was not as checked is not kept in mind
        rewrite(text, "READY")
        with pytest.raises(DatasetCorrupt):
            read(cache, made)
        assert len(unpacked) == number
    rewrite(text, "ready")
    assert [read(cache, made) for _ in range(2)] == ["ready"] * 2
    assert len(unpacked) == 4


def test_a_folder_that_was_written_a_moment_ago_is_hashed_again(
    backend: Backend, cache: DataCache, unpacked: list[int]
) -> None:
    """A change within a tick of the file system's clock would not show."""
    made = lying_ready(backend)
    assert [read(cache, made) for _ in range(2)] == ["ready"] * 2
    assert len(unpacked) == 2


def test_a_folder_that_changes_while_it_is_hashed_is_hashed_again(
    backend: Backend, cache: DataCache, unpacked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", 0.0)
    go_on = backend.settings.data_folder / "go_on"
    made = lying_ready(backend, f"wait {go_on} ready")

    def change() -> bool:
        if unpacked and not go_on.exists():
            (backend.settings.data_root / "flowers/late").touch()
            go_on.touch()
        return False

    with cache.held(made.id, change):
        pass
    read(cache, made)
    assert len(unpacked) == 2


def test_one_who_gives_up_looking_at_what_lies_there_ends_the_child(
    backend: Backend, cache: DataCache, unpacked: list[int]
) -> None:
    made = lying_ready(backend, "wait /nowhere ready")
    with pytest.raises(GivenUp), cache.held(made.id, lambda: True):
        pytest.fail("nobody has looked at it")
    assert unpacked == []
    with pytest.raises(GivenUp), cache.held(made.id, lambda: bool(unpacked)):
        pytest.fail("nobody has looked at it")
    assert is_gone(unpacked[0])


# Attempts


TELL_FOLDER = """
given = sys.argv[sys.argv.index("--dataset-folder") + 1] if "--dataset-folder" in sys.argv else None
tell("progress", phase="found", text=(Path(given) / "text").read_text() if given else None)
tell("status", status="succeeded")
"""


def supervise(backend: Backend, draining: threading.Event | None = None) -> None:
    claimed = claim(backend.ledger)
    draining = draining or threading.Event()
    Supervisor(backend, claimed, [], 1, draining, draining, inspect_command=STAND_IN).run()


def test_an_attempt_is_given_the_data_set_that_its_job_names(backend: Backend, stand_in: StandIn) -> None:
    stand_in(TELL_FOLDER)
    job = submit_reading(backend, made_ready(backend, "ready"))
    supervise(backend)
    assert backend.reader.job(job.id).status == "succeeded"
    [told] = [event for event in backend.reader.events(job.id) if event.data.get("phase") == "found"]
    assert told.data["text"] == "ready"


def test_an_attempt_whose_data_set_is_not_what_was_checked_fails(backend: Backend, stand_in: StandIn) -> None:
    stand_in(TELL_FOLDER)
    job = submit_reading(backend, made_ready(backend, "other"))
    supervise(backend)
    failed = backend.reader.job(job.id)
    assert failed.status_reason is not None
    assert (failed.status, failed.status_reason["code"]) == ("failed", "dataset_corrupt")


def test_data_is_in_use_for_as_long_as_the_attempt_runs(backend: Backend, stand_in: StandIn, tmp_path: Path) -> None:
    go_on = tmp_path / "go_on"
    stand_in(f"""
    tell("progress", phase="reading")
    wait_for({str(go_on)!r})
    tell("status", status="succeeded")
    """)
    small = replace(backend, settings=replace(backend.settings, data_cache_bytes=0))
    first, second = made_ready(backend, "ready 1"), made_ready(backend, "ready 2")
    job = submit_reading(backend, first)
    attempt = threading.Thread(target=supervise, args=(small,))
    attempt.start()
    until(lambda: backend.reader.job(job.id).phase == "reading")
    cache = DataCache(small, STAND_IN)
    read(cache, second)
    assert kept(cache) == {first.id, second.id}
    go_on.touch()
    attempt.join()
    read(cache, made_ready(backend, "ready 3"))
    assert first.id not in kept(cache)


@pytest.mark.parametrize(("how", "status"), [("cancel", "cancelled"), ("drain", "queued")])
def test_an_attempt_that_is_to_end_does_not_wait_for_its_data(
    how: str, status: str, backend: Backend, stand_in: StandIn, unpacked: list[int]
) -> None:
    """The lease is kept meanwhile, and longer than it lasts."""
    stand_in(TELL_FOLDER)
    job = submit_reading(backend, made_ready(backend, "wait /nowhere ready"))
    draining = threading.Event()
    attempt = threading.Thread(target=supervise, args=(backend, draining))
    attempt.start()
    until(lambda: bool(unpacked))
    first = backend.reader.job(job.id).lease_expires_at
    assert first is not None

    def is_renewed() -> bool:
        now = backend.reader.job(job.id).lease_expires_at
        assert now is not None
        return (now - first).total_seconds() > backend.settings.lease_seconds

    until(is_renewed)
    assert backend.ledger.sweep() == []
    if how == "cancel":
        backend.ledger.request_cancel(job.id)
    else:
        draining.set()
    attempt.join(30)
    after = backend.reader.job(job.id)
    assert (after.status, after.failures, after.losses) == (status, 0, 0)
    assert is_gone(unpacked[0])
