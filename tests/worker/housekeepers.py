"""Housekeepers at work, and the children that they keep."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from service.store.backend import Backend
from tests.worker.runs import words
from worker.housekeeping import Housekeeper


@contextmanager
def housekeeping(backend: Backend) -> Iterator[Housekeeper]:
    housekeeper = Housekeeper(backend)
    housekeeper.start()
    try:
        yield housekeeper
    finally:
        housekeeper.drain()
        housekeeper.stop()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "--serve" in words(child)]
