"""What the API answers: the shapes of its JSON, and how they are made from what is stored."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.store import rows
from service.store.rows import Page, Status, WaitCode
from service.store.states import ENDED

T = TypeVar("T")
Row = TypeVar("Row")


class Answer(BaseModel):
    """Made from stored rows of any age: only what is named here is read."""

    model_config = ConfigDict(from_attributes=True)


class Listing(Answer, Generic[T]):
    """One page; `next` is what `after` takes for the following one."""

    data: list[T]
    has_more: bool = False
    next: str | None = None


class Reason(Answer):
    code: str = Field(examples=["cancelled_by_user"])
    message: str
    blame: Literal["user", "data", "platform"] = "platform"
    retryable: bool = False
    hint: str | None = None


class QueuePlace(Answer):
    position: int | None = Field(
        description="among the queued jobs of its tenant, 1 being their next; null unless queued"
    )


class WaitReason(Answer):
    code: WaitCode
    message: str


class Kept(Answer):
    worker: str
    since: datetime


class QueueWait(QueuePlace):
    """Why a job waits, and until when."""

    reason: WaitReason
    reserved: Kept | None = Field(description="the worker that keeps its slots for it as they come free")
    estimated_start_at: datetime | None = Field(description="null where too little is known, or too much is in front")


class Progress(Answer):
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    fraction: float | None = Field(None, description="0 to 1")
    samples_per_second: float | None = None
    updated_at: datetime | None = None


class Best(Answer):
    metric: str = Field(examples=["accuracy"])
    value: float
    epoch: int
    checkpoint: str | None = Field(None, description="null until it is stored")


class JobUrls(Answer):
    self: str
    results: str
    metrics: str
    traces: str
    events: str
    checkpoints: str


class JobAnswer(Answer):
    """A job as it stands."""

    id: str = Field(examples=["job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
    kind: str = Field(examples=["train"])
    name: str
    status: Status
    phase: str | None
    status_reason: Reason | None
    requested: Literal["cancel", "pause"] | None
    spec: dict[str, Any] = Field(description="as it was posted")
    resolved_spec: dict[str, Any] = Field(description="with every default written out")
    parent: str | None
    attempt: int = Field(description="0 until it is first claimed")
    failures: int
    losses: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    queue: QueuePlace
    progress: Progress | None
    estimated_end_at: datetime | None
    best: Best | None
    worker: str | None
    devices: list[Any] | None
    versions: dict[str, Any] | None
    metadata: dict[str, str]
    events_pruned_at: datetime | None = Field(
        description="when its progress, metrics and trace events and its log were removed for their age"
    )
    series_pruned_at: datetime | None = Field(description="when its curves and traces were removed for their age")
    urls: JobUrls


class QueuedAnswer(JobAnswer):
    """A job that waits, and why."""

    queue: QueueWait


class Evaluation(Answer):
    """How a model did on one split. Rows of the confusion matrix are the truth."""

    model_config = ConfigDict(extra="allow")

    split: str = Field(examples=["val"])
    dataset: str | None = None
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float]
    per_class: list[dict[str, Any]] | None = None
    confusion_matrix: list[list[int]] | None = None
    examples: list[dict[str, Any]] | None = Field(None, description="samples that it is most confidently wrong of")
    checkpoint: str | None = Field(None, description="the one of this step, while it is kept")


class Results(Answer):
    status: Status
    complete: bool
    final: Evaluation | None = Field(description="the best checkpoint on test")
    best: Evaluation | None = Field(description="the best evaluation on val")
    evaluations: list[Evaluation]


class Series(Answer):
    name: str = Field(examples=["train/loss"])
    step: list[int]
    value: list[float]


class Metrics(Answer):
    series: list[Series]


class LayerTrace(Answer):
    layer: str = Field(examples=["layer3.0.conv2"])
    depth: int
    step: list[int]
    alpha: list[float | None]
    beta: list[float | None]
    attention_rms: list[float | None]
    convolution_rms: list[float | None]


class Traces(Answer):
    layers: list[LayerTrace]


class EventAnswer(Answer):
    number: int
    at: datetime
    attempt: int
    type: str = Field(examples=["progress"])
    message: str
    data: dict[str, Any]


class Attempt(Answer):
    number: int
    worker: str
    host: str | None
    devices: list[Any] | None
    started_at: datetime
    ended_at: datetime | None
    heartbeat_at: datetime
    exit_code: int | None
    signal: int | None
    signal_name: str | None = Field(None, description="of the signal that ended the run", examples=["SIGKILL"])
    reason: Reason | None
    resumed_from: dict[str, Any] | None


class ImageSize(Answer):
    width: int
    height: int


class Runs(Answer):
    """A mask in COCO's words: height and width, and its runs, compressed."""

    size: tuple[int, int]
    counts: str


class Named(Answer):
    """A class that a model names; what else is told of it depends on the task."""

    class_: str = Field(alias="class")
    probability: float | None = Field(None, description="classification")
    share: float | None = Field(None, description="segmentation: of the pixels")
    mask: Runs | None = Field(None, description="segmentation, and detection where the head makes masks")


class Found(Answer):
    """An object that a model finds."""

    class_: str = Field(alias="class")
    score: float
    box: tuple[float, float, float, float] = Field(description="left, top, right and bottom in pixels")
    mask: Runs | None = None


class Prediction(Answer):
    """What a model names in an image; most likely first."""

    checkpoint: str
    task: str
    image: ImageSize = Field(description="turned as its EXIF says")
    classes: list[Named] | None = Field(None, description="classification and segmentation")
    objects: list[Found] | None = Field(None, description="detection")


class Checkpoint(Answer):
    id: str
    job: str
    attempt: int
    epoch: int
    step: int
    kind: str
    metrics: dict[str, float]
    size_bytes: int
    sha256: str
    best: bool
    latest: bool
    created_at: datetime | None


class Weights(Answer):
    """An uploaded file that jobs can start from."""

    id: str = Field(examples=["wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
    name: str
    sha256: str
    size_bytes: int
    tensors: int = Field(description="how many it holds")
    params: int = Field(description="numbers in all of them")
    about: dict[str, Any] | None = Field(description="its own metadata, where `acmix` wrote it: spec, epoch, step")
    created_at: datetime | None


class Share(Answer):
    """How much is used, of how much; without a limit, null."""

    used: int | float
    limit: int | float | None


class Usage(Answer):
    tenant: str
    queued: Share = Field(description="jobs")
    running: Share = Field(description="jobs")
    stored_bytes: Share = Field(description="of checkpoints, uploaded weights and archives")
    gpu_hours: Share = Field(description="of this calendar month, by UTC")
    requests_per_minute: int | None


class Health(Answer):
    status: Literal["ok", "ready"]


def listing(page: Page[Row], answer: Callable[[Row], T]) -> Listing[T]:
    """A page of rows, each made an answer."""
    return Listing(data=[answer(row) for row in page.data], has_more=page.has_more, next=page.next)


def results_answer(
    job: rows.Job, evaluations: Sequence[dict[str, Any]], checkpoints: Sequence[rows.Checkpoint]
) -> Results:
    """What the evaluations of a job come to, in step order; `checkpoints` are those that are kept."""
    kept = {checkpoint.step: checkpoint.id for checkpoint in checkpoints}
    finals = [each for each in evaluations if each.get("final")]
    bests = [each for each in evaluations if each.get("best") and not each.get("final")]
    return Results(
        status=job.status,
        complete=job.status in ENDED,
        final=_evaluation(finals[-1], kept) if finals else None,
        best=_evaluation(bests[-1], kept) if bests else None,
        evaluations=[_evaluation(each, kept) for each in evaluations],
    )


def _evaluation(data: dict[str, Any], kept: Mapping[int, str]) -> Evaluation:
    """The final one names the checkpoint that it tested, all others stand at their own step."""
    tested = data.get("checkpoint") or data
    checkpoint = tested if isinstance(tested, str) else kept.get(tested["step"])  # by its id where it is another job's
    return Evaluation.model_validate({**data, "checkpoint": checkpoint})
