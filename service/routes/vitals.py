"""How the service is, for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from service import vitals

router = APIRouter(tags=["health"])


def _counted(request: Request) -> vitals.Counted:
    counted: vitals.Counted = request.app.state.counted
    return counted


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(counted: Annotated[vitals.Counted, Depends(_counted)]) -> Response:
    """The service's own figures in Prometheus' text format; docs/monitoring.md tells what each means.

    With the token of METRICS_TOKEN it is answered also while the database is away, with all but what that one knows.
    """
    return Response(vitals.told(counted), media_type=vitals.MEDIA_TYPE)
