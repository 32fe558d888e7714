"""What every verb of the command line has: where the service is, JSON files, and errors told in a sentence."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from service import settings
from service.client import Client, RequestRefused, ServiceError
from service.launcher import LaunchFailed
from service.settings import SettingInvalid

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="ACMIX_URL", help="where the service is")]


@contextmanager
def sentences() -> Iterator[None]:
    """What the user can mend is told in a sentence, without a stack trace; exit status 1."""
    try:
        yield
    except (ServiceError, LaunchFailed, SettingInvalid) as error:
        is_for_a_key = isinstance(error, RequestRefused) and error.status == httpx.codes.UNAUTHORIZED
        print(f"acmix: {error}{'; ACMIX_API_KEY is where it is taken from' if is_for_a_key else ''}", file=sys.stderr)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        os._exit(1)


def client_of(url: str) -> Client:
    return Client(url, key=settings.api_key())


def json_of(path: Path) -> dict[str, Any]:
    return json_object(path.read_text(), str(path))


def json_object(text: str, named: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ServiceError(f"{named} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ServiceError(f"{named} must hold a JSON object")
    return body
