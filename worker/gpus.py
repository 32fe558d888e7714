"""The GPUs of this machine as the driver tells of them, for Prometheus. NVML starts no CUDA in this process."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

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

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def describe(self) -> list[Metric]:
        """All that there may be, so that registering asks no driver."""
        return [GaugeMetricFamily(name, meaning, labels=LABELS) for name, meaning in MEANINGS.items()]

    def collect(self) -> Iterator[Metric]:
        families = {name: GaugeMetricFamily(name, meaning, labels=LABELS) for name, meaning in MEANINGS.items()}
        for index in range(self._or(0, self._nvml.nvmlDeviceGetCount)):
            device = self._or(None, self._nvml.nvmlDeviceGetHandleByIndex, index)
            if device is not None:
                self._tell(families, str(index), device)
                for part, instance in enumerate(self._parts(device)):
                    self._tell(families, f"{index}.{part}", instance)
        yield from families.values()

    def _tell(self, families: dict[str, GaugeMetricFamily], gpu: str, device: Any) -> None:
        nvml = self._nvml
        uuid, model = (self._or("", ask, device) for ask in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
        memory = self._or(None, nvml.nvmlDeviceGetMemoryInfo, device)
        utilization = self._or(None, nvml.nvmlDeviceGetUtilizationRates, device)
        milliwatts = self._or(None, nvml.nvmlDeviceGetPowerUsage, device)
        values = {
            "acmix_gpu_utilization_ratio": None if utilization is None else utilization.gpu / 100,
            "acmix_gpu_memory_used_bytes": None if memory is None else memory.used,
            "acmix_gpu_memory_size_bytes": None if memory is None else memory.total,
            "acmix_gpu_temperature_celsius": self._or(
                None, nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU
            ),
            "acmix_gpu_power_watts": None if milliwatts is None else milliwatts / 1000,
        }
        for name, value in values.items():
            if value is not None:
                families[name].add_metric((gpu, _text(uuid), _text(model)), float(value))

    def _parts(self, device: Any) -> Iterator[Any]:
        """The instances of a GPU that is divided (MIG)."""
        nvml = self._nvml
        for index in range(self._or(0, nvml.nvmlDeviceGetMaxMigDeviceCount, device)):
            instance = self._or(None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, device, index)
            if instance is not None:
                yield instance

    def _or(self, otherwise: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What the driver answers; `otherwise` where it does not."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return otherwise


def of_this_machine() -> Gpus | None:
    """None where there is no driver, or nobody to ask it by."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no GPU tells of itself: %s", error)
        return None
    return Gpus(pynvml)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
