"""What a tenant may use, asked in the very transaction that would use more of it."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, func, or_, select

from service.store.database import conflicting_insert, one_at_a_time
from service.store.errors import QuotaExceeded
from service.store.rows import Job, Tenant, Used, columns, read
from service.store.scope import of_tenant
from service.store.tables import checkpoints, datasets, holdings, jobs, tenants, usage, weights

HOUR_SECONDS = 3600
LIMITS = (
    select(*columns(Tenant, tenants))
    .where(
        tenants.c.name == bindparam("tenant"),
        or_(
            *(tenants.c[name].is_not(None) for name in ("most_queued", "most_gpu_hours", "most_stored_bytes")),
        ),
    )
    .with_for_update()
)


def check_queued(connection: Connection, tenant: str, now: datetime) -> None:
    """QuotaExceeded where one more job may not be queued. Others of this tenant wait until the transaction ends."""
    limits = _lock(connection, tenant)
    if limits is None:
        return
    if limits.most_queued is not None and (queued := _count(connection, tenant, "queued")) >= limits.most_queued:
        raise QuotaExceeded(tenant, "queued jobs", queued, limits.most_queued, "wait until one begins, or cancel one")
    if limits.most_gpu_hours is not None and (used := gpu_hours(connection, tenant, now)) >= limits.most_gpu_hours:
        raise QuotaExceeded(tenant, "GPU hours this month", used, limits.most_gpu_hours, "wait for the next month")
    _check_room(connection, limits, more_bytes=0)


def check_stored(connection: Connection, tenant: str, more_bytes: int) -> None:
    """QuotaExceeded where so many bytes more may not be stored."""
    if limits := _lock(connection, tenant):
        _check_room(connection, limits, more_bytes)


def exhausted(connection: Connection, now: datetime, *, locked: bool = True) -> list[str]:
    """Tenants that may have no attempt begun. Where any is limited so, claims go one after the other.

    Who only looks does not wait.
    """
    limited = or_(tenants.c.most_running.is_not(None), tenants.c.most_gpu_hours.is_not(None))
    wanted = select(*columns(Tenant, tenants)).where(limited).order_by(tenants.c.name)
    found = [read(Tenant, row) for row in connection.execute(wanted).mappings()]
    if not found:
        return []
    if locked:
        one_at_a_time(connection, "claims under limits")
    running, hours = _running_and_hours(connection, now)
    return [tenant.name for tenant in found if _is_exhausted(tenant, running.get(tenant.name, 0), hours[tenant.name])]


def used(connection: Connection, tenant: str, now: datetime) -> Used:
    """What a tenant uses."""
    return Used(
        queued=_count(connection, tenant, "queued"),
        running=_count(connection, tenant, "running"),
        stored_bytes=stored_bytes(connection, tenant),
        gpu_hours=gpu_hours(connection, tenant, now),
    )


def stored_bytes(connection: Connection, tenant: str) -> int:
    """Of checkpoints with all their files, uploaded weights and uploaded archives."""
    in_checkpoints = select(func.sum(checkpoints.c.stored_bytes))
    of_nobody = in_checkpoints.join(jobs, jobs.c.id == checkpoints.c.job).where(checkpoints.c.tenant.is_(None))
    sums = (
        in_checkpoints.where(of_tenant(checkpoints, tenant)),
        of_nobody.where(of_tenant(jobs, tenant)),
        select(func.sum(weights.c.size_bytes)).where(of_tenant(weights, tenant)),
        select(func.sum(datasets.c.received_bytes)).where(of_tenant(datasets, tenant)),
    )
    return sum(int(connection.execute(each).scalar_one() or 0) for each in sums)


def gpu_hours(connection: Connection, tenant: str, now: datetime) -> float:
    """Of attempts that ended this month, and of those that run."""
    this_month = select(usage.c.gpu_seconds).where(of_tenant(usage, tenant), usage.c.month == month_of(now))
    ended = connection.execute(this_month).scalar_one_or_none() or 0.0
    held = select(holdings.c.since).where(of_tenant(holdings, tenant), holdings.c.on_gpu)
    live = sum((now - since).total_seconds() for since in connection.execute(held).scalars())
    return float(ended + live) / HOUR_SECONDS


def book(connection: Connection, job: Job, now: datetime) -> None:
    """Put down what the attempt took that ends now."""
    gpus = job.resolved_spec["resources"]["gpus"]
    if not gpus or job.claimed_at is None:
        return
    took = gpus * (now - job.claimed_at).total_seconds()
    row = conflicting_insert(connection, usage).values(tenant=job.tenant, month=month_of(now), gpu_seconds=took)
    more = {"gpu_seconds": usage.c.gpu_seconds + row.excluded.gpu_seconds}
    connection.execute(row.on_conflict_do_update(index_elements=["tenant", "month"], set_=more))


def month_of(now: datetime) -> str:
    """2026-11, say; a month is UTC's."""
    return f"{now.astimezone(UTC):%Y-%m}"


def _lock(connection: Connection, tenant: str) -> Tenant | None:
    """The limits of a tenant, if it has any; its row stays locked: two that come at once may not both be the last.

    One without limits is not locked: its writes would wait for each other's commits.
    """
    row = connection.execute(LIMITS, {"tenant": tenant}).mappings().one_or_none()
    return read(Tenant, row) if row else None


def _check_room(connection: Connection, limits: Tenant, more_bytes: int) -> None:
    most = limits.most_stored_bytes
    if most is None:
        return
    stored = stored_bytes(connection, limits.name)
    if stored + max(more_bytes, 1) > most:
        raise QuotaExceeded(limits.name, "stored bytes", stored, most, "delete jobs, weights or data sets")


def _running_and_hours(connection: Connection, now: datetime) -> tuple[Mapping[str, int], Mapping[str, float]]:
    """Attempts that run, of every tenant; GPU hours of this month, of those whose hours are limited."""
    live = (
        select(jobs.c.tenant, func.count().label("running")).where(jobs.c.status == "running").group_by(jobs.c.tenant)
    )
    running = {row.tenant: row.running for row in connection.execute(live)}
    # one look by the key for each, or all months would be read
    this_month = (
        select(usage.c.gpu_seconds)
        .where(usage.c.tenant == tenants.c.name, usage.c.month == month_of(now))
        .scalar_subquery()
    )
    booked = select(tenants.c.name, this_month.label("gpu_seconds")).where(tenants.c.most_gpu_hours.is_not(None))
    hours: defaultdict[str, float] = defaultdict(float)
    for row in connection.execute(booked):
        hours[row.name] += (row.gpu_seconds or 0.0) / HOUR_SECONDS
    for row in connection.execute(select(holdings.c.tenant, holdings.c.since).where(holdings.c.on_gpu)):
        hours[row.tenant] += (now - row.since).total_seconds() / HOUR_SECONDS
    return running, hours


def _is_exhausted(tenant: Tenant, running: int, hours: float) -> bool:
    if tenant.most_running is not None and running >= tenant.most_running:
        return True
    return tenant.most_gpu_hours is not None and hours >= tenant.most_gpu_hours


def _count(connection: Connection, tenant: str, status: str) -> int:
    counted = select(func.count()).select_from(jobs).where(of_tenant(jobs, tenant), jobs.c.status == status)
    return connection.execute(counted).scalar_one()
