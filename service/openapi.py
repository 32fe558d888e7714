"""The OpenAPI document: what FastAPI finds out by itself, and the shapes that it cannot see."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from acmix.plan_request import PlanRequest
from acmix.spec import EvaluateSpec, JobSpec
from service import access
from service.dataset_request import DatasetRequest
from service.drain_request import DrainRequest
from service.errors import PROBLEM_JSON
from service.webhook_request import WebhookRequest

BODIES: tuple[type[BaseModel], ...] = (JobSpec, EvaluateSpec, PlanRequest, DatasetRequest, WebhookRequest, DrainRequest)
REF = "#/components/schemas/{model}"
KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, acmix_..., that `acmix keys create` makes; until the first is made, this machine may "
    "call without one",
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "what was wrong (RFC 9457)",
        "content": {PROBLEM_JSON: {"schema": {"$ref": REF.format(model="ProblemAnswer")}}},
    }
}
SPEC_EXAMPLE = {
    "name": "late attention",
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "layer[34].*", "mixer": {"name": "acmix", "options": {"heads": 4, "kernel_att": 7}}}],
    "dataset": {"name": "digits"},
    "training": {"epochs": 10, "batch_size": 128, "optimizer": {"name": "sgd", "lr": 0.1}},
}
PLAN_EXAMPLES = {
    "a job": {"summary": "the body of a job, as it is", "value": SPEC_EXAMPLE},
    "assumed": {
        "summary": "without a data set",
        "value": {
            "backbone": {"name": "resnet50"},
            "swaps": [{"layers": "layer4.*"}],
            "training": {"batch_size": 32},
            "assume": {"num_classes": 1000, "image_px": 224},
        },
    },
}


DATASET_EXAMPLES = {
    "an upload": {
        "summary": "an archive that follows",
        "value": {"name": "flowers", "task": "classification", "format": "image_folder"},
    },
    "a folder": {
        "summary": "what lies below the data root",
        "value": {"name": "street", "task": "detection", "format": "coco", "path": "street/2026"},
    },
}


def _body(*models: str, required: bool = True, **more: Any) -> dict[str, Any]:
    """A body of one of these models."""
    references = [{"$ref": REF.format(model=model)} for model in models]
    content = {"schema": {"anyOf": references} if len(references) > 1 else references[0], **more}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


EVALUATE_EXAMPLE = {
    "kind": "evaluate",
    "checkpoint": "ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC",
    "dataset": {"id": "ds_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"},
    "evaluation": {"split": "test"},
}
JOB_EXAMPLES = {
    "a training": {"summary": "train a model", "value": SPEC_EXAMPLE},
    "an evaluation": {"summary": "evaluate a checkpoint", "value": EVALUATE_EXAMPLE},
}
WEBHOOK_EXAMPLES = {
    "ends": {"summary": "how each job ended", "value": {"url": "https://example.com/hooks/acmix"}},
    "a part": {
        "summary": "what somebody should look at",
        "value": {"name": "pager", "url": "https://example.com/hooks/pager", "types": ["job.failed", "job.paused"]},
    },
}
SPEC_BODY = _body("JobSpec", "EvaluateSpec", examples=JOB_EXAMPLES)
PLAN_BODY = _body("PlanRequest", examples=PLAN_EXAMPLES)
DATASET_BODY = _body("DatasetRequest", examples=DATASET_EXAMPLES)
DRAIN_BODY = _body("DrainRequest", required=False)
WEBHOOK_BODY = _body("WebhookRequest", examples=WEBHOOK_EXAMPLES)


class ProblemFault(BaseModel):
    """One fault of a request."""

    pointer: str = Field(description="JSON pointer into the body; /query/NAME, /header/NAME for a parameter")
    code: str
    message: str
    allowed: list[Any] | None = None
    limit: float | None = None
    actual: Any = None
    fixes: list[Any] | None = None


class ProblemAnswer(BaseModel):
    """application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(examples=["spec_invalid"])
    request_id: str
    errors: list[ProblemFault]
    resource_status: str | None = Field(None, description="with 409: how the job, data set or webhook stands")
    allowed_actions: list[str] | None = Field(None, description="with 409: what it takes")


def install(app: FastAPI) -> None:
    """Make the document complete; it is made once, when first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents


def _document(app: FastAPI) -> dict[str, Any]:
    sent = app.webhooks.routes
    found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes, webhooks=sent)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    models: tuple[type[BaseModel], ...] = (*BODIES, ProblemAnswer)
    for model in models:
        prefix = "" if model is ProblemAnswer else "Spec"
        own = model.model_json_schema(ref_template=REF.format(model=f"{prefix}{{model}}"))
        schemas.update({f"{prefix}{name}": schema for name, schema in own.pop("$defs", {}).items()})
        schemas[model.__name__] = own
    for name in ("JobSpec", "PlanRequest"):
        _leave_out_evaluations(schemas[name])
    found["components"]["securitySchemes"] = {"key": KEY_SCHEME}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if path not in access.OPEN:
                operation["security"] = [{"key": [access.scope_of(method.upper(), path)]}, {}]
    return found


def _leave_out_evaluations(schema: dict[str, Any]) -> None:
    """A resolved spec may be an evaluation's; what is posted is one or the other."""
    properties = schema["properties"]
    del properties["checkpoint"]
    properties["kind"] = {"const": "train", "default": "train", "title": "Kind", "type": "string"}
