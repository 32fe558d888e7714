"""What has to be gone before a slot is given again: processes of the ended attempt, and what they hold of its GPUs."""

import logging
import threading
import time
from collections.abc import Iterable, Sequence

from acmix.catalog import Device
from worker import processes
from worker.driver import Driver
from worker.processes import Attempt

log = logging.getLogger(__name__)

ENDING_SECONDS = 1.0  # in which what was killed with its run is gone by itself
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.05


class Clearing:
    """Kills what an attempt left behind, and knows which GPUs are of no use, by the driver where there is one."""

    def __init__(self, driver: Driver | None) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._uncleared: dict[int, set[Attempt | None]] = {}  # by GPU; None: of one that nobody can name any more
        self._told: set[int] = set()

    def notice(self, devices: Sequence[Device]) -> None:
        """Before the first attempt: runs of an earlier worker, which may be about to end them, hold these GPUs."""
        with self._lock:
            for device in devices:
                found = {pid: processes.attempt_of(pid) for pid in self._pids(device)}
                left = {pid: attempt for pid, attempt in found.items() if attempt or processes.is_ending(pid)}
                if left:
                    log.warning("GPU %s is held by what an earlier worker began: %s", device.index, sorted(left))
                    self._uncleared[device.index] = set(left.values())

    def clear(self, ended: Attempt, devices: Sequence[Device], hurry: threading.Event) -> None:
        """Return when nothing of it is left, after a minute at most; at once where there is no time for that."""
        began, killed = time.monotonic(), set[int]()
        while left := self._left(ended, devices):
            waited = time.monotonic() - began
            if waited > ENDING_SECONDS or hurry.is_set():
                self._kill(ended, left - killed)
                killed |= left
            if waited > PATIENCE_SECONDS or hurry.is_set():
                break
            hurry.wait(LOOK_SECONDS)
        if left and not hurry.is_set():
            log.warning("%s left behind what does not end: %s", ended, ", ".join(map(str, sorted(left))))
        self._tell_of_others(devices)
        with self._lock:
            for device in devices:
                if self._holders(device, ended):
                    self._uncleared.setdefault(device.index, set()).add(ended)

    def fault(self, device: Device) -> str | None:
        """Why no job can have it now; None where it is well."""
        if self._driver and device.uuid and self._driver.is_lost(device.uuid):
            return "the driver has lost it"
        why = None
        with self._lock:
            for ended in self._uncleared.pop(device.index, ()):
                if held := self._holders(device, ended):
                    self._uncleared.setdefault(device.index, set()).add(ended)
                    # every tenant reads it: not whose run
                    why = f"process {min(held)} of an earlier run still holds its memory"
        return why

    def _left(self, ended: Attempt, devices: Sequence[Device]) -> set[int]:
        return {*ended.pids(), *(pid for device in devices for pid in self._holders(device, ended))}

    def _holders(self, device: Device, ended: Attempt | None) -> list[int]:
        """Processes that hold memory of it and are the attempt's, or about to end, when nobody can tell whose."""
        return [pid for pid in self._pids(device) if (ended and ended.has(pid)) or processes.is_ending(pid)]

    def _kill(self, ended: Attempt, pids: Iterable[int]) -> None:
        for pid in pids:
            if ended.has(pid):
                log.warning("process %s of %s outlived it and is killed", pid, ended)
                ended.kill(pid)

    def _tell_of_others(self, devices: Sequence[Device]) -> None:
        """Once, and they are left alone: a GPU that others use too has less room, not none."""
        for device in devices:
            for pid in self._pids(device):
                if pid not in self._told and processes.attempt_of(pid) is None and not processes.is_ending(pid):
                    log.warning("process %s, which is no run of this service, holds memory of %s", pid, device.uuid)
                    self._told.add(pid)

    def _pids(self, device: Device) -> list[int]:
        if self._driver is None or device.uuid is None:
            return []
        found = self._driver.by_uuid(device.uuid)
        return [] if found is None else self._driver.pids(found)
