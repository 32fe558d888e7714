"""What a spec can name."""

from fastapi import APIRouter

from acmix.catalog import Catalog
from service.depends import Store
from service.errors import not_ready
from service.store.backend import Backend

router = APIRouter(prefix="/v1/catalog", tags=["catalog"])


@router.get("")
def catalog(store: Store) -> Catalog:
    """Tasks, backbones with their slots, mixers, data sets, optimizers, schedules and augments, with their options."""
    return known_catalog(store)


def known_catalog(store: Backend) -> Catalog:
    """The union of what the workers can run; 503 while none was ever here."""
    found = store.reader.catalog()
    if found is None:
        raise not_ready("no worker has posted a catalog yet; start one, then try again")
    return found
