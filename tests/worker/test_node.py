"""What a node claims, for which of its slots, and how it comes and goes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from acmix.catalog import Device
from service.store.backend import Backend
from service.store.ledger import Ledger
from service.store.reading import Reader
from tests.service.menu import catalog
from tests.service.work import submit, until
from worker.node import Card, Node

SUCCEED = "tell('status', status='succeeded')"
StandIn = Callable[[str], None]
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
pytestmark = on_sqlite


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """The threads in which messages ring."""
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def nodes(backend: Backend, threads: ThreadPoolExecutor) -> Iterator[Callable[..., Node]]:
    """Makes nodes with so many GPUs and a menu without these names; they are drained before the threads end."""
    made: list[Node] = []

    def make(*, gpus: int = 0, lacks: tuple[str, ...] = ()) -> Node:
        sections: dict[str, Any] = dict(catalog())
        has = {section: [one for one in menu if one.name not in lacks] for section, menu in sections.items()}
        devices = [Device(index=index, name="card", memory_bytes=2**34) for index in range(gpus)]
        made.append(Node(backend, Card(catalog().model_copy(update=has), devices, {"acmix": "0"})))
        return made[-1]

    yield make
    for node in made:
        node.drain()


@pytest.mark.parametrize("name", ["classification", "resnet26", "acmix", "digits", "sgd", "cosine", "default"])
def test_a_job_with_a_name_that_the_menu_lacks_is_left_to_others(
    name: str, stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(SUCCEED)
    job = submit(ledger, swaps=[{"layers": "*"}])
    nodes(lacks=(name,)).ring()
    assert (reader.job(job.id).status, reader.job(job.id).attempt) == ("queued", 0)
    nodes().ring()
    assert (reader.job(job.id).status, reader.job(job.id).attempt) == ("succeeded", 1)


@pytest.mark.parametrize("name", ["zoo/lion", "zoo/dodo"])
def test_a_model_of_a_family_is_run_where_the_family_has_it(
    name: str, stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(SUCCEED)
    job = submit(ledger, backbone={"name": name})
    nodes().ring()
    assert reader.job(job.id).status == ("succeeded" if name == "zoo/lion" else "queued")


def test_a_spec_of_another_version_is_left_to_others_and_keeps_no_other_waiting(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(SUCCEED)
    known = submit(ledger)
    newer, _ = ledger.submit(known.spec, {**known.resolved_spec, "colour": "blue", "priority": 1})
    nodes().ring()
    assert [reader.job(job.id).status for job in (newer, known)] == ["queued", "succeeded"]


def test_a_ring_runs_what_is_queued_one_after_the_other(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(SUCCEED)
    jobs = [submit(ledger), submit(ledger, priority=1), submit(ledger)]
    nodes().ring()
    ended = sorted((reader.job(job.id) for job in jobs), key=lambda job: str(job.ended_at))
    assert [job.status for job in ended] == ["succeeded"] * 3
    assert [job.id for job in ended] == [jobs[1].id, jobs[0].id, jobs[2].id]


def test_a_node_whose_slot_is_taken_claims_nothing(
    stand_in: StandIn, nodes: Callable[..., Node], threads: ThreadPoolExecutor, ledger: Ledger, reader: Reader
) -> None:
    stand_in(f"tell('progress', phase='waiting')\nwait_for('go')\n{SUCCEED}")
    first, second = submit(ledger), submit(ledger)
    node = nodes()
    ringing = threads.submit(node.ring)
    until(lambda: reader.job(first.id).phase == "waiting")
    for _ in range(3):
        node.ring()
    assert reader.job(second.id).status == "queued"
    Path("go").touch()
    ringing.result(10)
    assert [(reader.job(job.id).status, reader.job(job.id).attempt) for job in (first, second)] == [
        ("succeeded", 1)
    ] * 2


def test_every_slot_is_a_gpu_of_its_own(
    stand_in: StandIn,
    nodes: Callable[..., Node],
    threads: ThreadPoolExecutor,
    ledger: Ledger,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stand_in(f"tell('progress', gpu=os.environ['CUDA_VISIBLE_DEVICES'])\nwait_for('go')\n{SUCCEED}")
    jobs = [submit(ledger) for _ in range(3)]
    node = nodes(gpus=2)
    assert node.slots == 2
    ringing = [threads.submit(node.ring) for _ in range(4)]

    def gpus() -> list[str]:
        return [event.data["gpu"] for job in jobs for event in reader.events(job.id, types=["progress"])]

    until(lambda: len(gpus()) == 2)
    assert sorted(gpus()) == ["0", "1"]
    assert [reader.job(job.id).resolved_spec["resources"]["gpus"] for job in jobs] == [1, 1, "auto"]
    Path("go").touch()
    for ring in ringing:
        ring.result(10)
    assert {reader.job(job.id).status for job in jobs} == {"succeeded"}


def test_a_job_that_asks_for_a_gpu_is_left_by_a_node_without_one(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in("tell('progress', gpu=os.environ['CUDA_VISIBLE_DEVICES'])\n" + SUCCEED)
    wants_one, wants_none = submit(ledger, resources={"gpus": 1}), submit(ledger, resources={"gpus": 0})
    nodes().ring()
    assert [reader.job(job.id).status for job in (wants_one, wants_none)] == ["queued", "succeeded"]
    nodes(gpus=1).ring()
    assert reader.job(wants_one.id).status == "succeeded"
    assert reader.events(wants_none.id, types=["progress"])[0].data["gpu"] == ""


def test_a_node_comes_looks_for_jobs_without_being_rung_and_goes(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(f"tell('progress', phase='waiting')\nwait_for('go')\n{SUCCEED}")
    node = nodes()
    node.start()
    job = submit(ledger)
    until(lambda: reader.job(job.id).phase == "waiting")
    until(lambda: [worker.busy for worker in reader.workers()] == [1])
    [worker] = reader.workers()
    assert (worker.id, worker.slots, worker.catalog) == (node.id, 1, catalog())
    assert reader.job(job.id).worker == node.id
    Path("go").touch()
    until(lambda: reader.job(job.id).status == "succeeded")
    node.drain()
    node.stop()
    assert reader.workers() == []
    assert reader.catalog() == catalog()


def test_a_drained_node_gives_its_job_back_and_claims_no_other(
    stand_in: StandIn, nodes: Callable[..., Node], threads: ThreadPoolExecutor, ledger: Ledger, reader: Reader
) -> None:
    stand_in("""
        def stop(*_):
            tell("status", status="stopped")
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        tell("progress", phase="training")
        sleep()
    """)
    running, waiting = submit(ledger), submit(ledger)
    node = nodes()
    ringing = threads.submit(node.ring)
    until(lambda: reader.job(running.id).phase == "training")
    node.drain()
    ringing.result(10)
    node.ring()
    after = reader.job(running.id)
    assert (after.status, after.attempt, after.failures, after.losses) == ("queued", 1, 0, 0)
    assert (reader.job(waiting.id).status, reader.job(waiting.id).attempt) == ("queued", 0)
    assert reader.position(running.id) == 1


def test_a_job_that_cannot_be_seen_through_keeps_no_other_waiting(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    """NaN is no JSON that the ledger takes, so what the run says cannot be recorded at all."""
    stand_in(f"tell('progress', rate=float('nan') if 'poison' in Path(sys.argv[2]).read_text() else 0)\n{SUCCEED}")
    poison, sound = submit(ledger, name="poison"), submit(ledger)
    node = nodes()
    node.start()
    until(lambda: reader.job(sound.id).status == "succeeded")
    after = reader.job(poison.id)
    assert (after.status, after.failures) == ("queued", 1)
    assert after.status_reason is not None
    assert after.status_reason["code"] == "internal"
    node.drain()
    node.stop()
