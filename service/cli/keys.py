"""`acmix keys` and `acmix tenants`: who may call, and how much of the service is theirs. They work on the database."""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from sqlalchemy.exc import DBAPIError

from service import settings
from service.store.database import connect, migrate
from service.store.errors import KeyNotFound
from service.store.rows import SCOPES, Key, Scope
from service.store.scope import DEFAULT
from service.store.tenants import Tenants

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
USUAL_SCOPES = [scope for scope in SCOPES if scope != "admin"]

key_verbs = typer.Typer(no_args_is_help=True, help="API keys; DATABASE_URL or --data says of which service.")
tenant_verbs = typer.Typer(no_args_is_help=True, help="Limits of those who share the service.")
Data = Annotated[Path, typer.Option(help="the folder that `acmix up` has; not read where DATABASE_URL is set")]


@contextmanager
def tenants_of(data: Path) -> Iterator[Tenants]:
    """Of the deployment that the environment names, or the folder; what can be mended is told in a sentence."""
    engine = None
    try:
        engine = connect(settings.load_for(data).database_url)
        migrate(engine)
        yield Tenants(engine)
    except DBAPIError as error:
        fail(f"the database cannot be worked with: {error.orig}")
    except (KeyNotFound, settings.SettingInvalid) as error:
        fail(str(error))
    finally:
        if engine is not None:
            engine.dispose()


def fail(sentence: str) -> NoReturn:
    print(f"acmix: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def _tenant_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise typer.BadParameter(
            f"{text[:60]!r} will not do: 1 to 40 small letters, digits and hyphens would, none of them at an end"
        )
    return text


def _scope(text: str) -> str:
    if text not in SCOPES:
        raise typer.BadParameter(f"{text[:60]!r} is no scope; {', '.join(SCOPES)} are")
    return text


def _amount(text: str) -> float:
    """A number, or none for no limit."""
    if text == "none":
        return math.inf
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**53:
        raise typer.BadParameter(f"{text[:60]!r} will not do; a number from 0 on, or none, would")
    return number


def _count(text: str) -> float:
    """A whole number, or none for no limit."""
    number = _amount(text)
    if number not in (math.inf, int(min(number, 2**53))):
        raise typer.BadParameter(f"{text[:60]!r} will not do; a whole number, or none, would")
    return number


def _share(text: str) -> float:
    """A number above 0, or none for that of everybody, 1."""
    number = _amount(text)
    if not number:
        raise typer.BadParameter(f"{text[:60]!r} will not do; a number above 0, or none, would")
    return number


Count = Annotated[float | None, typer.Option(parser=_count, metavar="N|none")]
Amount = Annotated[float | None, typer.Option(parser=_amount, metavar="N|none")]
Share = Annotated[float | None, typer.Option(parser=_share, metavar="N|none")]


@key_verbs.command()
def create(
    tenant: Annotated[str, typer.Option(parser=_tenant_name, metavar="NAME", help="whose it is")] = DEFAULT,
    name: Annotated[str, typer.Option(help="what to call it")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(parser=_scope, metavar="SCOPE", help=f"as often as needed: {', '.join(SCOPES)}")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36500, help="how long it is good; for ever without")
    ] = None,
    data: Data = Path("data"),
) -> None:
    """Make a key and print it, this once. From the first one on, every request needs a key.

    Without --scope it may read and write jobs and data of its tenant; admin stands for all scopes.
    """
    scopes: list[Scope] = scope or USUAL_SCOPES  # type: ignore[assignment]  # what _scope lets through
    with tenants_of(data) as tenants:
        first = not tenants.are_keys_in_use()
        lasts = timedelta(days=days) if days else None
        key, text = tenants.create_key(tenant, name=name[:200], scopes=scopes, lasts=lasts)
    print(text)
    print(f"key {key.id} of tenant {key.tenant}, for {', '.join(key.scopes)}; it is not shown again", file=sys.stderr)
    if first:
        print("it is the first: from now on every request needs one", file=sys.stderr)


@key_verbs.command(name="list")
def list_keys(data: Data = Path("data")) -> None:
    """All keys, a line each: id, tenant, how it begins, how it stands, scopes, last use, name."""
    with tenants_of(data) as tenants:
        for key in tenants.all_keys():
            used = f"used {key.used_at:%Y-%m-%d %H:%M}" if key.used_at else "never used"
            scopes = ",".join(key.scopes)
            print(key.id, key.tenant, f"acmix_{key.prefix}", _stand(key), scopes, used, key.name, sep="\t")


@key_verbs.command()
def revoke(key: Annotated[str, typer.Argument(help="its id, key_...")], data: Data = Path("data")) -> None:
    """Refuse a key from now on."""
    with tenants_of(data) as tenants:
        print(_stand(tenants.revoke_key(key)))


@tenant_verbs.command()
def limit(
    tenant: Annotated[str, typer.Argument(parser=_tenant_name, metavar="NAME")],
    queued: Count = None,
    running: Count = None,
    stored_bytes: Count = None,
    gpu_hours: Amount = None,
    requests: Count = None,
    share: Share = None,
    data: Data = Path("data"),
) -> None:
    """Set the limits that are named, each to a number or to none.

    Jobs queued and running; bytes of checkpoints, weights and archives; GPU hours a calendar month, by UTC; requests a
    minute, at each api process. What runs goes on; what would be more is refused, or waits to be claimed. The share is
    no limit: where all tenants wait, one with a share of 2 has twice the slots of one that has none set, or 1.
    """
    given = {
        "most_queued": queued,
        "most_running": running,
        "most_stored_bytes": stored_bytes,
        "most_gpu_hours": gpu_hours,
        "most_requests": requests,
        "share": share,
    }
    limits = {name: None if most == math.inf else most for name, most in given.items() if most is not None}
    with tenants_of(data) as tenants:
        tenants.limit(tenant, limits)
        _print_tenant(tenants, tenant)


@tenant_verbs.command(name="list")
def list_tenants(data: Data = Path("data")) -> None:
    """What each tenant uses, of how much it may."""
    with tenants_of(data) as tenants:
        for tenant in tenants.all_tenants():
            _print_tenant(tenants, tenant.name)


def _print_tenant(tenants: Tenants, name: str) -> None:
    limits, used = tenants.usage(name)
    shares = (
        ("queued", used.queued, limits.most_queued),
        ("running", used.running, limits.most_running),
        ("stored bytes", used.stored_bytes, limits.most_stored_bytes),
        ("GPU hours this month", round(used.gpu_hours, 3), limits.most_gpu_hours),
    )
    told = [f"{what} {has} of {'any' if most is None else f'{most:.10g}'}" for what, has, most in shares]
    rate = "any" if limits.most_requests is None else limits.most_requests
    share = [] if limits.share is None else [f"share {limits.share:.10g}"]
    print(name, *told, f"requests a minute {rate}", *share, sep="\t")


def _stand(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "good"
    return f"{'expired' if key.expires_at <= datetime.now(UTC) else 'good until'} {key.expires_at:%Y-%m-%d %H:%M}"
