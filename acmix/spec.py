"""What a job is: the spec as a user writes it. Strict: unknown fields, NaN and out-of-bounds values are refused."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from acmix.errors import Problem, SpecInvalid, nearest

Auto = Literal["auto"]
SplitName = Literal["train", "val", "test"]
MAX_OPTION_STRING = 4096
MAX_OPTION_ITEMS = 4096
MAX_PROBLEMS = 100
ULID = "[0-9A-HJKMNP-TV-Z]{26}"  # what follows the prefix of an id of the service


def _printable(text: str) -> str:
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF or ord(char) == 127 for char in text):
        raise ValueError("must hold no control characters")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Label = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Positive = Annotated[int, Field(ge=1, le=10**9)]


def _bounded(value: JsonValue) -> JsonValue:
    """Options are free in form, not in size; strings follow the rules of names."""
    if isinstance(value, str):
        if len(value) > MAX_OPTION_STRING:
            raise ValueError(f"must be at most {MAX_OPTION_STRING} characters")
        _printable(value)
    elif isinstance(value, list):
        if len(value) > MAX_OPTION_ITEMS:
            raise ValueError(f"must be at most {MAX_OPTION_ITEMS} items")
        for item in value:
            _bounded(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _bounded(key)
            _bounded(item)
    elif isinstance(value, int) and abs(value) > 2**53:
        raise ValueError("must be at most 2^53")
    return value


def _source(value: Any) -> Any:
    """One sentence for whatever is none; the pattern behind it is for the schema."""
    if isinstance(value, str) and re.fullmatch(WEIGHTS, value):
        return value
    raise ValueError('must be null, "timm", the id of a checkpoint (ckpt_...) or of an uploaded file (wts_...)')


WEIGHTS = f"timm|(ckpt|wts)_{ULID}"
Weights = Annotated[str, StringConstraints(pattern=f"^({WEIGHTS})$"), BeforeValidator(_source)]
CheckpointId = Annotated[str, StringConstraints(pattern=f"^ckpt_{ULID}$")]
Options = dict[Name, Annotated[JsonValue, AfterValidator(_bounded)]]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Choice(Part):
    """A name of the catalog and its options."""

    name: Name
    options: Options = {}


def _either_name_or_id(schema: dict[str, Any]) -> None:
    del schema["required"]
    schema["anyOf"] = [{"required": ["name"]}, {"required": ["id"]}]


class DatasetChoice(Choice):
    """A data set of the catalog by its name, or one of the user's by its id: {"id": "ds_..."}.

    Of one with an id, the name is its format, and may be left out. A resolved spec also has the hash of its content.
    """

    model_config = ConfigDict(json_schema_extra=_either_name_or_id)

    id: Annotated[str, StringConstraints(pattern=f"^ds_{ULID}$")] | None = Field(None, description="ds_...")
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the content of the data set with that id"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_by_id(cls, value: Any) -> Any:
        """Until the service says which format it has, one is called by its id."""
        known = isinstance(value, dict) and "name" not in value and isinstance(value.get("id"), str)
        return {**value, "name": value["id"]} if known else value

    @model_serializer(mode="wrap")
    def _without_nulls(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

    @property
    def told(self) -> str:
        """What people call it: the id of a user's, else the name."""
        return self.id or self.name


class FlatChoice(BaseModel):
    """A name of the catalog with its options beside it: {"name": "sgd", "lr": 0.1}."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    __pydantic_extra__: Options = Field(init=False)
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Backbone(Choice):
    weights: Weights | None = Field(
        None,
        description="what to start from: `timm` for timm's weights of this model, the id of a checkpoint (ckpt_...) or "
        "of an uploaded file (wts_...); null starts from the seed",
    )


class Swap(Part):
    """Which layers become ACmix: a glob over slot names, `*`, or a list of globs."""

    layers: Name | Annotated[list[Name], Field(min_length=1, max_length=200)]
    mixer: Choice = Choice(name="acmix")

    @property
    def globs(self) -> list[str]:
        return [self.layers] if isinstance(self.layers, str) else self.layers


class Ema(Part):
    """Exponential moving average of the weights; what is evaluated where it is set."""

    decay: float = Field(0.999, gt=0, lt=1)


class Training(Part):
    epochs: int = Field(10, ge=1, le=100_000)
    batch_size: int = Field(128, ge=1, le=65_536, description="images a batch of one process")
    accumulate_batches: int = Field(1, ge=1, le=65_536, description="batches whose gradients make one optimizer step")
    optimizer: FlatChoice = FlatChoice(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    lr_rule: Literal["as_given", "linear"] = Field(
        "as_given", description="`linear` multiplies the learning rate by the number of processes that train together"
    )
    schedule: FlatChoice = FlatChoice(name="cosine", warmup_epochs=1)
    weight_decay_on: Literal["weights", "all"] = Field(
        "weights", description="`weights` spares norms, biases, alpha and beta"
    )
    precision: Literal["float32", "bf16", "fp16", "float64"] = "float32"
    label_smoothing: Auto | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto", description="auto is 0.1 for classification, else 0"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1)
    clip_norm: float | None = Field(None, gt=0, le=1e9)
    ema: Ema | None = None
    sync_batch_norm: bool = Field(
        False, description="batch norms take their statistics over all processes that train together; on GPUs alone"
    )
    augment: FlatChoice = FlatChoice(name="default")
    mixup: float = Field(0, ge=0, le=10, description="mixes pairs of images by shares of Beta(mixup, mixup); 0: never")
    cutmix: float = Field(0, ge=0, le=10, description="puts a part of one image into another; 0: never")
    limit_train_batches: Positive | None = Field(None, description="batches an epoch at most")
    loader_workers: Auto | Annotated[int, Field(ge=0, le=64)] = Field(
        "auto", description="processes that load data; auto is 0 where the data set lies in memory, else 2"
    )


class Evaluation(Part):
    split: SplitName = Field(
        "test", description="what the last evaluation is on: of the best checkpoint, or the one asked for"
    )
    every_epochs: int = Field(1, ge=1, le=100_000)
    metric: Auto | Name = Field("auto", description="what `best` is chosen by, on val; auto is the task's first")


class Checkpoints(Part):
    every_epochs: int = Field(1, ge=1, le=100_000)
    every_seconds: float = Field(600, gt=0, le=1e7)
    keep_best: int = Field(1, ge=0, le=100)
    keep_latest: int = Field(1, ge=1, le=100)


class Trace(Part):
    every_steps: int = Field(10, ge=1, le=10**9)


class Resources(Part):
    gpus: Auto | Annotated[int, Field(ge=0, le=100_000)] = Field(
        "auto", description="of one worker, each with a process of its own; auto: 1 where there is one, else 0"
    )
    processes: int = Field(1, ge=1, le=64, description="that train together on the CPU; on GPUs there is one for each")
    gpu_kind: Name | None = Field(
        None, description="words that the name of each GPU must have, such as `A100` or `A100 80GB`; null: any"
    )
    memory_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = Field(
        None, description="what each GPU must have at least, to a quarter of a GiB; null: any"
    )
    labels: Annotated[list[Name], Field(max_length=20)] = Field([], description="that the worker must have")
    max_runtime_seconds: float | None = Field(None, gt=0, le=1e9)

    @property
    def ranks(self) -> int:
        """How many processes train together, where the number of GPUs is settled."""
        return max(self.processes, 1 if self.gpus == "auto" else self.gpus)


class JobSpec(Part):
    """A job: only `backbone` and `dataset` are required."""

    kind: Literal["train", "evaluate"] = "train"
    name: Label = ""
    metadata: Annotated[dict[Name, Label], Field(max_length=50)] = {}
    task: Choice = Choice(name="classification")
    backbone: Backbone
    swaps: Annotated[list[Swap], Field(max_length=200)] = []
    dataset: DatasetChoice
    checkpoint: CheckpointId | None = Field(None, description="of a job that evaluates, what it evaluates")
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    trace: Trace = Trace()
    resources: Resources = Resources()
    priority: int = Field(0, ge=-100, le=100, description="larger first")

    def dump(self) -> dict[str, Any]:
        """The spec as JSON values, every default written out."""
        return self.model_dump(mode="json")


class Judging(Part):
    """What a checkpoint is evaluated on, and how."""

    split: SplitName = "test"
    batch_size: int | None = Field(None, ge=1, le=65_536, description="null: as it was trained with")


class EvaluateSpec(Part):
    """A job that evaluates: only `kind` and `checkpoint` are required."""

    kind: Literal["evaluate"]
    name: Label = ""
    metadata: Annotated[dict[Name, Label], Field(max_length=50)] = {}
    checkpoint: CheckpointId
    dataset: DatasetChoice | None = Field(None, description="null: what it was trained on")
    evaluation: Judging = Judging()
    resources: Resources = Resources()
    priority: int = Field(0, ge=-100, le=100, description="larger first")


AnyPart = TypeVar("AnyPart", bound=Part)
AnySpec = TypeVar("AnySpec", bound=JobSpec)


def parse(raw: Any) -> JobSpec:
    """The spec that JSON values stand for; SpecInvalid with a pointer for every fault, up to 100."""
    return parse_as(JobSpec, raw)


def parse_as(kind: type[AnyPart], raw: Any) -> AnyPart:
    """The same for a spec with more fields."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]
        raise SpecInvalid([_problem(fault, raw, kind) for fault in faults]) from None


def read(path: Path) -> JobSpec:
    """The spec in a JSON file; SpecInvalid also where the file is no JSON."""
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise SpecInvalid([Problem("", "malformed", f"{path} is not JSON: {error}")]) from None
    return parse(raw)


def pointer(path: tuple[int | str, ...] | list[int | str]) -> str:
    """A JSON pointer (RFC 6901) of keys and indices."""
    return "".join("/" + str(part)[:200].replace("~", "~0").replace("/", "~1") for part in path)


_SHORT = {
    "missing": "is required",
    "extra_forbidden": "is not a field of the spec",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
}
_LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length")


def _problem(fault: Mapping[str, Any], raw: Any, kind: type[Part]) -> Problem:
    """A fault that pydantic found, in our words: it never repeats what the user sent, which may be a megabyte."""
    path = _path_in(fault["loc"], raw, missing=fault["type"] == "missing")
    context = fault.get("ctx") or {}
    limit = next((context[key] for key in _LIMITS if key in context), None)
    message = _SHORT.get(fault["type"]) or re.sub(r"^\w+ should", "must", fault["msg"].removeprefix("Value error, "))
    named = str(path[-1])[:60] if path else "the spec"
    if fault["type"] == "extra_forbidden":
        near = nearest(named, _fields_at(path[:-1], kind))
        return Problem(pointer(path), "unknown_field", f"{named!r} {message}", fixes=near or None)
    return Problem(pointer(path), fault["type"], f"{named} {message}", limit=limit if _is_number(limit) else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path_in(loc: tuple[int | str, ...], raw: Any, *, missing: bool) -> list[int | str]:
    """The part of pydantic's location that is a path in the input: union branches and `[key]` marks are not."""
    path: list[int | str] = []
    here = raw
    for part in loc:
        inside_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside_list or (isinstance(here, dict) and part in here):
            here = here[part]
        elif missing and part == loc[-1]:
            here = None
        else:
            continue
        path.append(part)
    return path


def _fields_at(path: list[int | str], kind: type[Part]) -> list[str]:
    """Field names of the object at a path of the spec; none where it is free in form."""
    model: Any = kind
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model else None
        model = _model_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg))), None)
