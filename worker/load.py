"""How a worker fares, told with every sign of life: its GPUs by the driver, its CPU and memory by the kernel."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from acmix.catalog import Device
from worker.driver import Driver
from worker.slots import Slots

MEMINFO = Path("/proc/meminfo")


def of(slots: Slots, driver: Driver | None) -> dict[str, Any]:
    """As JSON values; what cannot be told is None."""
    return {
        "free_slots": len(slots.free()),
        "devices": [_of_device(device, slots, driver) for device in slots.devices],
        "cpu": _of_cpu(),
    }


def _of_device(device: Device, slots: Slots, driver: Driver | None) -> dict[str, Any]:
    held = {"index": device.index, "jobs": slots.jobs_on(device), "put_aside": slots.why_aside(device)}
    found = driver.by_uuid(device.uuid) if driver and device.uuid else None
    if driver is None or found is None:
        return {**held, "memory_used_bytes": None, "utilization": None, "temperature_celsius": None}
    used, _ = driver.memory_bytes(found) or (None, None)
    told = {"utilization": driver.utilization(found), "temperature_celsius": driver.temperature_celsius(found)}
    return {**held, "memory_used_bytes": used, **told}


def _of_cpu() -> dict[str, Any]:
    """The load is the number of threads that were at work or waited for it, on average over a minute."""
    memory = _memory_bytes()
    size, available = memory.get("MemTotal"), memory.get("MemAvailable")
    used = None if size is None or available is None else size - available
    return {"load": _load_average(), "memory_used_bytes": used, "memory_bytes": size}


def _load_average() -> float | None:
    with suppress(OSError):
        return round(os.getloadavg()[0], 2)
    return None


def _memory_bytes() -> dict[str, int]:
    """Nothing where the kernel is not Linux."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): 1024 * int(kibibytes) for name, kibibytes, *_ in fields}
