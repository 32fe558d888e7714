"""A job's history: its events as a list or a stream, what its attempts printed, and the attempts themselves."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import Field

from service import access, vitals
from service.answers import Attempt, EventAnswer, Listing
from service.depends import JobId, Store
from service.query import MOST, Names, Parameters, accepts
from service.store.database import AWAY
from service.store.reading import Reader
from service.tails import BATCH, POLL_SECONDS, Message, Tail, Tails, history

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["events"])

COMMENT_SECONDS = 15.0
MOST_LINES = 10_000
STREAM = "text/event-stream"
EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {200: {"content": {STREAM: {"schema": {"type": "string"}}}}}

Number = Annotated[int, Field(ge=0, le=MOST)]


class EventQuery(Parameters):
    after: Number = Field(0, description="the last number seen")
    types: Names = Field([], description="event types, with commas between; all without")
    limit: int = Field(200, ge=1, le=1000)


class LogQuery(Parameters):
    after: Number = Field(0, description="the last line number seen")
    tail: Annotated[int, Field(ge=1, le=MOST_LINES)] | None = Field(None, description="only the last so many lines")


@router.get("/events", responses=EVENT_RESPONSES, response_model=Listing[EventAnswer])
def events(
    job_id: JobId,
    store: Store,
    query: Annotated[EventQuery, Query()],
    request: Request,
    last_event_id: Annotated[Number | None, Header(description="where a stream was cut off")] = None,
) -> Any:
    """What happened, numbered from 1 without gaps; by Accept a stream that ends when the job has ended.

    Of a job with `events_pruned_at` those of types progress, metrics and trace are gone; the others keep their numbers.
    """
    store.reader.job(job_id)
    if accepts(request, STREAM):
        after = query.after if last_event_id is None else last_event_id
        return StreamingResponse(
            _counted(_stream(request, store.reader, job_id, after, query.types)), media_type=STREAM
        )
    found = store.reader.events(job_id, after=query.after, types=query.types, limit=query.limit + 1)
    shown, has_more = found[: query.limit], len(found) > query.limit
    return Listing[EventAnswer](
        data=[EventAnswer.model_validate(event) for event in shown],
        has_more=has_more,
        next=str(shown[-1].number) if has_more else None,
    )


@router.get("/logs", response_class=PlainTextResponse)
def logs(job_id: JobId, store: Store, query: Annotated[LogQuery, Query()]) -> Response:
    """What the attempts printed, at most 10,000 lines; Acmix-Last-Line is what `after` takes for those that follow."""
    store.reader.job(job_id)
    lines = store.reader.log_lines(job_id, after=query.after, tail=query.tail, limit=MOST_LINES)
    last = lines[-1][0] if lines else query.after
    text = "".join(f"{line}\n" for _, line in lines)
    return PlainTextResponse(text.encode(errors="replace"), headers={"Acmix-Last-Line": str(last)})


@router.get("/attempts")
def attempts(job_id: JobId, store: Store) -> Listing[Attempt]:
    """Every claim of the job: who held it, since when, and how that ended."""
    store.reader.job(job_id)
    return Listing(data=[Attempt.model_validate(each) for each in store.reader.attempts(job_id)])


async def _counted(stream: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same, as one more open stream until it ends or its reader leaves."""
    with vitals.STREAMS.track_inprogress():
        async for message in stream:
            yield message


async def _stream(request: Request, reader: Reader, job_id: str, after: int, types: list[str]) -> AsyncIterator[str]:
    """Events as they are written, until all of an ended job's are told. An absent database is waited for."""
    tails: Tails = request.app.state.tails
    yield ": here\n\n"
    told_at = looked_at = time.monotonic()
    async with tails.of(job_id) as tail:
        while True:
            found, after = await _next(tail, reader, job_id, after, types)
            if text := "".join(message.text for message in found):
                yield text
                told_at = time.monotonic()
            elif tail.has_told_all(after):
                return
            elif not await tail.wait(after, told_at + COMMENT_SECONDS - time.monotonic()):
                yield ": still here\n\n"
                told_at = time.monotonic()
            if time.monotonic() - looked_at >= COMMENT_SECONDS:
                if not await asyncio.to_thread(_may_go_on, request):
                    return
                looked_at = time.monotonic()


async def _next(tail: Tail, reader: Reader, job_id: str, after: int, types: list[str]) -> tuple[list[Message], int]:
    """The next messages of these types, and the number up to which there are no others."""
    remembered = tail.beyond(after)
    if remembered is not None:
        reached = remembered[-1].number if remembered else after
        return [message for message in remembered if not types or message.type in types], reached
    at_least = tail.remembers_after  # as it is now: up to there all is written
    try:
        found = await asyncio.to_thread(history, reader, job_id, after, types)
    except AWAY:
        await asyncio.sleep(POLL_SECONDS)
        return [], after
    if len(found) == BATCH:
        return found, found[-1].number
    return found, max([at_least, *(message.number for message in found)])


def _may_go_on(request: Request) -> bool:
    """Whether who listens would still be let in; an absent database does not say."""
    try:
        return access.is_welcome(request)
    except AWAY:
        return True
