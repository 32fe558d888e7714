"""Predictions as the API has them made: a row with the image for the housekeeper, and the wait for its answer."""

import hashlib
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool

from acmix.errors import Problem
from service.errors import RequestRefused, not_ready
from service.planning import VERSION
from service.store.backend import Backend
from service.store.rows import Asked
from service.waiting import answered

WAIT_SECONDS = 30.0
ABSENT = "no housekeeper has made the prediction yet; if one is running, send the same again soon"


async def named(store: Backend, checkpoint_id: str, image: bytes, *, min_score: float) -> dict[str, Any]:
    """What the checkpoint names in the image; raises as `drawn` does."""
    found = await _answered(store, checkpoint_id, image, min_score=min_score, drawn=False)
    prediction: dict[str, Any] = (found.answer or {})["prediction"]
    return prediction


async def drawn(store: Backend, checkpoint_id: str, image: bytes, *, min_score: float) -> bytes:
    """The image with what the checkpoint names in it drawn in, a PNG.

    Raises:
        CheckpointNotFound: there is none of that id.
        RequestRefused: 422, the image cannot be read or nothing can be predicted; 503, nobody has answered in time.
    """
    found = await _answered(store, checkpoint_id, image, min_score=min_score, drawn=True)
    picture = await run_in_threadpool(store.predictions.drawn, found)
    if picture is None:
        raise not_ready(ABSENT)
    return picture


async def _answered(store: Backend, checkpoint_id: str, image: bytes, *, min_score: float, drawn: bool) -> Asked:
    await run_in_threadpool(store.reader.checkpoint, checkpoint_id)
    request = {
        "checkpoint": checkpoint_id,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "min_score": min_score,
        "drawn": drawn,
    }
    ask = partial(store.predictions.ask, request, version=VERSION, image=image)
    found = await answered(store.predictions, ask, store.queue.nudge_plans, seconds=WAIT_SECONDS, absent=ABSENT)
    reason: dict[str, Any] | None = found.failure or (found.answer or {}).get("error")
    if reason:
        fault = Problem("", reason["code"], reason["message"])
        hint = f"; {reason['hint']}" if reason.get("hint") else ""
        raise RequestRefused(422, reason["code"], f"{reason['message']}{hint}", problems=[fault])
    return found
