"""What a plan is asked of: a job's spec, and what is assumed in the place of its data set. Plain data, no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from acmix import resolve, spec
from acmix.catalog import Catalog, DatasetEntry
from acmix.errors import Problem, SpecInvalid
from acmix.fleet import Machine
from acmix.spec import DatasetChoice, JobSpec, Part, pointer

NOWHERE = DatasetChoice.model_construct(
    name="", options={}
)  # a data set left out; no spec can name it, names are not empty
IMAGE_SIZE = "image_size"  # the code of a problem with the images' size
# the parts of `training` that a plan depends on
_SIZED_BY = (
    *("batch_size", "accumulate_batches", "optimizer", "weight_decay_on", "precision"),
    *("label_smoothing", "ema", "mixup", "cutmix"),
)


class Assume(Part):
    """What replaces what the data set would give."""

    num_classes: int | None = Field(None, ge=1, le=100_000, description="null: as the data set tells")
    image_px: int | None = Field(None, ge=1, le=4096, description="side of its images; null: as the data set tells")

    @property
    def is_complete(self) -> bool:
        return self.num_classes is not None and self.image_px is not None


class PlanRequest(JobSpec):
    """The body of a job with `assume` beside it; `dataset` may be left out where that says all there is to know."""

    dataset: DatasetChoice = NOWHERE
    assume: Assume = Assume()

    def dump(self) -> dict[str, Any]:
        """The spec alone as JSON values, without a data set where it has none."""
        left_out = {"assume", "dataset"} if self.dataset.name == NOWHERE.name else {"assume"}
        return self.model_dump(mode="json", exclude=left_out)


def parse(raw: Any) -> PlanRequest:
    """The request that JSON values stand for; SpecInvalid with a pointer for every fault."""
    request = spec.parse_as(PlanRequest, raw)
    if request.dataset.name == NOWHERE.name and not request.assume.is_complete:
        message = "dataset is required, unless assume gives both num_classes and image_px"
        raise SpecInvalid([Problem("/dataset", "missing", message)])
    return request


def problems(request: PlanRequest, catalog: Catalog, *, fleet: Sequence[Machine] | None = None) -> list[Problem]:
    """Every reason why the catalog's models cannot be planned for such a request, or no worker could run it."""
    found = resolve.problems(request, _with_assumed(request, catalog), fleet=fleet)
    return found or list(_unknown_sizes(request, catalog))


def resolved(request: PlanRequest, catalog: Catalog) -> PlanRequest:
    """The request with all defaults of its options written out, and in `assume` what its data set gives."""
    full = resolve.resolve(request, _with_assumed(request, catalog))
    return full.model_copy(update={"assume": Assume(**_known_sizes(full, catalog))})


def essence(request: PlanRequest) -> dict[str, Any]:
    """What a plan of a resolved request depends on, as the body of another request: the same for all that are alike."""
    whole = request.model_dump(mode="json")
    return {
        "task": whole["task"],
        "backbone": {name: whole["backbone"][name] for name in ("name", "options")},
        "swaps": whole["swaps"],
        "training": {name: whole["training"][name] for name in _SIZED_BY},
        "assume": whole["assume"],
    }


def placed(found: Iterable[Problem], request: PlanRequest, catalog: Catalog) -> list[Problem]:
    """Problems with the images' size, pointing at where the request as it was sent has that."""
    at = _image_px_pointer(request, catalog)
    return [replace(each, pointer=at) if each.code == IMAGE_SIZE else each for each in found]


def _with_assumed(request: PlanRequest, catalog: Catalog) -> Catalog:
    """The catalog; where the request has no data set, with one that is all assumed."""
    if request.dataset.name != NOWHERE.name:
        return catalog
    assumed = DatasetEntry(name=NOWHERE.name, description="assumed", options={}, task=request.task.name)
    return catalog.model_copy(update={"datasets": [*catalog.datasets, assumed]})


def _known_sizes(request: PlanRequest, catalog: Catalog) -> dict[str, Any]:
    """By name: what is assumed, else what the data set tells without its files, else None."""
    entry = next((each for each in catalog.datasets if each.name == request.dataset.name), None)
    told = {
        "num_classes": entry.num_classes if entry else None,
        "image_px": request.dataset.options.get("image_px", entry.image_px if entry else None),
    }
    return {name: getattr(request.assume, name) or told[name] for name in told}


def _unknown_sizes(request: PlanRequest, catalog: Catalog) -> Iterator[Problem]:
    name = request.dataset.name
    full = resolve.resolve(request, _with_assumed(request, catalog))
    for size, value in _known_sizes(full, catalog).items():
        if value is None:
            message = f"only its files tell the {size} of {name}; assume.{size} would do"
            yield Problem("/dataset/name", f"{size}_unknown", message)


def _image_px_pointer(request: PlanRequest, catalog: Catalog) -> str:
    if request.assume.image_px is not None:
        return pointer(("assume", "image_px"))
    entry = next((each for each in catalog.datasets if each.name == request.dataset.name), None)
    takes_it = entry is not None and "image_px" in entry.options.get("properties", {})
    return pointer(("dataset", "options", "image_px")) if takes_it else pointer(("dataset",))
