"""Whether the process is up, and whether it can serve."""

import logging
from collections.abc import Callable

from fastapi import APIRouter

from acmix.errors import Problem
from service.answers import Health
from service.depends import Deployment
from service.errors import not_ready
from service.store.backend import Backend
from service.store.database import is_current

router = APIRouter(tags=["health"])
log = logging.getLogger(__name__)


@router.get("/healthz")
def healthz() -> Health:
    """200 while the process is up."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(store: Deployment) -> Health:
    """200 when jobs can be taken; else 503, and `errors` names what is missing."""
    faults = {name: fault for name, check in _CHECKS.items() if (fault := _fault(check, store))}
    if faults:
        problems = [Problem(f"/{name}", "not_ready", fault) for name, fault in faults.items()]
        raise not_ready("; ".join(faults.values()), problems)
    return Health(status="ready")


def _database(store: Backend) -> str | None:
    return None if is_current(store.engine) else "the database's tables are not those of this version yet"


def _broker(store: Backend) -> None:
    store.queue.ping()


def _artifacts(store: Backend) -> None:
    store.artifacts.ping()


def _catalog(store: Backend) -> str | None:
    return None if store.reader.catalog() else "no worker has posted a catalog yet; start one"


_CHECKS: dict[str, Callable[[Backend], str | None]] = {
    "database": _database,
    "broker": _broker,
    "artifacts": _artifacts,
    "catalog": _catalog,
}


def _fault(check: Callable[[Backend], str | None], store: Backend) -> str | None:
    """What is wrong, in a sentence; why it is goes to the log, since addresses and passwords may be in it."""
    try:
        return check(store)
    except Exception as error:  # whatever it is, the service is not ready
        name = check.__name__.removeprefix("_")
        log.warning("not ready: %s: %s", name, error)
        return f"the {name} cannot be reached"
