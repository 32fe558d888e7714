"""Whose rows a part of the store sees: one tenant's, or everybody's."""

from copy import copy
from typing import Self

from sqlalchemy import ColumnElement, Table, exists, true

from service.store.tables import jobs

DEFAULT = "default"  # whose things are that come without a key


def of_tenant(table: Table, tenant: str | None) -> ColumnElement[bool]:
    """The rows of a tenant; all of them for None."""
    return true() if tenant is None else table.c.tenant == tenant


def of_tenants_jobs(table: Table, tenant: str | None) -> ColumnElement[bool]:
    """The rows that belong to jobs of a tenant; all of them for None."""
    return true() if tenant is None else exists().where(jobs.c.id == table.c.job, jobs.c.tenant == tenant)


class Scoped:
    """A part of the store; the worker's and the housekeeper's sees all tenants, what a request is given sees its own.

    Every query of such a part takes `_mine` or `_my_jobs`, so that another tenant's row is as absent as none.
    """

    _tenant: str | None = None

    def of(self, tenant: str) -> Self:
        """The same part for one tenant."""
        scoped = copy(self)
        scoped._tenant = tenant
        return scoped

    @property
    def _owner(self) -> str:
        """Whose a new row is."""
        return DEFAULT if self._tenant is None else self._tenant

    def _mine(self, table: Table) -> ColumnElement[bool]:
        return of_tenant(table, self._tenant)

    def _my_jobs(self, table: Table) -> ColumnElement[bool]:
        return of_tenants_jobs(table, self._tenant)
