"""Predictions: what a checkpoint names in one image."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from service import predictions
from service.answers import Prediction
from service.body import read_bounded
from service.depends import CheckpointId, Store
from service.errors import RequestRefused
from service.query import Parameters, accepts

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])

PNG = "image/png"
BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {PNG: BYTES}}}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"image/*": BYTES, "application/octet-stream": BYTES}}
}


class PredictionQuery(Parameters):
    min_score: float = Field(0.5, ge=0, le=1, description="of detection: objects of a lower score are left out")


async def image_body(request: Request) -> bytes:
    """The body of a request that brings an image: 415 if it says it is something else, 413 if it is too large."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not media_type.startswith("image/") and media_type != "application/octet-stream":
        would_do = "send the image itself as the body, as Content-Type: image/jpeg or image/png, say"
        raise RequestRefused(415, "unsupported_media_type", would_do)
    return await read_bounded(request, request.app.state.backend.settings.max_image_bytes)


@router.post(
    "/{checkpoint_id}/predict",
    response_model=Prediction,
    response_model_exclude_unset=True,
    responses=PICTURE,
    openapi_extra=IMAGE_BODY,
)
async def predict(
    checkpoint_id: CheckpointId,
    image: Annotated[bytes, Depends(image_body)],
    store: Store,
    query: Annotated[PredictionQuery, Query()],
    request: Request,
) -> Any:
    """What the model names in a JPEG, PNG, WebP, BMP or TIFF file, as JSON or, by Accept, drawn on it as a PNG.

    Classification names the five most probable classes; detection objects with boxes (left, top, right, bottom, in
    pixels) and masks where its head makes them; segmentation the classes that are there with the share of the pixels
    that is theirs, each with its mask. Masks are COCO's: `size` (height, width) and `counts`, compressed runs.
    A file that cannot be read is a 422; 503 if no housekeeper answers within 30 s: the same sent again goes on waiting.
    """
    if accepts(request, PNG):
        picture = await predictions.drawn(store, checkpoint_id, image, min_score=query.min_score)
        return Response(picture, media_type=PNG)
    named = await predictions.named(store, checkpoint_id, image, min_score=query.min_score)
    return Prediction.model_validate({"checkpoint": checkpoint_id, **named})
