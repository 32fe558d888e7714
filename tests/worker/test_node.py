"""What a node claims, for which of its slots, and how it comes and goes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from acmix.catalog import Device
from acmix.fleet import SHARED
from service.store.backend import Backend
from service.store.ledger import Ledger
from service.store.reading import Reader
from tests.service.menu import catalog
from tests.service.work import submit, until
from tests.worker.nvml import Nvml, card, divided, holds
from tests.worker.runs import is_gone
from worker import clearing, devices
from worker import node as node_module
from worker.driver import Driver
from worker.node import Card, Node

SUCCEED = "tell('status', status='succeeded')"
TOLD = [Device(index=0, name="as torch tells", memory_bytes=1)]
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
    """Makes nodes with so many GPUs, or such cards, and a menu without these names; `more` are settings.

    They are drained before the threads end.
    """
    made: list[Node] = []

    def make(*, gpus: int = 0, cards: Sequence[dict[str, Any]] = (), lacks: tuple[str, ...] = (), **more: Any) -> Node:
        sections: dict[str, Any] = dict(catalog())
        has = {section: [one for one in menu if one.name not in lacks] for section, menu in sections.items()}
        driver = Driver(Nvml(*cards or (card(index) for index in range(gpus))))
        found = devices.of_this_machine(driver, TOLD, None)
        given = replace(backend, settings=replace(backend.settings, **more))
        made.append(Node(given, Card(catalog().model_copy(update=has), found, {"acmix": "0"}), driver))
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
) -> None:
    stand_in(f"tell('progress', gpu=os.environ['CUDA_VISIBLE_DEVICES'])\nwait_for('go')\n{SUCCEED}")
    jobs = [submit(ledger) for _ in range(3)]
    node = nodes(gpus=2)
    assert node.slots.count == 2
    ringing = [threads.submit(node.ring) for _ in range(4)]

    def gpus() -> list[str]:
        return [event.data["gpu"] for job in jobs for event in reader.events(job.id, types=["progress"])]

    until(lambda: len(gpus()) == 2)
    assert sorted(gpus()) == ["GPU-0", "GPU-1"]
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


def test_that_a_job_came_or_went_is_told_before_the_next_sign_of_life_is_due(
    stand_in: StandIn, nodes: Callable[..., Node], threads: ThreadPoolExecutor, ledger: Ledger, reader: Reader
) -> None:
    stand_in(f"tell('progress', phase='waiting')\nwait_for('go')\n{SUCCEED}")
    node = nodes(gpus=2, idle_look_seconds=3600)
    node.start()
    until(lambda: len(reader.workers()) == 1)
    job = submit(ledger)
    ringing = threads.submit(node.ring)

    def device() -> dict[str, Any]:
        load = reader.workers()[0].load or {}
        return load["devices"][0] | {"free": load["free_slots"]} if load else {}

    until(lambda: device().get("jobs") == [job.id])
    assert (reader.workers()[0].busy, device()["free"]) == (1, 1)
    Path("go").touch()
    ringing.result(20)
    until(lambda: reader.workers()[0].busy == 0)
    assert (device()["jobs"], device()["free"]) == ([], 2)
    node.drain()
    node.stop()


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


TELL = """
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ACMIX_LOADER_WORKERS")}
    tell('progress', phase='waiting', pid=os.getpid(), **seen)
    wait_for('go')
    tell('status', status='succeeded')
"""


def told(reader: Reader, job_id: str) -> dict[str, Any]:
    """What its run told of itself."""
    until(lambda: bool(reader.events(job_id, types=["progress"])))
    data: dict[str, Any] = reader.events(job_id, types=["progress"])[0].data
    return data


def test_a_job_of_several_gpus_has_as_many_slots_and_the_next_one_waits_for_them(
    stand_in: StandIn, nodes: Callable[..., Node], threads: ThreadPoolExecutor, ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    node = nodes(gpus=3)
    both = submit(ledger, resources={"gpus": 2})
    ringing = [threads.submit(node.ring)]
    assert told(reader, both.id)["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
    assert (node.slots.busy(), node.slots.free()) == (2, (2,))
    too_many, one = submit(ledger, resources={"gpus": 2}), submit(ledger, resources={"gpus": 1})
    ringing.append(threads.submit(node.ring))
    assert told(reader, one.id)["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    assert reader.job(too_many.id).status == "queued"
    Path("go").touch()
    for ring in ringing:
        ring.result(20)
    assert reader.job(too_many.id).status == "succeeded"
    assert node.slots.free() == (0, 1, 2)


def test_all_slots_of_a_node_that_nobody_rings_are_given(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    jobs = [submit(ledger) for _ in range(4)]
    node = nodes(gpus=3)
    node.start()
    until(lambda: sorted(reader.job(job.id).phase or "" for job in jobs) == ["", "waiting", "waiting", "waiting"])
    assert node.slots.busy() == 3
    Path("go").touch()
    until(lambda: {reader.job(job.id).status for job in jobs} == {"succeeded"})


@pytest.mark.parametrize(
    ("gpus", "cores", "resources", "share"),
    [
        (0, 9, {"gpus": 0}, "8"),
        (0, 9, {"gpus": 0, "processes": 3}, "2"),
        (0, 2, {"gpus": 0, "processes": 8}, "1"),
        (4, 14, {"gpus": 1}, "3"),
        (4, 14, {"gpus": 4}, "3"),
        (3, 15, {"gpus": 2}, "4"),
    ],
)
def test_each_process_of_a_run_has_its_fair_share_of_the_cores(
    gpus: int,
    cores: int,
    resources: dict[str, Any],
    share: str,
    stand_in: StandIn,
    nodes: Callable[..., Node],
    ledger: Ledger,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(node_module, "_cores", lambda: cores)
    stand_in(TELL)
    Path("go").touch()
    job = submit(ledger, resources=resources)
    nodes(gpus=gpus).ring()
    assert (told(reader, job.id)["OMP_NUM_THREADS"], told(reader, job.id)["ACMIX_LOADER_WORKERS"]) == (share, share)
    assert reader.job(job.id).status == "succeeded"


def test_shared_gpus_are_for_jobs_that_agree_to_it_and_to_each_its_own_while_there_are_any(
    stand_in: StandIn, nodes: Callable[..., Node], threads: ThreadPoolExecutor, ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    node = nodes(gpus=2, slots_per_gpu=2)
    alone, both = submit(ledger), submit(ledger, resources={"gpus": 2, "labels": [SHARED]})
    agreed = [submit(ledger, resources={"labels": [SHARED]}) for _ in range(3)]
    ringing = [threads.submit(node.ring) for _ in range(4)]
    seen = [told(reader, job.id)["CUDA_VISIBLE_DEVICES"] for job in agreed]
    assert sorted(seen) == ["GPU-0", "GPU-0", "GPU-1"]
    assert [reader.job(job.id).status for job in (alone, both)] == ["queued", "queued"]
    Path("go").touch()
    for ring in ringing:
        ring.result(20)
    assert [reader.job(job.id).status for job in (alone, both)] == ["queued", "queued"]


def test_labels_of_the_settings_are_the_workers(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(SUCCEED)
    job = submit(ledger, resources={"labels": ["nvme"]})
    nodes(worker_labels=("rack-3",)).ring()
    assert reader.job(job.id).status == "queued"
    labelled = nodes(worker_labels=("rack-3", "nvme"))
    labelled.ring()
    assert reader.job(job.id).status == "succeeded"
    labelled.start()
    until(lambda: [worker.labels for worker in reader.workers()] == [["nvme", "rack-3"]])


def test_of_a_divided_gpu_a_job_has_one_part(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    Path("go").touch()
    node = nodes(cards=[divided(0, "MIG-a", "MIG-b")])
    both, one = submit(ledger, resources={"gpus": 2}), submit(ledger, resources={"gpus": 1})
    node.ring()
    assert told(reader, one.id)["CUDA_VISIBLE_DEVICES"] == "MIG-a"
    assert reader.job(both.id).status == "queued"


LEAVES_A_RANK = """
    rank = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=OUT)
    tell('progress', pid=rank.pid)
    tell('status', status='succeeded')
"""


def test_a_rank_that_outlives_its_run_is_killed_before_the_slot_is_given_again(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clearing, "ENDING_SECONDS", 0.1)
    stand_in(LEAVES_A_RANK.replace("OUT", "None"))
    job = submit(ledger)
    node = nodes()
    node.ring()
    assert reader.job(job.id).status == "succeeded"
    assert is_gone(told(reader, job.id)["pid"])
    assert node.slots.free() == (0,)


def test_a_gpu_that_is_not_let_go_of_is_put_aside_and_others_go_on(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process hangs in the driver, where no signal ends it: here, none is sent."""
    monkeypatch.setattr(clearing, "ENDING_SECONDS", 0.1)
    monkeypatch.setattr(clearing, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(clearing.Attempt, "kill", lambda _self, _pid: None)
    stand_in(
        LEAVES_A_RANK.replace("OUT", "subprocess.DEVNULL").replace(
            "tell('status'", "wait_for('held')\n    tell('status'"
        )
    )
    cards = [card(0), card(1)]
    node = nodes(cards=cards)
    node.start()
    job = submit(ledger)
    rank = told(reader, job.id)["pid"]
    holds(cards[0], rank)
    Path("held").touch()

    def put_aside() -> list[str | None]:
        return [each["put_aside"] for worker in reader.workers() for each in (worker.load or {})["devices"]]

    why = f"process {rank} of an earlier run still holds its memory"
    until(lambda: put_aside() == [why, None])
    until(lambda: (node.slots.free(), node.slots.busy()) == ((1,), 0))
    other = submit(ledger)
    until(lambda: reader.job(other.id).status == "succeeded")
    os.kill(told(reader, other.id)["pid"], signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    holds(cards[0])
    until(lambda: put_aside() == [None, None])
    until(lambda: node.slots.free() == (0, 1))


def test_a_look_at_a_gpu_that_took_long_does_not_undo_what_a_later_one_found(
    nodes: Callable[..., Node], threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the thread that tells how the worker fares, begun before the other, of the slot's attempt, found a process."""
    is_looking, go = Event(), Event()

    def fault(_self: Any, _device: Device) -> str | None:
        if not is_looking.is_set():
            is_looking.set()
            go.wait(20)
            return None
        return "it is held"

    monkeypatch.setattr(clearing.Clearing, "fault", fault)
    node = nodes(gpus=1)
    looks = [threads.submit(node._look_after, node.slots.devices)]
    is_looking.wait(20)
    looks.append(threads.submit(node._look_after, node.slots.devices))
    wait(looks[1:], 0.3)
    go.set()
    wait(looks)
    assert node.slots.free() == ()


def test_a_gpu_that_falls_off_the_bus_is_put_aside_while_the_others_go_on(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    Path("go").touch()
    cards = [card(0), card(1)]
    node = nodes(cards=cards)
    cards[0]["lost"] = True
    node.start()
    assert node.slots.free() == (1,)
    job = submit(ledger)
    assert told(reader, job.id)["CUDA_VISIBLE_DEVICES"] == "GPU-1"


def test_a_worker_tells_how_it_fares(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(TELL)
    node = nodes(gpus=2)
    node.start()
    job = submit(ledger)
    until(lambda: [worker.busy for worker in reader.workers()] == [1])
    until(lambda: reader.job(job.id).phase == "waiting")

    def load() -> dict[str, Any]:
        return reader.workers()[0].load or {}

    until(lambda: load()["devices"][0]["jobs"] == [job.id])
    held, idle = load()["devices"]
    assert (held["memory_used_bytes"], held["utilization"], held["temperature_celsius"]) == (2**30, 0.75, 61)
    assert (idle["jobs"], idle["put_aside"], load()["free_slots"]) == ([], None, 1)
    assert 0 < load()["cpu"]["memory_used_bytes"] < load()["cpu"]["memory_bytes"]
    assert load()["cpu"]["load"] >= 0
    Path("go").touch()
    until(lambda: load()["devices"][0]["jobs"] == [])


STOPS = """
    def stop(*_):
        tell("status", status="stopped")
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    tell("progress", phase="training")
    wait_for("go")
    tell("status", status="succeeded")
"""


def test_a_worker_ordered_to_requeue_gives_its_job_back_stays_and_takes_jobs_again_when_it_is_taken_back(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(STOPS)
    node = nodes()
    node.start()
    job = submit(ledger)
    until(lambda: reader.job(job.id).phase == "training")
    assert ledger.drain(node.id, "requeue")
    until(lambda: reader.job(job.id).status == "queued")
    after = reader.job(job.id)
    assert (after.attempt, after.failures, after.losses) == (1, 0, 0)
    node.ring()
    assert reader.job(job.id).attempt == 1
    assert [worker.draining for worker in reader.workers()] == ["requeue"]
    Path("go").touch()
    ledger.take_back(node.id)
    until(lambda: reader.job(job.id).status == "succeeded")
    assert reader.job(job.id).attempt == 2


def test_a_worker_ordered_to_finish_ends_what_it_runs_and_takes_nothing_more(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader
) -> None:
    stand_in(STOPS)
    node = nodes()
    node.start()
    running = submit(ledger)
    until(lambda: reader.job(running.id).phase == "training")
    ledger.drain(node.id, "finish")
    waiting = submit(ledger)
    Path("go").touch()
    until(lambda: reader.job(running.id).status == "succeeded")
    node.ring()
    assert reader.job(waiting.id).status == "queued"
    ledger.take_back(node.id)
    until(lambda: reader.job(waiting.id).status == "succeeded")


def test_of_several_versions_each_takes_the_jobs_that_it_understands(
    stand_in: StandIn, nodes: Callable[..., Node], ledger: Ledger, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older worker knows no field `colour`; a newer one has no `sgd` any more."""
    stand_in(SUCCEED)
    older, newer = nodes(), nodes(lacks=("sgd",))
    monkeypatch.setattr(newer, "_understands", lambda _spec: True)
    adamw = {"optimizer": {"name": "adamw"}}
    plain, coloured = submit(ledger), submit(ledger, training=adamw)
    known = coloured.resolved_spec
    ledger.request_cancel(coloured.id)
    coloured, _ = ledger.submit(known, {**known, "colour": "blue"})
    older.start()
    newer.start()
    until(lambda: {reader.job(job.id).status for job in (plain, coloured)} == {"succeeded"})
    assert (reader.job(plain.id).worker, reader.job(coloured.id).worker) == (older.id, newer.id)
