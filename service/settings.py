"""Settings of every process, read once from the environment; nothing else reads it."""

import logging
import math
import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

SCHEMES = {
    "DATABASE_URL": ("sqlite", "postgresql", "postgresql+psycopg", "postgres"),
    "BROKER_URL": ("redis", "rediss", "redis+socket"),
    "ARTIFACTS_URL": ("file", "s3"),
}
# Each may lie in a file instead, which the variable of its name and _FILE names.
SECRETS = (
    *("DATABASE_PASSWORD", "BROKER_PASSWORD", "METRICS_TOKEN", "ACMIX_API_KEY", "ACMIX_ADMIN_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
CONTAINER_SECRETS = Path("/run/secrets")  # mounted for whoever is in the container, whatever its number
MAX_LABEL_CHARACTERS = 200
Number = TypeVar("Number", int, float)

log = logging.getLogger(__name__)


class SettingInvalid(Exception):
    """A variable of the environment holds what it cannot; the message names it and what would do."""


@dataclass(frozen=True)
class S3:
    """How a bucket is reached, by the variables that everything else which speaks to S3 reads too.

    Without a key, the role of the machine or the container is used, as object_store finds it.
    """

    endpoint: str | None = None  # None: AWS's own, by the region
    public_endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    allows_http: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True)
class Settings:
    database_url: str
    database_pool: int
    broker_url: str
    artifacts_url: str
    s3: S3
    data_folder: Path
    data_root: Path
    lease_seconds: float
    cancel_grace_seconds: float
    stop_grace_seconds: float
    stall_seconds: float
    max_failures: int
    max_losses: int
    slots_per_gpu: int
    worker_labels: tuple[str, ...]
    idle_look_seconds: float
    sweep_seconds: float
    max_body_bytes: int
    max_image_bytes: int
    max_weights_bytes: int
    max_dataset_bytes: int
    data_cache_bytes: int
    planner_idle_seconds: float
    keep_events_days: float
    keep_series_days: float
    webhook_networks: tuple[IPv4Network | IPv6Network, ...]
    webhook_ca_file: Path | None
    metrics_token: str | None = field(repr=False)
    metrics_host: str
    metrics_port: int | None


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that the command line's clients send."""
    return _with_secrets(environ).get("ACMIX_API_KEY") or None


def admin_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that `acmix migrate` makes, so that there is a first one."""
    return _with_secrets(environ).get("ACMIX_ADMIN_KEY") or None


def log_form(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The form of this process's log and its level: read before all else, whose faults are then told so."""
    form = _one_of(environ, "LOG_FORMAT", ("text", "json"), "text")
    return form, _one_of(environ, "LOG_LEVEL", ("debug", "info", "warning", "error"), "info").upper()


def vitals_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where several processes behind one port put what they count; the name is prometheus-client's."""
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process; SettingInvalid names the variable that is wrong."""
    environ = _with_secrets(environ)
    data_folder = Path(environ.get("ACMIX_DATA") or "data").expanduser().resolve()
    database_url = _url(environ, "DATABASE_URL", f"sqlite:///{data_folder / 'acmix.db'}")
    broker_url = _url(environ, "BROKER_URL", "redis://localhost:6379/0")
    return Settings(
        database_url=_with_password(database_url, environ.get("DATABASE_PASSWORD")),
        database_pool=_number(environ, "DATABASE_POOL", 10, least=1, most=1000),
        broker_url=_with_password(broker_url, environ.get("BROKER_PASSWORD")),
        artifacts_url=_artifacts_url(environ, f"file://{data_folder / 'artifacts'}"),
        s3=_s3(environ),
        data_folder=data_folder,
        data_root=Path(environ.get("DATA_ROOT") or data_folder / "datasets").expanduser().resolve(),
        lease_seconds=_number(environ, "LEASE_SECONDS", 60.0, least=1, most=3600),
        cancel_grace_seconds=_number(environ, "CANCEL_GRACE_SECONDS", 5.0, least=0, most=3600),
        stop_grace_seconds=_number(environ, "STOP_GRACE_SECONDS", 8.0, least=0, most=3600),
        stall_seconds=_number(environ, "STALL_SECONDS", 900.0, least=1, most=86400),
        max_failures=_number(environ, "MAX_FAILURES", 2, least=0, most=100),
        max_losses=_number(environ, "MAX_LOSSES", 5, least=0, most=100),
        slots_per_gpu=_number(environ, "SLOTS_PER_GPU", 1, least=1, most=16),
        worker_labels=_labels(environ, "WORKER_LABELS"),
        idle_look_seconds=_number(environ, "ACMIX_IDLE_LOOK_SECONDS", 15.0, least=0.05, most=3600),
        sweep_seconds=_number(environ, "ACMIX_SWEEP_SECONDS", 5.0, least=0.05, most=3600),
        max_body_bytes=_number(environ, "MAX_BODY_BYTES", 4 * 2**20, least=1024, most=2**30),
        max_image_bytes=_number(environ, "MAX_IMAGE_BYTES", 20 * 2**20, least=1024, most=2**28),
        max_weights_bytes=_number(environ, "MAX_WEIGHTS_BYTES", 4 * 2**30, least=1024, most=2**40),
        max_dataset_bytes=_number(environ, "MAX_DATASET_BYTES", 200 * 2**30, least=1024, most=2**50),
        data_cache_bytes=_number(environ, "DATA_CACHE_BYTES", 100 * 2**30, least=0, most=2**50),
        planner_idle_seconds=_number(environ, "PLANNER_IDLE_SECONDS", math.inf, least=1, most=math.inf),
        keep_events_days=_number(environ, "KEEP_EVENTS_DAYS", math.inf, least=0, most=math.inf),
        keep_series_days=_number(environ, "KEEP_SERIES_DAYS", math.inf, least=0, most=math.inf),
        webhook_networks=_networks(environ, "WEBHOOK_NETWORKS"),
        webhook_ca_file=_certificates(environ, "WEBHOOK_CA_FILE"),
        metrics_token=_token(environ, "METRICS_TOKEN"),
        metrics_host=environ.get("METRICS_HOST") or "127.0.0.1",
        metrics_port=_number(environ, "METRICS_PORT", 0, least=0, most=65535) or None,
    )


def load_for(data: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command that works on a service's own database: the environment's, else of a data folder."""
    return load({**environ, "ACMIX_DATA": str(data)})


def _with_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with every secret in its own variable, be it that it lies in a file."""
    found = dict(environ)
    for variable in SECRETS:
        path = found.pop(f"{variable}_FILE", "")
        if not path:
            continue
        if found.get(variable):
            raise SettingInvalid(f"{variable} and {variable}_FILE are both set; one of them would do")
        found[variable] = _opened(f"{variable}_FILE", Path(path).expanduser())
    return found


def _opened(variable: str, file: Path) -> str:
    """The one line of a file. What a message shows of it is its path."""
    try:
        text = file.read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingInvalid(f"{variable}={str(file)[:200]!r} cannot be read: {why}") from None
    if not text or len(text.splitlines()) > 1:
        raise SettingInvalid(f"{variable}={str(file)[:200]!r} will not do; a file with one line, the secret, would")
    if _is_open_to_all(file.resolve()):
        log.warning("every user of this machine can reach %s, which %s names; chmod 600 mends that", file, variable)
    return text


def _is_open_to_all(file: Path) -> bool:
    """Whether any user may read or change it: by its own mode, and by those of the folders that lead to it."""
    may = file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)
    reached = all(folder.stat().st_mode & stat.S_IXOTH for folder in file.parents)
    return bool(may) and reached and CONTAINER_SECRETS not in file.parents


def _with_password(url: str, password: str | None) -> str:
    """The URL with this password, unless it has one of its own or names no server."""
    parts = urlsplit(url)
    if not password or not parts.netloc or parts.password is not None:
        return url
    user, _, server = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{server}").geturl()


def _url(environ: Mapping[str, str], variable: str, default: str) -> str:
    """Its value, if we speak the scheme. The message shows the scheme alone: the rest may hold a password."""
    url = environ.get(variable) or default
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES[variable]:
        raise SettingInvalid(f"{variable} has the scheme {scheme[:30]!r}; {', '.join(SCHEMES[variable])} would do")
    return url


def _artifacts_url(environ: Mapping[str, str], default: str) -> str:
    """Its value; in S3 it names a bucket."""
    url = _url(environ, "ARTIFACTS_URL", default)
    if url.startswith("s3:") and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?", url):
        raise SettingInvalid("ARTIFACTS_URL names no bucket; s3://BUCKET or s3://BUCKET/PREFIX would do")
    return url


def _s3(environ: Mapping[str, str]) -> S3:
    allows_http = (environ.get("AWS_ALLOW_HTTP") or "").lower() in {"true", "1", "yes"}
    variable = "AWS_ENDPOINT_URL_S3" if environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    key, secret = environ.get("AWS_ACCESS_KEY_ID") or None, environ.get("AWS_SECRET_ACCESS_KEY") or None
    if (key is None) != (secret is None):
        raise SettingInvalid("one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is not set; both or none would do")
    return S3(
        endpoint=_endpoint(environ, variable, allows_http=allows_http),
        public_endpoint=_endpoint(environ, "ARTIFACTS_PUBLIC_ENDPOINT", allows_http=allows_http),
        region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or S3.region,
        access_key_id=key,
        secret_access_key=secret,
        session_token=environ.get("AWS_SESSION_TOKEN") or None,
        allows_http=allows_http,
        ca_file=_certificates(environ, "AWS_CA_BUNDLE"),
    )


def _endpoint(environ: Mapping[str, str], variable: str, *, allows_http: bool) -> str | None:
    """Its value as a URL without a path; http only where it was asked for, since what travels there is readable."""
    url = (environ.get(variable) or "").rstrip("/")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query or parts.username:
        raise SettingInvalid(f"{variable} will not do; https://HOST or https://HOST:PORT would")
    if parts.scheme == "http" and not allows_http:
        raise SettingInvalid(f"{variable} is http, which anybody on the way can read; AWS_ALLOW_HTTP=true allows it")
    return url


def _number(environ: Mapping[str, str], variable: str, default: Number, *, least: float, most: float) -> Number:
    """Its value as a number of the default's type, within bounds."""
    text = environ.get(variable)
    if not text:
        return default
    kind = type(default)
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        wanted = "a whole number" if kind is int else "a number"
        raise SettingInvalid(f"{variable}={text[:60]!r} will not do; {wanted} from {least:g} to {most:g} would")
    return value


def _labels(environ: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """Its value as labels that a spec can ask for, separated by commas."""
    labels = tuple(text for each in (environ.get(variable) or "").split(",") if (text := each.strip()))
    for label in labels:
        if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
            would = f"labels of at most {MAX_LABEL_CHARACTERS} characters, such as nvme,rack-3, would"
            raise SettingInvalid(f"{variable}={label[:60]!r} will not do; {would}")
    return labels


def _networks(environ: Mapping[str, str], variable: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Its value as networks, separated by commas."""
    texts = [text.strip() for text in (environ.get(variable) or "").split(",")]
    try:
        return tuple(ip_network(text) for text in texts if text)
    except ValueError as error:
        would = "networks separated by commas, such as 10.1.0.0/16,fd00:1::/32, would"
        raise SettingInvalid(f"{variable} will not do: {str(error)[:200]}; {would}") from None


def _certificates(environ: Mapping[str, str], variable: str) -> Path | None:
    """Its value as a file of certificates that can be read."""
    text = environ.get(variable)
    if not text:
        return None
    file = Path(text).expanduser().resolve()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError:  # of which ssl's own errors are
        raise SettingInvalid(f"{variable}={text[:200]!r} will not do; a file of certificates in PEM would") from None
    return file


def _one_of(environ: Mapping[str, str], variable: str, known: tuple[str, ...], default: str) -> str:
    """Its value, one of those known, in small letters."""
    value = (environ.get(variable) or default).lower()
    if value not in known:
        raise SettingInvalid(f"{variable}={value[:60]!r} will not do; {', '.join(known[:-1])} or {known[-1]} would")
    return value


def _token(environ: Mapping[str, str], variable: str) -> str | None:
    """Its value, if nobody could guess it."""
    token = environ.get(variable) or None
    if token and not re.fullmatch(r"[\x21-\x7e]{16,}", token):
        raise SettingInvalid(f"{variable} will not do; 16 characters or more, none of them a space, would")
    return token
