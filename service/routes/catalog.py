"""What a spec can name."""

from fastapi import APIRouter

from acmix.catalog import Catalog
from service.depends import Store
from service.errors import not_ready
from service.store.backend import Backend
from service.store.rows import Menu

router = APIRouter(prefix="/v1/catalog", tags=["catalog"])


@router.get("")
def catalog(store: Store) -> Catalog:
    """Tasks, backbones with their slots, mixers, data sets, optimizers, schedules and augments, with their options."""
    return known_menu(store).catalog


def known_menu(store: Backend) -> Menu:
    """What the workers can run, all of them together; 503 while none was ever here."""
    found = store.reader.menu()
    if found is None:
        raise not_ready("no worker has posted a catalog yet; start one, then try again")
    return found
