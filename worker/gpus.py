"""The GPUs of this machine as the driver tells of them, for Prometheus."""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker.driver import Driver

LABELS = ("gpu", "uuid", "model")
MEANINGS = {
    "acmix_gpu_utilization_ratio": "Part of the last moment in which the GPU was at work, 0 to 1",
    "acmix_gpu_memory_used_bytes": "Memory of the GPU that is taken, by whomever",
    "acmix_gpu_memory_size_bytes": "Memory of the GPU",
    "acmix_gpu_temperature_celsius": "Temperature of the GPU",
    "acmix_gpu_power_watts": "Power that the GPU draws",
}


class Gpus(Collector):
    """What each GPU says; one that does not tell something, as a part of a divided one, is left out there."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def describe(self) -> list[Metric]:
        """All that there may be, so that registering asks no driver."""
        return [GaugeMetricFamily(name, meaning, labels=LABELS) for name, meaning in MEANINGS.items()]

    def collect(self) -> Iterator[Metric]:
        families = {name: GaugeMetricFamily(name, meaning, labels=LABELS) for name, meaning in MEANINGS.items()}
        for index, gpu in self._driver.gpus():
            self._tell(families, str(index), gpu)
            for number, part in enumerate(self._driver.parts(gpu)):
                self._tell(families, f"{index}.{number}", part)
        yield from families.values()

    def _tell(self, families: dict[str, GaugeMetricFamily], gpu: str, device: Any) -> None:
        driver = self._driver
        used, size = driver.memory_bytes(device) or (None, None)
        values = {
            "acmix_gpu_utilization_ratio": driver.utilization(device),
            "acmix_gpu_memory_used_bytes": used,
            "acmix_gpu_memory_size_bytes": size,
            "acmix_gpu_temperature_celsius": driver.temperature_celsius(device),
            "acmix_gpu_power_watts": driver.power_watts(device),
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric((gpu, driver.uuid(device), driver.name(device)), float(value))
