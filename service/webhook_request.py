"""What a webhook is made from: the body of POST /v1/webhooks."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from acmix.errors import Problem, nearest
from acmix.spec import Label, Part
from service import body_faults
from service.errors import RequestRefused
from service.store.addresses import MOST_CHARACTERS, Network, UrlInvalid, receiver
from service.store.rows import EventType
from service.store.states import END_TYPES, EVENT_TYPES


class WebhookRequest(Part):
    """Whom to tell of jobs, and of what."""

    name: Label = ""
    url: Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)] = Field(
        description="https, to a host on the internet", examples=["https://example.com/hooks/acmix"]
    )
    types: Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES))] = Field(
        list(END_TYPES), description="what to be told; by default how each job ended"
    )


def parse(raw: Any, allowed: Sequence[Network]) -> WebhookRequest:
    """The request that JSON values stand for; RequestRefused (422) with a pointer for every fault.

    Of the URL the form is looked at, and an address in it. What its host's name means is looked up whenever something
    is sent: an answer of today would say nothing of tomorrow's.
    """
    try:
        request = WebhookRequest.model_validate(raw)
    except ValidationError as error:
        problems = [_with_types(each, raw) for each in body_faults.problems_of(error, WebhookRequest, "a webhook")]
    else:
        problems = _wrong_url(request, allowed)
    if problems:
        raise RequestRefused(422, "webhook_invalid", problems[0].message, problems=problems)
    return request


def _wrong_url(request: WebhookRequest, allowed: Sequence[Network]) -> list[Problem]:
    try:
        receiver(request.url, allowed)
    except UrlInvalid as error:
        return [Problem("/url", "url_invalid", str(error))]
    return []


def _with_types(problem: Problem, raw: Any) -> Problem:
    """Of a type that there is none of, those that there are."""
    if problem.code != "literal_error":
        return problem
    given = raw["types"][int(problem.pointer.rsplit("/", 1)[1])]
    message = f"no event is of this type; there are: {', '.join(EVENT_TYPES)}"
    fixes = nearest(given[:60], EVENT_TYPES) if isinstance(given, str) else None
    return Problem(problem.pointer, "unknown_name", message, allowed=list(EVENT_TYPES), fixes=fixes or None)
