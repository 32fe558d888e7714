"""The table of a worker's slots: which job holds which of them, and which GPUs are put aside."""

import threading
from collections.abc import Sequence

from acmix.catalog import Device


class Slots:
    """A slot is a GPU, or one of `shares` shares of one; a machine without a GPU has a single slot, its CPU.

    The shares of one GPU are as far from each other in number as they can be: jobs get GPUs of their own while there
    are any.
    """

    def __init__(self, devices: Sequence[Device], shares: int = 1) -> None:
        self.devices = tuple(devices)
        self.count = max(1, len(devices) * shares)
        self._lock = threading.Lock()
        self._holders: dict[int, str] = {}
        self._aside: dict[int, str] = {}

    def free(self) -> tuple[int, ...]:
        """Those that can be given, lowest first."""
        with self._lock:
            return tuple(slot for slot in range(self.count) if self._is_free(slot))

    def busy(self) -> int:
        """How many of them jobs hold."""
        with self._lock:
            return len(self._holders)

    def aside(self) -> int:
        """How many of them are of GPUs that are put aside, and held by no job."""
        with self._lock:
            return sum(self._is_aside(slot) and slot not in self._holders for slot in range(self.count))

    def take(self, slots: Sequence[int], job_id: str) -> None:
        with self._lock:
            assert not any(slot in self._holders for slot in slots)
            self._holders.update(dict.fromkeys(slots, job_id))

    def give_back(self, slots: Sequence[int]) -> None:
        with self._lock:
            for slot in slots:
                del self._holders[slot]

    def devices_of(self, slots: Sequence[int]) -> list[Device]:
        return [self.devices[self._index(slot)] for slot in slots] if self.devices else []

    def jobs_on(self, device: Device) -> list[str]:
        with self._lock:
            held = sorted(self._holders.items())
        return list(dict.fromkeys(job_id for slot, job_id in held if self._index(slot) == device.index))

    def put_aside(self, device: Device, why: str | None) -> bool:
        """Offer it no longer, for this reason, or again where there is none; returns whether that is news."""
        with self._lock:
            before = self._aside.pop(device.index, None)
            if why is not None:
                self._aside[device.index] = why
            return why != before

    def why_aside(self, device: Device) -> str | None:
        with self._lock:
            return self._aside.get(device.index)

    def _is_free(self, slot: int) -> bool:
        return slot not in self._holders and not self._is_aside(slot)

    def _is_aside(self, slot: int) -> bool:
        return bool(self.devices) and self._index(slot) in self._aside

    def _index(self, slot: int) -> int:
        return slot % max(1, len(self.devices))
