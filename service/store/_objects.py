"""Where the bytes of artifacts lie: a folder of this machine or an S3 bucket, behind one interface; and its errors.

object_store, below obstore, says what went wrong in the text of its errors alone: here it is read, and nowhere else.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from service.settings import S3
from service.store.errors import ArtifactExists, ArtifactNotFound, ArtifactsAway, ArtifactsFull, ArtifactsRefused

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# A part of a file must be sent, and any byte of an answer come, within `read_timeout`; a whole file may take a day.
# Whoever is told that the store is away tries again by itself, so here a blip is bridged and no more.
CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(days=1),
}
RETRIES: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
# Whoever only asks whether the store is there waits some seconds, once.
PING_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=2),
    "read_timeout": timedelta(seconds=3),
    "timeout": timedelta(seconds=5),
}
PING_RETRIES: "RetryConfig" = {"max_retries": 0}

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>|\(code: (\w{1,60})\)")
_PASSING = ("status code: 408", "status code: 429", "<Code>RequestTimeout</Code>", "<Code>OperationAborted</Code>")
_FULL = (f"(os error {errno.ENOSPC})", f"(os error {errno.EDQUOT})", "status code: 507")


def open_folder(folder: Path) -> ObjectStore:
    """The folder, made if it is not there."""
    return LocalStore(folder, automatic_cleanup=True, mkdir=True)


def open_bucket(
    url: str, s3: S3, *, client: "ClientConfig" = CLIENT, retries: "RetryConfig" = RETRIES, public: bool = False
) -> S3Store:
    """The bucket and prefix of s3://bucket/prefix; nothing is sent yet.

    Args:
        public: by the endpoint that clients see, which is what a signature must be made for.
    """
    parts = urlsplit(url)
    endpoint = (s3.public_endpoint if public else None) or s3.endpoint
    more: ClientConfig = {"allow_http": s3.allows_http}
    if s3.ca_file is not None:
        more["root_certificate"] = s3.ca_file.read_bytes()
    given = {
        "aws_endpoint_url_s3": endpoint,
        "access_key_id": s3.access_key_id,
        "secret_access_key": s3.secret_access_key,
        "session_token": s3.session_token,
    }
    return S3Store(
        parts.netloc,
        prefix=unquote(parts.path).strip("/") or None,
        client_options={**client, **more},
        retry_config=retries,
        region=s3.region,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # all are str
    )


@contextmanager
def telling(key: str, *, writes: bool = False) -> Iterator[None]:
    """What object_store raises, as the store's own errors, all of which are sentences.

    Args:
        writes: nothing is looked for; what is not found was removed while it was written to, and is worth another try.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _refused(error) from error
        if writes:
            raise ArtifactsAway(_first_line(error)) from error
        raise ArtifactNotFound(key) from None
    except AlreadyExistsError:
        raise ArtifactExists(key) from None
    except (OSError, BaseError) as error:
        if _is_full(error):
            raise ArtifactsFull(key) from error
        if not isinstance(error, BaseError):
            raise
        raise _refused(error) if _is_refusal(error) else ArtifactsAway(_first_line(error)) from error


def _is_full(error: Exception) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(sign in str(error) for sign in _FULL)


def _is_refusal(error: Exception) -> bool:
    """Whether asking again in the same way would be answered in the same way: the fault is in keys or names."""
    said = str(error)
    status = _STATUS.search(said)
    is_ours = status is not None and status[1].startswith("4") and not any(sign in said for sign in _PASSING)
    return is_ours or "(code: AccessDenied)" in said


def _refused(error: Exception) -> ArtifactsRefused:
    code, status = _CODE.search(str(error)), _STATUS.search(str(error))
    named = next((name for name in (code.groups() if code else ()) if name), None)
    return ArtifactsRefused(named or (f"status {status[1]}" if status else "no reason given"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
