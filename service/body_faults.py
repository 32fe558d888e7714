"""Faults that pydantic finds in a body, in our words: they never repeat what was sent, which may be a megabyte."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from acmix.errors import Problem, nearest
from acmix.spec import pointer

MOST = 100
SENTENCES = {
    "missing": "is required",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
}


def problems_of(
    error: ValidationError, model: type[BaseModel], called: str, sentences: Mapping[str, str] = SENTENCES
) -> Sequence[Problem]:
    """Each fault with where it is; `called` is what the model stands for, `sentences` are ours by pydantic's types."""
    faults = error.errors(include_url=False, include_input=False)[:MOST]
    return [_problem(fault, list(model.model_fields), called, sentences) for fault in faults]


def _problem(fault: Mapping[str, Any], fields: Sequence[str], called: str, sentences: Mapping[str, str]) -> Problem:
    path = [part for part in fault["loc"] if part != "[key]"]
    named = str(path[-1])[:60] if path else "the body"
    if fault["type"] == "extra_forbidden":
        near = nearest(named, fields)
        return Problem(pointer(path), "unknown_field", f"{named!r} is not a field of {called}", fixes=near or None)
    message = sentences.get(fault["type"]) or re.sub(r"^\w+ should", "must", fault["msg"].removeprefix("Value error, "))
    limit = next((value for key, value in (fault.get("ctx") or {}).items() if key.endswith("_length")), None)
    return Problem(pointer(path), fault["type"], f"{named} {message}", limit=limit)
