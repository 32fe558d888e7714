"""What a tenant has used of what it may."""

from fastapi import APIRouter

from service.answers import Usage
from service.depends import Caller, Store

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("")
def usage(store: Store, access: Caller) -> Usage:
    """Jobs, bytes and GPU hours of the caller's tenant, and its limits; GPU hours are of this month, by UTC."""
    limits, used = store.tenants.usage(access.tenant)
    return Usage.model_validate(
        {
            "tenant": limits.name,
            "queued": {"used": used.queued, "limit": limits.most_queued},
            "running": {"used": used.running, "limit": limits.most_running},
            "stored_bytes": {"used": used.stored_bytes, "limit": limits.most_stored_bytes},
            "gpu_hours": {"used": used.gpu_hours, "limit": limits.most_gpu_hours},
            "requests_per_minute": limits.most_requests,
        }
    )
