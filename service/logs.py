"""What every process logs: lines for people, or JSON with the ids of what each is about; never a secret."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from service import settings

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
OF_LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "celery", "celery.task")
TALKATIVE = ("alembic", "httpx")  # a line for every step that they take
SECRETS = (
    (re.compile(r"(acmix_[A-Za-z0-9_-]{8}_)[A-Za-z0-9_-]{20,}"), r"\1***"),  # the prefix of a key is none
    (re.compile(r"(whsec_)[A-Za-z0-9+/=]{16,}"), r"\1***"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?!acmix_)[A-Za-z0-9+/=._~-]{8,}"), r"\1***"),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)"), r"\1***"),
)

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_state = {"json": False}
log = logging.getLogger(__name__)


def begin(role: str) -> None:
    """From now on all of this process goes to stderr as LOG_FORMAT and LOG_LEVEL say, libraries' loggers too."""
    form, level = settings.log_form()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role) if form == "json" else Readable(TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in OF_LIBRARIES:
        logger = logging.getLogger(name)
        is_off = not logger.handlers and not logger.propagate  # as uvicorn's --no-access-log leaves it
        logger.handlers.clear()
        logger.propagate = not is_off
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    _state["json"] = form == "json"
    if is_json():
        logging.captureWarnings(True)
        logging.getLogger("uvicorn.access").disabled = True  # the envelope says more
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread


def is_json() -> bool:
    """Whether this process logs for machines, who like to be told more."""
    return _state["json"]


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """What is logged meanwhile is about these: request_id, tenant, job, attempt, worker. None is left out."""
    known = {name: str(value) for name, value in ids.items() if value is not None}
    token = _about.set({**(_about.get() or {}), **known})
    try:
        yield
    finally:
        _about.reset(token)


def add(**ids: object) -> None:
    """What is logged from here on to the end of the present `about` is about these, too; in its threads as well."""
    present = _about.get()
    if present is not None:
        present.update({name: str(value) for name, value in ids.items() if value is not None})


def ids() -> Mapping[str, str]:
    """What is logged now is about these."""
    return dict(_about.get() or {})


def without_secrets(text: str) -> str:
    """The same without keys, secrets of webhooks and passwords in URLs."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


class Readable(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a user named something, it stays one line."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(_message(record)),
            "role": self._role,
            **ids(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["exception"] = self._exception(record.exc_info)
        return json.dumps(said, default=str)

    def _exception(self, raised: Any) -> dict[str, str]:
        kind, error, _ = raised
        trace = without_secrets(self.formatException(raised))
        return {"type": kind.__name__, "message": without_secrets(str(error)), "trace": trace}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a library's mistake in its own line is no reason to lose it
        return f"{record.msg} {record.args}"


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))


def _uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    name = given.thread.name if given.thread else "of nobody"
    error = given.exc_value or given.exc_type()
    log.critical("thread %s ends: %s", name, given.exc_type.__name__, exc_info=error)
