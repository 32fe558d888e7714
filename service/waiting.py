"""Requests that a housekeeper answers: put into a row, rung for, and waited for."""

import asyncio
import time
from collections.abc import Callable

from fastapi.concurrency import run_in_threadpool

from service.errors import not_ready
from service.store.requests import Requests
from service.store.rows import Asked

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.25


async def answered(
    requests: Requests, ask: Callable[[], Asked], ring: Callable[[], object], *, seconds: float, absent: str
) -> Asked:
    """The row that `ask` gives once it is answered. No thread is held meanwhile.

    RequestRefused, 503, that says `absent`, where nobody has answered in time; whoever asks the same again waits for
    the same answer.
    """
    found = await run_in_threadpool(ask)
    if found.answered_at is None:
        await run_in_threadpool(ring)
    give_up_at, pause_seconds = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while found.answered_at is None:
        if time.monotonic() > give_up_at:
            raise not_ready(absent)
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(1.5 * pause_seconds, LONGEST_PAUSE_SECONDS)
        looked_up: Asked | None = await run_in_threadpool(requests.find, found.id)
        found = looked_up or found
    return found
