"""Who is there to train."""

from fastapi import APIRouter

from service.answers import Listing, Worker
from service.depends import Store

router = APIRouter(prefix="/v1", tags=["workers"])


@router.get("/workers")
def workers(store: Store) -> Listing[Worker]:
    """Live workers with their devices and load."""
    return Listing(data=[Worker.model_validate(each) for each in store.reader.workers()])
