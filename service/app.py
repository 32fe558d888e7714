"""The HTTP API. `uvicorn service.app:app` serves it with the settings of the environment."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import access, errors, logs, openapi, query, settings, vitals
from service.rates import Rates
from service.routes import (
    actions,
    catalog,
    checkpoints,
    datasets,
    events,
    health,
    jobs,
    plans,
    predictions,
    queue,
    results,
    series,
    usage,
    webhooks,
    weights,
    workers,
)
from service.routes import vitals as vitals_route
from service.settings import Settings
from service.store import census
from service.store.backend import Backend, open_backend
from service.store.database import migrate
from service.store.ids import new_id
from service.tails import Tails

MIGRATION_RETRY_SECONDS = 2.0
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

log = logging.getLogger(__name__)
access_log = logging.getLogger("service.requests")


def create_app(given: Settings | None = None) -> FastAPI:
    """The API over one deployment; without settings, over the one that the environment names."""
    # docs_url: the stock page loads its scripts from elsewhere, which the content security policy forbids
    app = FastAPI(
        title="ACmix service",
        version="1",
        summary="Training as a service for vision models with ACmix layers",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        lifespan=_lifespan,
        responses=openapi.PROBLEM_RESPONSES,
        dependencies=[Depends(access.admit)],
    )
    app.state.backend = open_backend(given or settings.load())
    app.state.rates = Rates()
    app.state.counted = vitals.Counted(partial(census.take, app.state.backend.engine))
    app.state.tails = Tails(app.state.backend.reader)
    of_jobs = (plans, jobs, actions, results, series, events, checkpoints, predictions)
    others = (weights, datasets, webhooks, workers, queue, usage)
    app.state.routers = [part.router for part in (health, vitals_route, catalog, *of_jobs, *others)]
    for router in app.state.routers:
        # whoever asks whether the process is up may do so in any way
        strict = [] if router is health.router else [Depends(query.refuse_where_none_is_taken)]
        app.include_router(router, dependencies=strict)
    app.webhooks.routes.extend(webhooks.sent.routes)
    errors.install(app)
    openapi.install(app)
    app.add_middleware(Envelope)
    return app


def __getattr__(name: str) -> Any:
    """`service.app:app`, made when it is asked for: importing this module reads no settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    logs.begin("api")
    made = globals()["app"] = create_app()
    return made


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Tables are there before the first request, unless the database is away: then as soon as it is back."""
    opened: Backend = app.state.backend
    retrying = None if await _migrated(opened) else asyncio.create_task(_migrate_until_done(opened))
    yield
    if retrying:
        retrying.cancel()
        with suppress(asyncio.CancelledError):
            await retrying
    opened.close()


async def _migrate_until_done(opened: Backend) -> None:
    while not await _migrated(opened):
        await asyncio.sleep(MIGRATION_RETRY_SECONDS)


async def _migrated(opened: Backend) -> bool:
    try:
        await asyncio.to_thread(migrate, opened.engine)
    except DBAPIError as error:
        log.warning("the tables could not be brought up to date: %s", error)
        return False
    return True


class Envelope:
    """Around every request: its id, the headers of every answer, its vitals, and a problem for what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        request.state.request_id = _request_id(request)
        began, started, status = time.perf_counter(), False, 0

        async def send_with_headers(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                vitals.count_request(scope, status, time.perf_counter() - began)
                MutableHeaders(scope=message).update({**SECURITY_HEADERS, "X-Request-Id": request.state.request_id})
            await send(message)

        vitals.IN_FLIGHT.inc()
        with logs.about(request_id=request.state.request_id):
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:
                answer = errors.unexpected(request, error)
                if started:
                    raise
                await answer(scope, receive, send_with_headers)
            finally:
                vitals.IN_FLIGHT.dec()
                if logs.is_json():
                    _log_access(request, status, time.perf_counter() - began)


def _log_access(request: Request, status: int, seconds: float) -> None:
    """One line a request, when its answer has been sent to its end; status 0 where there was none."""
    fields = {
        "method": request.method[:20],
        "route": vitals.route_of(request.scope),
        "status": status,
        "duration_ms": round(1000 * seconds, 1),
        "client": request.client.host if request.client else None,
    }
    job_id = request.scope.get("path_params", {}).get("job_id")
    logs.add(job=job_id[:40] if job_id else None)
    access_log.info("%s %s %s", fields["method"], fields["route"], status, extra={"fields": fields})


def _request_id(request: Request) -> str:
    """The caller's, if it is one that can be logged as it stands."""
    given = request.headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else new_id("req")
