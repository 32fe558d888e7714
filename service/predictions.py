"""Predictions as the API has them made: a row with the image for the housekeeper, and the wait for its answer."""

import hashlib
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool

from acmix.errors import Problem
from service.errors import RequestRefused
from service.planning import VERSION
from service.store.backend import Backend
from service.store.rows import Asked
from service.waiting import answered

WAIT_SECONDS = 30.0
ABSENT = "no housekeeper has made the prediction yet; if one is running, send the same again soon"


async def predict(store: Backend, checkpoint_id: str, image: bytes, *, min_score: float, drawn: bool) -> Asked:
    """The row that holds what the checkpoint names in the image, and the picture of it where one was asked for.

    Raises:
        CheckpointNotFound: there is none of that id.
        RequestRefused: 422, the image cannot be read or nothing can be predicted; 503, nobody has answered in time.
    """
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
