"""What the API answers of data sets."""

from datetime import datetime
from typing import Any

from pydantic import Field, JsonValue

from service.answers import Answer, Reason
from service.store import rows
from service.store.rows import DatasetStatus

EXAMPLE_ID = "ds_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"


class UploadState(Answer):
    """How much of the archive is stored."""

    offset: int = Field(description="where an upload goes on")
    total: int | None = Field(description="bytes of the whole archive, once an upload has told")


class CheckProgress(Answer):
    """How far the check has come."""

    phase: str = Field(examples=["checking"])
    done: int
    of: int | None = None


class DatasetSummary(Answer):
    """A data set as it stands; what there is to say of its content is null until it is ready."""

    id: str = Field(examples=[EXAMPLE_ID])
    name: str
    task: str = Field(examples=["classification"])
    format: str = Field(examples=["image_folder"])
    options: dict[str, Any]
    status: DatasetStatus
    status_reason: Reason | None = Field(description="why the service could not check it, or has to try again")
    path: str | None = Field(description="where below the data root it lies, if it was not uploaded")
    upload: UploadState | None = Field(description="null where it lies at `path`")
    progress: CheckProgress | None = Field(description="of its check, while that runs")
    sha256: str | None = Field(description="of its content, whatever the archive's form")
    size_bytes: int | None = Field(description="of all its files")
    files: int | None
    num_classes: int | None
    created_at: datetime
    checked_at: datetime | None


class Fault(Answer):
    file: str | None = None
    code: str = Field(examples=["dataset_corrupt"])
    message: str


class Dataset(DatasetSummary):
    """A data set with what its check found: what is in it once ready, what is wrong with it if rejected."""

    classes: list[str] | None = None
    has_masks: bool | None = Field(None, description="of detection: whether every object has a mask")
    splits: dict[str, Any] | None = Field(None, description="samples in all and by class, of train, val and test")
    statistics: dict[str, Any] | None = None
    warnings: list[JsonValue] | None = None
    faults: list[Fault] | None = Field(None, description="the first of those found")
    faults_total: int | None = None
    expected: JsonValue = Field(None, description="the layout that it should have")
    found: JsonValue = Field(None, description="what there is in its place")


def summary(row: rows.Dataset) -> DatasetSummary:
    """A stored data set as a list tells it."""
    return DatasetSummary.model_validate(_told(row))


def dataset(row: rows.Dataset) -> Dataset:
    """A stored data set with its report."""
    report = row.report or {}
    own = DatasetSummary.model_fields
    return Dataset.model_validate(
        {**{name: report.get(name) for name in Dataset.model_fields if name not in own}, **_told(row)}
    )


def _told(row: rows.Dataset) -> dict[str, Any]:
    own = {name: getattr(row, name) for name in DatasetSummary.model_fields if hasattr(row, name)}
    state = None if row.path is not None else UploadState(offset=row.received_bytes, total=row.total_bytes)
    return {**own, "upload": state}
