"""Settings of every process, read once from the environment; nothing else reads it."""

import math
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

SCHEMES = {
    "DATABASE_URL": ("sqlite", "postgresql", "postgresql+psycopg", "postgres"),
    "BROKER_URL": ("redis", "rediss", "redis+socket"),
    "ARTIFACTS_URL": ("file", "s3"),
}
Number = TypeVar("Number", int, float)


class SettingInvalid(Exception):
    """A variable of the environment holds what it cannot; the message names it and what would do."""


@dataclass(frozen=True)
class Settings:
    database_url: str
    broker_url: str
    artifacts_url: str
    data_folder: Path
    data_root: Path
    lease_seconds: float
    cancel_grace_seconds: float
    stop_grace_seconds: float
    stall_seconds: float
    max_failures: int
    max_losses: int
    idle_look_seconds: float
    sweep_seconds: float
    max_body_bytes: int
    max_image_bytes: int
    max_weights_bytes: int
    max_dataset_bytes: int
    data_cache_bytes: int
    planner_idle_seconds: float
    webhook_networks: tuple[IPv4Network | IPv6Network, ...]
    webhook_ca_file: Path | None
    metrics_token: str | None = field(repr=False)
    metrics_host: str
    metrics_port: int | None


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that the command line's clients send."""
    return environ.get("ACMIX_API_KEY") or None


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
    data_folder = Path(environ.get("ACMIX_DATA") or "data").expanduser().resolve()
    return Settings(
        database_url=_url(environ, "DATABASE_URL", f"sqlite:///{data_folder / 'acmix.db'}"),
        broker_url=_url(environ, "BROKER_URL", "redis://localhost:6379/0"),
        artifacts_url=_url(environ, "ARTIFACTS_URL", f"file://{data_folder / 'artifacts'}"),
        data_folder=data_folder,
        data_root=Path(environ.get("DATA_ROOT") or data_folder / "datasets").expanduser().resolve(),
        lease_seconds=_number(environ, "LEASE_SECONDS", 60.0, least=1, most=3600),
        cancel_grace_seconds=_number(environ, "CANCEL_GRACE_SECONDS", 5.0, least=0, most=3600),
        stop_grace_seconds=_number(environ, "STOP_GRACE_SECONDS", 8.0, least=0, most=3600),
        stall_seconds=_number(environ, "STALL_SECONDS", 900.0, least=1, most=86400),
        max_failures=_number(environ, "MAX_FAILURES", 2, least=0, most=100),
        max_losses=_number(environ, "MAX_LOSSES", 5, least=0, most=100),
        idle_look_seconds=_number(environ, "ACMIX_IDLE_LOOK_SECONDS", 15.0, least=0.05, most=3600),
        sweep_seconds=_number(environ, "ACMIX_SWEEP_SECONDS", 5.0, least=0.05, most=3600),
        max_body_bytes=_number(environ, "MAX_BODY_BYTES", 4 * 2**20, least=1024, most=2**30),
        max_image_bytes=_number(environ, "MAX_IMAGE_BYTES", 20 * 2**20, least=1024, most=2**28),
        max_weights_bytes=_number(environ, "MAX_WEIGHTS_BYTES", 4 * 2**30, least=1024, most=2**40),
        max_dataset_bytes=_number(environ, "MAX_DATASET_BYTES", 200 * 2**30, least=1024, most=2**50),
        data_cache_bytes=_number(environ, "DATA_CACHE_BYTES", 100 * 2**30, least=0, most=2**50),
        planner_idle_seconds=_number(environ, "PLANNER_IDLE_SECONDS", math.inf, least=1, most=math.inf),
        webhook_networks=_networks(environ, "WEBHOOK_NETWORKS"),
        webhook_ca_file=_certificates(environ, "WEBHOOK_CA_FILE"),
        metrics_token=_secret(environ, "METRICS_TOKEN"),
        metrics_host=environ.get("METRICS_HOST") or "127.0.0.1",
        metrics_port=_number(environ, "METRICS_PORT", 0, least=0, most=65535) or None,
    )


def load_for(data: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command that works on a service's own database: the environment's, else of a data folder."""
    return load({**environ, "ACMIX_DATA": str(data)})


def _url(environ: Mapping[str, str], variable: str, default: str) -> str:
    """Its value, if we speak the scheme. The message shows the scheme alone: the rest may hold a password."""
    url = environ.get(variable) or default
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES[variable]:
        raise SettingInvalid(f"{variable} has the scheme {scheme[:30]!r}; {', '.join(SCHEMES[variable])} would do")
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


def _secret(environ: Mapping[str, str], variable: str) -> str | None:
    """Its value, or the content of the file that `variable`_FILE names; none where neither is set."""
    secret, path = environ.get(variable), environ.get(f"{variable}_FILE")
    if path:
        try:
            secret = Path(path).expanduser().read_text().strip()
        except (OSError, ValueError):
            raise SettingInvalid(f"{variable}_FILE={path[:200]!r} will not do; a file that can be read would") from None
    if (path or secret) and not re.fullmatch(r"[\x21-\x7e]{16,}", secret or ""):
        raise SettingInvalid(f"{variable} will not do; 16 characters or more, none of them a space, would")
    return secret or None
