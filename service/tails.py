"""Streams of events: one tail a job and process reads what is new, and tells all who listen from its memory.

Each listener has a number of its own up to which it was told, so that one that is late or slow loses nothing: what
the tail remembers no more is read from the database.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile

from service.answers import EventAnswer
from service.store.database import AWAY
from service.store.errors import JobNotFound
from service.store.reading import Reader
from service.store.rows import StoredEvent
from service.store.states import ENDED

POLL_SECONDS = 0.3
BATCH = 500
REMEMBERED_EVENTS = 1000
REMEMBERED_BYTES = 4 * 2**20  # an evaluation of a thousand classes has a megabyte


@dataclass(frozen=True)
class Message:
    """An event as a stream tells it."""

    number: int
    type: str
    text: str


class Tails:
    """Those of a process. One is there for as long as somebody listens."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._tails: dict[str, Tail] = {}

    def __len__(self) -> int:
        return len(self._tails)

    @asynccontextmanager
    async def of(self, job_id: str) -> AsyncIterator["Tail"]:
        """A job's, begun if nobody listens to it yet. Whether the caller may is not its business."""
        tail = self._tails.get(job_id)
        if tail is None or tail.is_broken:
            tail = self._tails[job_id] = Tail(self._reader, job_id)
        tail.listeners += 1
        try:
            yield tail
        finally:
            tail.listeners -= 1
            if not tail.listeners:
                tail.stop()
                if self._tails.get(job_id) is tail:
                    del self._tails[job_id]


class Tail:
    """What a job said last and says from now on. `reached` is the number up to which it has read."""

    def __init__(self, reader: Reader, job_id: str) -> None:
        self.listeners = 0
        self.reached = -1  # it has not looked yet
        self.remembers_after = 0
        self._reader = reader
        self._job_id = job_id
        self._has_ended = False
        self._messages: deque[Message] = deque()
        self._size_bytes = 0
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def is_broken(self) -> bool:
        """Whether it stopped reading before the job's last event."""
        return self._reading.done() and not self._has_ended

    def has_told_all(self, after: int) -> bool:
        """Whether nothing will ever come after this number. Raises what made it stop, if that was not foreseen."""
        if not self._reading.done():
            return False
        self._reading.result()
        return after >= self.reached

    def beyond(self, after: int, most: int = BATCH) -> list[Message] | None:
        """The next messages after a number; None if it does not remember that far back."""
        if after < self.remembers_after:
            return None
        newest_first = takewhile(lambda message: message.number > after, reversed(self._messages))
        return list(newest_first)[::-1][:most]

    async def wait(self, after: int, seconds: float) -> bool:
        """Until there is more than `after` or nothing will come; False if the time has passed."""
        if self.reached > after or self._reading.done():
            return True
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        self._reading.cancel()

    async def _read(self) -> None:
        try:
            while not self._has_ended:
                with suppress(*AWAY):
                    while await self._look():
                        pass
                if not self._has_ended:
                    await asyncio.sleep(POLL_SECONDS)
        except JobNotFound:
            pass  # it has ended and was deleted
        finally:
            self._tell()

    async def _look(self) -> bool:
        """Read what is new; whether there may be more already."""
        last, status = await asyncio.to_thread(self._reader.last_event, self._job_id)
        if self.reached < 0:
            self.remembers_after = self.reached = max(0, last - REMEMBERED_EVENTS)
        found: list[Message] = []
        if last > self.reached:
            found = await asyncio.to_thread(history, self._reader, self._job_id, self.reached)
            self._remember(found)
        self._has_ended = status in ENDED and self.reached >= last
        if found or self._has_ended:
            self._tell()
        return len(found) == BATCH

    def _remember(self, found: list[Message]) -> None:
        for message in found:
            self._messages.append(message)
            self._size_bytes += len(message.text)
            self.reached = message.number
        while len(self._messages) > REMEMBERED_EVENTS or self._size_bytes > REMEMBERED_BYTES:
            forgotten = self._messages.popleft()
            self._size_bytes -= len(forgotten.text)
            self.remembers_after = forgotten.number

    def _tell(self) -> None:
        """Wake all who wait; who comes to wait later waits for the next time."""
        self._news.set()
        self._news = asyncio.Event()


def history(reader: Reader, job_id: str, after: int, types: list[str] | None = None) -> list[Message]:
    """The next messages after a number as the database has them, a batch at most."""
    return [_message(event) for event in reader.events(job_id, after=after, types=types or [], limit=BATCH)]


def _message(event: StoredEvent) -> Message:
    data = json.dumps(
        EventAnswer.model_validate(event).model_dump(mode="json")
    )  # ASCII: some end lines at more than \\n
    return Message(event.number, event.type, f"id: {event.number}\nevent: {event.type}\ndata: {data}\n\n")
