"""What the driver tells of GPUs, as Prometheus reads it."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.scrapes import Scrape, of
from tests.worker.nvml import Nvml, NVMLError, card, divided
from worker import driver
from worker.driver import Driver
from worker.gpus import Gpus


def told(*cards: Any) -> Scrape:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Gpus(Driver(Nvml(*cards))))
    return of(registry)


def test_every_gpu_tells_its_use_and_its_memory() -> None:
    found = told(card(0), card(1))
    for gpu in ("0", "1"):
        which = {"gpu": gpu, "uuid": f"GPU-{gpu}", "model": "NVIDIA H200"}
        assert found("acmix_gpu_utilization_ratio", **which) == 0.75
        assert found("acmix_gpu_memory_used_bytes", **which) == 2**30
        assert found("acmix_gpu_memory_size_bytes", **which) == 2**37
        assert found("acmix_gpu_temperature_celsius", **which) == 61
        assert found("acmix_gpu_power_watts", **which) == 350.5


def test_of_a_divided_gpu_each_part_tells_its_memory_and_nobody_a_use() -> None:
    whole = divided(0, "MIG-a", "MIG-b")
    del whole["nvmlDeviceGetUtilizationRates"]
    found = told(whole)
    assert "acmix_gpu_utilization_ratio" not in found.names
    assert found("acmix_gpu_memory_size_bytes", gpu="0") == 2**37
    assert found("acmix_gpu_memory_size_bytes", gpu="0.0", uuid="MIG-a") == 2**34
    assert found("acmix_gpu_memory_used_bytes", gpu="0.1", uuid="MIG-b") == 5


def test_a_gpu_that_answers_no_more_hides_no_other() -> None:
    found = told(card(0, lost=True), card(1))
    assert {sample.labels["gpu"] for sample in found.samples} == {"1"}


def test_a_driver_that_answers_nothing_leaves_the_rest_readable() -> None:
    class Silent(Nvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            raise NVMLError

    registry = CollectorRegistry(auto_describe=True)
    registry.register(Gpus(Driver(Silent())))
    assert of(registry).samples == []


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def fail() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert driver.of_this_machine() is None
