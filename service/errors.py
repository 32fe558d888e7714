"""Every failure as application/problem+json (RFC 9457): what it was, where in the request, and what would do."""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from acmix.errors import Problem, SpecInvalid
from acmix.spec import pointer
from service.store.database import AWAY
from service.store.errors import (
    ArtifactNotFound,
    ArtifactsAway,
    ArtifactsFull,
    CheckpointNotFound,
    DatasetConflict,
    DatasetNeeded,
    DatasetNotFound,
    DeliveryNotFound,
    IdempotencyKeyReused,
    JobNotEnded,
    JobNotFound,
    MoveRefused,
    QuotaExceeded,
    WebhookDisabled,
    WebhookNotFound,
    WebhooksExhausted,
    WeightsNeeded,
    WeightsNotFound,
    WorkerIsOlder,
    WorkerNotFound,
)
from service.store.states import allowed_actions, allowed_dataset_actions

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 5
QUOTA_RETRY_SECONDS = 60

log = logging.getLogger(__name__)


class RequestRefused(Exception):
    """A request that is answered with a problem; `detail` is a sentence that says what would do."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.problems = problems
        self.headers = headers or {}


def not_ready(detail: str, problems: Sequence[Problem] = ()) -> RequestRefused:
    """503: the request is right, and may succeed soon."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return RequestRefused(503, "not_ready", detail, problems=problems, headers=headers)


def install(app: FastAPI) -> None:
    """Make every failure of the app a problem; the unexpected ones are caught by the envelope around it."""
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(SpecInvalid, _spec_invalid)
    app.add_exception_handler(RequestValidationError, _parameters_invalid)
    app.add_exception_handler(HTTPException, _by_status)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    of_others = (WebhookNotFound, DeliveryNotFound, WorkerNotFound)
    for absent in (JobNotFound, CheckpointNotFound, WeightsNotFound, DatasetNotFound, *of_others, ArtifactNotFound):
        app.add_exception_handler(absent, _not_found)
    for conflict in (JobNotEnded, MoveRefused, WeightsNeeded, DatasetNeeded):
        app.add_exception_handler(conflict, _conflict)
    app.add_exception_handler(WorkerIsOlder, _worker_is_older)
    app.add_exception_handler(DatasetConflict, _dataset_conflict)
    app.add_exception_handler(WebhookDisabled, _webhook_disabled)
    app.add_exception_handler(WebhooksExhausted, _webhooks_exhausted)
    app.add_exception_handler(ArtifactsFull, _artifacts_full)
    app.add_exception_handler(ArtifactsAway, _artifacts_away)
    app.add_exception_handler(IdempotencyKeyReused, _key_reused)
    app.add_exception_handler(QuotaExceeded, _quota_exceeded)
    for away in AWAY:
        app.add_exception_handler(away, _database_away)


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """The answer for one failure."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.url.path[:200],
        "code": code,
        "request_id": request.state.request_id,
        "errors": [each.as_json() for each in problems],
        **more,
    }
    return JSONResponse(content, status, headers, media_type=PROBLEM_JSON)


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """500: logged in full under the request's id, told in a sentence."""
    log.error("request %s failed: %s", request.state.request_id, type(error).__name__, exc_info=error)
    return problem(request, 500, "internal", "this is a fault of the service; its log has it under the request_id")


def _refused(request: Request, error: Any) -> JSONResponse:
    return problem(
        request, error.status, error.code, error.detail, problems=error.problems, headers=dict(error.headers)
    )


def _spec_invalid(request: Request, error: Any) -> JSONResponse:
    count = len(error.problems)
    detail = f"the spec has {count} fault{'s' if count > 1 else ''}; the first: {error.problems[0].message}"
    return problem(request, 422, error.code, detail, problems=error.problems)


def _parameters_invalid(request: Request, error: Any) -> JSONResponse:
    problems = [_parameter_problem(fault) for fault in error.errors()]
    return problem(request, 422, "parameter_invalid", problems[0].message, problems=problems)


def _parameter_problem(fault: Mapping[str, Any]) -> Problem:
    """A query parameter or header that will not do: /query/limit. What was sent is not repeated."""
    name = str(fault["loc"][-1])[:60]
    if fault["type"] == "extra_forbidden":
        return Problem(pointer(fault["loc"]), "unknown_parameter", f"no parameter of this path is named {name!r}")
    sentence = re.sub(r"^(Input|String|List) should", "must", fault["msg"].removeprefix("Value error, "))
    context = fault.get("ctx", {})
    limit = next((context[bound] for bound in ("ge", "gt", "le", "lt", "max_length") if bound in context), None)
    return Problem(pointer(fault["loc"]), "parameter_invalid", f"{name} {sentence}", limit=limit)


def _by_status(request: Request, error: Any) -> JSONResponse:
    """What the router refuses: an unknown path, a method that the path does not take."""
    status, headers = error.status_code, error.headers
    if status == HTTPStatus.NOT_FOUND:
        return problem(request, status, "not_found", "there is nothing at this path")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods_at(request))
        sentence = f"this path does not take {request.method[:20]}; {allowed} would do"
        return problem(request, status, "method_not_allowed", sentence, headers={"Allow": allowed})
    return problem(request, status, "http_error", HTTPStatus(status).description, headers=headers)


def _methods_at(request: Request) -> list[str]:
    """All methods of a path: the router names those of its first route alone."""
    routes = (route for router in request.app.state.routers for route in router.routes)
    return sorted({method for route in routes if route.path_regex.match(request.url.path) for method in route.methods})


def _disconnected(request: Request, _error: Any) -> JSONResponse:
    return problem(request, 400, "malformed", "the body ended before its end")


def _not_found(request: Request, error: Any) -> JSONResponse:
    return problem(request, 404, "not_found", str(error))


def _conflict(request: Request, error: Any) -> JSONResponse:
    stands = {"job": error.job.id, "resource_status": error.job.status}
    return problem(request, 409, "conflict", str(error), **stands, allowed_actions=allowed_actions(error.job.status))


def _dataset_conflict(request: Request, error: Any) -> JSONResponse:
    """The headers say where an upload goes on."""
    found = error.dataset
    headers = {"Upload-Offset": str(found.received_bytes)}
    if found.total_bytes is not None:
        headers["Upload-Length"] = str(found.total_bytes)
    actions = allowed_dataset_actions(found.status)
    stands = {"dataset": found.id, "resource_status": found.status, "allowed_actions": actions}
    return problem(request, 409, error.code, str(error), headers=headers, **stands)


def _worker_is_older(request: Request, error: Any) -> JSONResponse:
    return problem(request, 409, "conflict", str(error), worker=error.worker_id, allowed_actions=[])


def _webhook_disabled(request: Request, error: Any) -> JSONResponse:
    stands = {"webhook": error.webhook.id, "resource_status": "disabled", "allowed_actions": ["delete"]}
    return problem(request, 409, "conflict", str(error), **stands)


def _webhooks_exhausted(request: Request, error: Any) -> JSONResponse:
    fault = Problem("", "too_many", str(error), limit=error.most)
    return problem(request, 409, "too_many", str(error), problems=[fault])


def _artifacts_full(request: Request, error: Any) -> JSONResponse:
    log.error("request %s: %s", request.state.request_id, error)
    return problem(request, 507, "disk_full", "the service has no room left where it keeps its files")


def _artifacts_away(request: Request, error: Any) -> JSONResponse:
    log.warning("request %s: %s", request.state.request_id, error)
    return _refused(request, not_ready("the files cannot be reached; what is stored is safe, try again soon"))


def _key_reused(request: Request, error: Any) -> JSONResponse:
    fault = Problem("/header/idempotency-key", "idempotency_key_reused", str(error))
    return problem(request, 422, "idempotency_key_reused", str(error), problems=[fault])


def _quota_exceeded(request: Request, error: Any) -> JSONResponse:
    fault = Problem("", "quota_exceeded", str(error), limit=error.most, actual=error.used)
    headers = {"Retry-After": str(QUOTA_RETRY_SECONDS)}
    return problem(request, 429, "quota_exceeded", str(error), problems=[fault], headers=headers)


def _database_away(request: Request, error: Any) -> JSONResponse:
    log.warning("request %s: the database: %s", request.state.request_id, error)
    return _refused(request, not_ready("the database cannot be reached; what is stored is safe, try again soon"))
