"""What the driver tells of GPUs; a stand-in for NVML, since tests have no GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.scrapes import Scrape, of
from worker import gpus
from worker.gpus import Gpus


class NVMLError(Exception):
    """Not supported."""


class Nvml:
    """NVML's calls over cards that are plain data; what a card has no word of is not supported."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: dict[str, Any]) -> None:
        self.cards = cards

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  # its names are NVML's
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if "fallen_off_the_bus" in self.cards[index]:
            raise NVMLError
        return self.cards[index]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], index: int) -> dict[str, Any]:  # noqa: N802
        if index >= len(card["parts"]):
            raise NVMLError
        return dict(card["parts"][index])

    def __getattr__(self, name: str) -> Any:
        def ask(card: dict[str, Any], *_: Any) -> Any:
            if name not in card:
                raise NVMLError
            return card[name]

        return ask


def card(number: int, **more: Any) -> dict[str, Any]:
    return {
        "nvmlDeviceGetUUID": f"GPU-{number}",
        "nvmlDeviceGetName": b"NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=2**37),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=20),
        "nvmlDeviceGetPowerUsage": 350_500,
        "nvmlDeviceGetTemperature": 61,
        **more,
    }


def told(*cards: dict[str, Any]) -> Scrape:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Gpus(Nvml(*cards)))
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
    part = {"nvmlDeviceGetUUID": "MIG-a", "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5, total=10)}
    whole = card(0, nvmlDeviceGetMaxMigDeviceCount=7, parts=[part, {**part, "nvmlDeviceGetUUID": "MIG-b"}])
    del whole["nvmlDeviceGetUtilizationRates"]
    found = told(whole)
    assert "acmix_gpu_utilization_ratio" not in found.names
    assert found("acmix_gpu_memory_size_bytes", gpu="0") == 2**37
    assert found("acmix_gpu_memory_size_bytes", gpu="0.0", uuid="MIG-a") == 10
    assert found("acmix_gpu_memory_used_bytes", gpu="0.1", uuid="MIG-b") == 5


def test_a_gpu_that_answers_no_more_hides_no_other() -> None:
    found = told({"fallen_off_the_bus": True}, card(1))
    assert {sample.labels["gpu"] for sample in found.samples} == {"1"}


def test_a_driver_that_answers_nothing_leaves_the_rest_readable() -> None:
    class Silent(Nvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            raise NVMLError

    registry = CollectorRegistry(auto_describe=True)
    registry.register(Gpus(Silent()))
    assert of(registry).samples == []


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def fail() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert gpus.of_this_machine() is None
