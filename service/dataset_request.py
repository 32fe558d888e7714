"""What a data set is declared as: the body of POST /v1/datasets, checked against what there is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from acmix.data_root import folder_below
from acmix.errors import DatasetMissing, OptionInvalid, Problem, nearest, unknown_name
from acmix.formats import FORMATS
from acmix.spec import Name, Options, Part
from service import body_faults
from service.errors import RequestRefused

SENTENCES = {
    **body_faults.SENTENCES,
    "string_pattern_mismatch": "must be 64 hexadecimal digits in lower case",
}


class DatasetRequest(Part):
    """A data set to be uploaded, or one that lies below the data root already."""

    name: Name
    task: Name = Field(description="what it is for", examples=list(FORMATS))
    format: Name = Field(description="how its files are laid out", examples=["image_folder"])
    options: Options = Field({}, description="what the format's reader takes beside the files")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the archive that will be uploaded: another one is rejected"
    )
    path: Annotated[str, StringConstraints(min_length=1, max_length=1000)] | None = Field(
        None, description="a folder below the service's data root that holds it already; nothing is uploaded then"
    )


def parse(raw: Any, data_root: Path) -> DatasetRequest:
    """The request that JSON values stand for; RequestRefused (422) with a pointer for every fault."""
    try:
        request = DatasetRequest.model_validate(raw)
    except ValidationError as error:
        problems = [*body_faults.problems_of(error, DatasetRequest, "a data set", SENTENCES)]
    else:
        problems = [*_unknown_names(request), *_wrong_path(request, data_root)]
    if problems:
        raise RequestRefused(422, "dataset_invalid", problems[0].message, problems=problems)
    return request


def _unknown_names(request: DatasetRequest) -> Iterator[Problem]:
    formats = FORMATS.get(request.task)
    if formats is None:
        message = unknown_name("task", request.task, list(FORMATS))
        fixes = nearest(request.task, list(FORMATS))
        yield Problem("/task", "unknown_name", message, allowed=list(FORMATS), fixes=fixes or None)
    elif request.format not in formats:
        message = f"no format of {request.task} is named {request.format[:60]!r}; there are: {', '.join(formats)}"
        fixes = nearest(request.format, formats)
        yield Problem("/format", "unknown_name", message, allowed=list(formats), fixes=fixes or None)


def _wrong_path(request: DatasetRequest, data_root: Path) -> Iterator[Problem]:
    """What is wrong with `path`. A data root that only the workers see is theirs to look into."""
    if request.path is None:
        return
    if request.sha256 is not None:
        yield Problem("/sha256", "not_allowed", "sha256 is an archive's; leave it out where path is given")
    try:
        folder_below(data_root, request.path, option="path")
    except OptionInvalid as error:
        yield Problem("/path", error.code, error.message)
    except DatasetMissing:
        if data_root.is_dir():
            message = f"path={request.path[:200]!r} is no folder below the data root"
            yield Problem("/path", DatasetMissing.code, message)
