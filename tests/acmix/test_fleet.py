"""Which worker a job can go to."""

from dataclasses import replace
from typing import Any

import pytest

from acmix import spec
from acmix.catalog import Catalog, Device
from acmix.fleet import SHARED, Demand, Machine, demand_of, is_of_kind, lacks, ranks_of, samples_a_step, unmet
from acmix.resolve import resolve
from tests.service.menu import catalog

GIB = 2**30
LEAST: dict[str, Any] = {"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}


def demand(resources: dict[str, Any] | None = None, **changes: Any) -> Demand:
    return demand_of(resolve(spec.parse({**LEAST, **changes, "resources": resources or {}}), catalog()).dump())


def machine(gpus: int, name: str = "NVIDIA A100-SXM4-80GB", *labels: str) -> Machine:
    devices = [Device(index=index, name=name, memory_bytes=80 * GIB) for index in range(gpus)]
    return Machine(tuple(devices), frozenset(labels))


DIVIDED = Machine(tuple(part.model_copy(update={"uuid": f"MIG-{part.index}"}) for part in machine(2).devices))


@pytest.mark.parametrize(
    ("resources", "offered", "said"),
    [
        ({}, machine(0), None),
        ({"gpus": 2}, machine(2), None),
        ({"gpus": 2}, machine(1), "it has 1 GPU and 2 are asked for"),
        ({"gpus": 1}, machine(0), "it has 0 GPUs"),
        ({"gpus": 0}, machine(2), None),
        ({"processes": 2}, machine(0), None),
        ({"gpu_kind": "a100"}, machine(1), None),
        ({"gpu_kind": "A100 80GB"}, machine(1), None),
        ({"gpu_kind": "A10"}, machine(1), "its GPUs are no A10"),
        ({"memory_bytes": 80 * GIB}, machine(1), None),
        ({"memory_bytes": 80 * GIB + 1}, machine(1), "its GPUs have less than"),
        ({"labels": ["fast", "quiet"]}, machine(1, "T4", "fast", "quiet", "old"), None),
        ({"labels": ["fast", "quiet"]}, machine(1, "T4", "fast"), "it has no label quiet"),
        ({}, machine(2, "T4", SHARED), "its GPUs are shared, and the job has no label shared"),
        ({"gpus": 1, "labels": [SHARED]}, machine(2, "T4", SHARED), None),
        ({"gpus": 2, "labels": [SHARED]}, machine(2, "T4", SHARED), "its GPUs are shared, of which a job can have one"),
        ({"gpus": 1}, DIVIDED, None),
        ({"gpus": 2}, DIVIDED, "its GPUs are parts of divided ones, of which a job can have one, and 2 are asked for"),
        ({"gpus": 3}, DIVIDED, "it has 2 GPUs and 3 are asked for"),
    ],
)
def test_a_worker_is_asked_for_what_the_job_needs(
    resources: dict[str, Any], offered: Machine, said: str | None
) -> None:
    found = unmet(demand(resources), offered, catalog())
    assert found == said if said is None else said in (found or "")


@pytest.mark.parametrize("offered", [machine(1), Machine()])
def test_a_worker_without_the_names_of_the_spec_cannot_run_it(offered: Machine) -> None:
    assert unmet(demand(), offered, Catalog()) == "its catalog has no classification"
    assert unmet(demand(backbone={"name": "zoo/lion"}, swaps=[]), offered, catalog()) is None


def test_a_gpu_beside_one_of_another_kind_is_not_offered_for_its_own() -> None:
    """Any of a worker's slots may be given: where its GPUs differ, none is sure to be the one asked for."""
    mixed = Machine((*machine(1).devices, *machine(1, "Tesla T4").devices))
    assert unmet(demand({"gpu_kind": "A100"}), mixed, catalog()) is not None


def test_the_words_of_a_kind_are_words_of_the_name() -> None:
    assert is_of_kind("NVIDIA GeForce RTX 4090", "rtx 4090")
    assert not is_of_kind("NVIDIA GeForce RTX 4090", "rtx 409")


@pytest.mark.parametrize("resources", [{"gpu_kind": "A100"}, {"memory_bytes": 1}])
def test_a_worker_without_gpus_is_not_told_of_as_one_with_others(resources: dict[str, Any]) -> None:
    """Also by a spec of an older version, which asks for a kind of GPU and not for how many."""
    asked = replace(demand(resources), gpus=None)
    assert list(lacks(asked, Machine())) == ["it has no GPU"]


def test_equal_demands_have_one_id() -> None:
    one = demand({"gpus": 2, "labels": ["b", "a", "a"]}, training={"seed": 1})
    other = demand({"gpus": 2, "labels": ["a", "b"]}, training={"seed": 2}, name="another")
    assert one == other
    assert one.id == other.id
    assert demand({"gpus": 3}).id != one.id


def test_jobs_of_other_words_have_demands_of_their_own_and_of_other_numbers_not() -> None:
    """A worker of an older version may know a field and not what it says."""
    plain = demand()
    assert demand(training={"precision": "bf16"}).id != plain.id
    assert demand(training={"batch_size": 7, "seed": 3}).id == plain.id


def test_memory_is_asked_for_in_steps_and_a_card_has_what_its_own_figure_says() -> None:
    odd = 80 * GIB - 12_345
    card = Device(index=0, name="card", memory_bytes=odd)
    assert demand({"memory_bytes": odd}).id == demand({"memory_bytes": odd - 1_000_000}).id
    assert unmet(demand({"memory_bytes": odd}), Machine((card,)), catalog()) is None
    assert unmet(demand({"memory_bytes": 80 * GIB + 1}), Machine((card,)), catalog()) is not None


def test_a_job_takes_a_slot_for_each_gpu_and_one_on_the_cpu() -> None:
    assert [demand(each).slots for each in ({}, {"gpus": 0}, {"processes": 4}, {"gpus": 1}, {"gpus": 8})] == [
        1,
        1,
        1,
        1,
        8,
    ]


def test_a_spec_of_another_version_is_another_demand() -> None:
    resolved = resolve(spec.parse(LEAST), catalog()).dump()
    older = {**resolved, "resources": {"gpus": "auto", "max_runtime_seconds": None}}
    newer = {**resolved, "training": {**resolved["training"], "unheard_of": 1}}
    assert len({demand_of(each).shape for each in (resolved, older, newer)}) == 3


def test_what_is_planned_without_a_data_set_asks_for_none() -> None:
    resolved = resolve(spec.parse(LEAST), catalog()).dump()
    del resolved["dataset"]
    asked = demand_of(resolved)
    assert asked.names["datasets"] == ()
    assert unmet(asked, Machine(), catalog()) is None


def test_a_step_takes_the_batches_of_all_processes() -> None:
    training = {"batch_size": 32, "accumulate_batches": 3}
    for resources, samples in (({}, 96), ({"processes": 2}, 192), ({"gpus": 4}, 384), ({"gpus": 0}, 96)):
        job = resolve(spec.parse({**LEAST, "training": training, "resources": resources}), catalog())
        assert samples_a_step(job.dump()) == samples
        assert ranks_of(job.dump()) == job.resources.ranks == samples // 96


def test_a_spec_of_an_older_version_has_one_rank_for_each_gpu() -> None:
    assert [ranks_of({"resources": {"gpus": gpus}}) for gpus in ("auto", 0, 1, 4)] == [1, 1, 1, 4]
