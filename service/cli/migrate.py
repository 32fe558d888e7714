"""`acmix migrate`: what a deployment needs before its first process, and after every upgrade."""

from pathlib import Path

from service import settings
from service.cli.keys import Data, fail, tenants_of
from service.store.errors import KeyRefused
from service.store.scope import DEFAULT
from service.store.tenants import Tenants


def migrate(data: Data = Path("data")) -> None:
    """Bring the tables up to date, and make the key that ACMIX_ADMIN_KEY_FILE holds. A second time changes nothing.

    That key is for everything, of the tenant `default`; from then on every request needs one.
    """
    with tenants_of(data) as tenants:
        print("the tables are up to date")
        if text := settings.admin_key():
            print("the admin key is made" if _make(tenants, text) else "the admin key is there")


def _make(tenants: Tenants, text: str) -> bool:
    try:
        return tenants.keep_key(text, DEFAULT, name="first", scopes=["admin"])
    except KeyRefused as error:
        fail(f"the key of ACMIX_ADMIN_KEY_FILE will not do: {error}")
