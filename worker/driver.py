"""NVIDIA's driver, asked by NVML which GPUs there are and how they fare. NVML starts no CUDA in this process."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)


class Driver:
    """What it does not tell, as a part of a divided GPU (MIG) does not tell everything, is None."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._lost = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_NOT_FOUND)

    def gpus(self) -> Iterator[tuple[int, Any]]:
        """Each with its number, in the order of the PCI bus; one that answers no more is left out."""
        for index in range(self._asked(self._nvml.nvmlDeviceGetCount) or 0):
            gpu = self._asked(self._nvml.nvmlDeviceGetHandleByIndex, index)
            if gpu is not None:
                yield index, gpu

    def is_divided(self, gpu: Any) -> bool:
        """Whether it is in MIG mode: only its parts can be used then, be it that there are none."""
        return bool(self._asked(self._nvml.nvmlDeviceGetMaxMigDeviceCount, gpu))

    def parts(self, gpu: Any) -> Iterator[Any]:
        """The instances of a GPU that is divided."""
        nvml = self._nvml
        for index in range(self._asked(nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0):
            part = self._asked(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, index)
            if part is not None:
                yield part

    def is_lost(self, uuid: str) -> bool:
        """Whether a GPU that was there has gone, or can do nothing more until it is reset."""
        try:
            self._nvml.nvmlDeviceGetMemoryInfo(self._nvml.nvmlDeviceGetHandleByUUID(uuid))
        except self._nvml.NVMLError as error:
            return error.value in self._lost
        return False

    def by_uuid(self, uuid: str) -> Any | None:
        return self._asked(self._nvml.nvmlDeviceGetHandleByUUID, uuid)

    def uuid(self, device: Any) -> str:
        return _text(self._asked(self._nvml.nvmlDeviceGetUUID, device))

    def name(self, device: Any) -> str:
        return _text(self._asked(self._nvml.nvmlDeviceGetName, device))

    def memory_bytes(self, device: Any) -> tuple[int, int] | None:
        """How much is taken, by whomever, and how much there is."""
        memory = self._asked(self._nvml.nvmlDeviceGetMemoryInfo, device)
        return None if memory is None else (memory.used, memory.total)

    def utilization(self, device: Any) -> float | None:
        """Part of the last moment in which it was at work, 0 to 1."""
        rates = self._asked(self._nvml.nvmlDeviceGetUtilizationRates, device)
        return None if rates is None else rates.gpu / 100

    def temperature_celsius(self, device: Any) -> int | None:
        found: int | None = self._asked(self._nvml.nvmlDeviceGetTemperature, device, self._nvml.NVML_TEMPERATURE_GPU)
        return found

    def power_watts(self, device: Any) -> float | None:
        milliwatts = self._asked(self._nvml.nvmlDeviceGetPowerUsage, device)
        return None if milliwatts is None else milliwatts / 1000

    def pids(self, device: Any) -> list[int]:
        """Processes that hold memory of it, as they are numbered where the driver is."""
        running = self._asked(self._nvml.nvmlDeviceGetComputeRunningProcesses, device)
        return [process.pid for process in running or ()]

    def _asked(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What the driver answers; None where it does not."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None


def of_this_machine() -> Driver | None:
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
    return Driver(pynvml)


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
