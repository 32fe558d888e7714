"""Query parameters that several routes take. Unknown ones are refused like unknown fields."""

from typing import Annotated

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from acmix.errors import Problem
from acmix.spec import Label, pointer
from service.errors import RequestRefused

MOST = 2**31 - 1

Step = Annotated[int, Field(ge=0, le=MOST)]
Points = Annotated[int, Field(ge=4, le=100_000)]
Limit = Annotated[int, Field(ge=1, le=200, description="how many to answer")]


def _names(given: list[str]) -> list[str]:
    return [name for text in given for name in text.split(",") if name]


Names = Annotated[list[Label], Field(max_length=100), AfterValidator(_names)]


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Range(Parameters):
    """Which part of a curve; first the range, then at most `max_points` of it."""

    x_from: Step | None = Field(None, description="first step")
    x_to: Step | None = Field(None, description="last step")
    max_points: Points | None = Field(None, description="thinned by min/max buckets; first and last are kept")


async def refuse_where_none_is_taken(request: Request) -> None:
    """422 for a parameter of a route that takes none; where a route takes some, its model refuses the others."""
    if request.query_params and not _takes_any(request.scope["route"].dependant):
        name = next(iter(request.query_params))
        sentence = f"this path takes no parameters; {name[:60]!r} is one"
        fault = Problem(pointer(("query", name)), "unknown_parameter", sentence)
        raise RequestRefused(422, "parameter_invalid", sentence, problems=[fault])


def _takes_any(dependant: Dependant) -> bool:
    return bool(dependant.query_params) or any(map(_takes_any, dependant.dependencies))


def accepts(request: Request, media_type: str) -> bool:
    """Whether the caller asks for this media type by name."""
    wanted = request.headers.get("accept", "").lower().split(",")
    return any(part.partition(";")[0].strip() == media_type for part in wanted)
