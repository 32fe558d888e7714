"""Vitals of several processes behind one port: each writes files into one folder, whoever is asked reads them all."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

THE_DEAD = 0  # the process whose files hold what those counted that are no more
SUMMED = ("counter", "histogram")


def prepare(folder: Path) -> None:
    """Before this process counts anything: what one of the same id was at work on when it ended is not going on."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob(f"gauge_live*_{os.getpid()}.db"):
        file.unlink(missing_ok=True)


class AllProcesses(Collector):
    """What the processes of a folder have counted, sums over all of them, and what each takes, by its id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Metric]:
        with _alone(self.folder):
            _bury(self.folder)
            yield from MultiProcessCollector(None, str(self.folder)).collect()
        yield from _taken_by(sorted(_pids(self.folder) - {THE_DEAD}))


def registry_of(folder: Path) -> CollectorRegistry:
    """One that has all processes of a folder."""
    registry = CollectorRegistry()
    registry.register(AllProcesses(folder))
    return registry


def _bury(folder: Path) -> None:
    """Add what dead processes counted to one file, or a sum would fall; what they were at work on is over."""
    dead = {pid for pid in _pids(folder) if pid != THE_DEAD and not _is_alive(pid)}
    for pid in dead:
        for file in folder.glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)
    for kind in SUMMED:
        left = [file for pid in sorted(dead) if (file := folder / f"{kind}_{pid}.db").exists()]
        if left:
            _add_up([*left, *folder.glob(f"{kind}_{THE_DEAD}.db")], folder / f"{kind}_{THE_DEAD}.db")


def _add_up(files: Sequence[Path], into: Path) -> None:
    sums = MultiProcessCollector.merge([str(file) for file in files], accumulate=False)
    fresh = into.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    values = MmapedDict(str(fresh))
    for metric in sums:
        for sample in metric.samples:
            names, texts = list(sample.labels), list(sample.labels.values())
            values.write_value(
                mmap_key(metric.name, sample.name, names, texts, metric.documentation), sample.value, 0.0
            )
    values.close()
    for file in files:
        file.unlink()
    fresh.rename(into)


def _taken_by(pids: Sequence[int]) -> Iterator[Metric]:
    """Processor time, memory and files of each process."""
    families: dict[str, Metric] = {}
    for pid in pids:
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {**sample.labels, "pid": str(pid)}, sample.value)
    yield from families.values()


def _pids(folder: Path) -> set[int]:
    return {int(file.stem.rpartition("_")[2]) for file in folder.glob("*_*.db")}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Whoever reads holds the folder meanwhile: files change names as the dead are buried."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
