"""The GPUs that this machine can give to jobs, each by the name under which CUDA finds it alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acmix.catalog import Device
from worker.driver import Driver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A card, and what of it can be given: itself, or its parts where it is divided (MIG)."""

    uuid: str
    offers: tuple[Device, ...]


def of_this_machine(driver: Driver | None, told: Sequence[Device], visible: str | None) -> list[Device]:
    """Those that the driver knows, or without one those that torch `told` of in a process of its own.

    Args:
        visible: CUDA_VISIBLE_DEVICES of this process. Numbers count as `nvidia-smi` does, in the order of the PCI bus.
    """
    if driver is None:
        return list(told)
    found = _visible(_gpus(driver), visible)
    if found and not told:
        log.warning("torch sees none of the %s GPUs of this machine: jobs train on the CPU", len(found))
        return []
    devices = [device.model_copy(update={"index": index}) for index, device in enumerate(found)]
    kinds = {device.name for device in devices}
    if len(kinds) > 1:
        kind = "this worker's GPUs are of several kinds, %s: no job that asks for a kind comes here; a worker for each "
        log.warning(kind + "kind, by CUDA_VISIBLE_DEVICES, would have them come", ", ".join(sorted(kinds)))
    return devices


def _gpus(driver: Driver) -> list[Gpu]:
    return [_gpu(driver, gpu) for _, gpu in driver.gpus()]


def _gpu(driver: Driver, gpu: Any) -> Gpu:
    """CUDA shows a process one part of a divided GPU alone: each is offered as a device of its own."""
    given = driver.parts(gpu) if driver.is_divided(gpu) else (gpu,)
    return Gpu(driver.uuid(gpu), tuple(_device(driver, each) for each in given))


def _device(driver: Driver, device: Any) -> Device:
    _, size_bytes = driver.memory_bytes(device) or (0, 0)
    return Device(index=0, name=driver.name(device), memory_bytes=size_bytes, uuid=driver.uuid(device))


def _visible(gpus: Sequence[Gpu], names: str | None) -> list[Device]:
    """What of it CUDA_VISIBLE_DEVICES lets be seen: as for CUDA, nothing from the first name on that is of nothing."""
    if names is None:
        return [device for gpu in gpus for device in gpu.offers]
    seen: dict[str | None, Device] = {}
    for name in (each.strip() for each in names.split(",") if each.strip()):
        named = _named(gpus, name)
        if not named:
            log.warning(
                "CUDA_VISIBLE_DEVICES=%s: %s names no GPU of this machine; those before it are used", names, name
            )
            break
        seen.update({device.uuid: device for device in named})
    return list(seen.values())


def _named(gpus: Sequence[Gpu], name: str) -> Sequence[Device]:
    """What a number stands for, or the beginning of a UUID that no other has; a divided GPU stands for its parts."""
    if name.isdecimal():
        return gpus[int(name)].offers if int(name) < len(gpus) else ()
    parts = (device for gpu in gpus for device in gpu.offers if device.uuid != gpu.uuid)
    by_uuid = {gpu.uuid: gpu.offers for gpu in gpus} | {part.uuid: (part,) for part in parts}
    alike = [uuid for uuid in by_uuid if uuid and name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)]
    return by_uuid[alike[0]] if len(alike) == 1 else ()
