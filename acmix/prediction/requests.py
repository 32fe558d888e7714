"""Requests for predictions, answered with JSON values: one by hand, or one a line while a service keeps models warm."""

import json
import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from acmix.errors import AcmixError
from acmix.inspection import sandbox
from acmix.planning.library import fingerprint
from acmix.prediction.predictor import MIN_SCORE, Predictor
from acmix.training.run import reason_of

MODELS_KEPT = 2

log = logging.getLogger(__name__)


class Request(BaseModel):
    """What is to be named by which model, and where a picture of it goes, if it is wanted."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: Path
    image: Path
    min_score: float = Field(MIN_SCORE, ge=0, le=1)
    drawn: Path | None = None


def serve(lines: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer every line that holds a request with a line, after one that says which library answers.

    From then on this process is confined: the images are strangers'.
    """
    predictor_of = lru_cache(MODELS_KEPT)(Predictor)
    sandbox.confine(memory_bytes=sandbox.DEFAULT_MEMORY_BYTES, file_bytes=sandbox.DEFAULT_MEMORY_BYTES)
    say(json.dumps({"ready": True, "library": fingerprint()}))
    for line in lines:
        say(json.dumps(answer(line, predictor_of)))


def answer(line: str, predictor_of: Callable[[Path], Predictor] = Predictor) -> dict[str, Any]:
    """`prediction` of a request; else `error`, a reason: whatever goes wrong is the answer."""
    try:
        request = Request.model_validate_json(line)
        prediction = predictor_of(request.checkpoint).predict(request.image, min_score=request.min_score)
        if request.drawn is not None:
            prediction.picture().save(request.drawn, format="PNG")
        return {"prediction": prediction.said}
    except Exception as error:
        if not isinstance(error, AcmixError):
            log.exception("a prediction ended with an error of its own")
        return {"error": reason_of(error).as_json()}
