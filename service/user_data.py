"""Data sets of users as specs name them: by an id, in the place of which comes what the check has found."""

from collections.abc import Iterator
from typing import TypeVar

from acmix.catalog import Catalog
from acmix.errors import Problem, SpecInvalid
from acmix.plan_request import PlanRequest
from acmix.resolve import without_masks
from acmix.spec import DatasetChoice, JobSpec
from service.store.backend import Backend
from service.store.errors import DatasetNotFound
from service.store.rows import Dataset

AnySpec = TypeVar("AnySpec", bound=JobSpec)


def found(spec: AnySpec, store: Backend, catalog: Catalog) -> AnySpec:
    """The spec with format, options and hash of the data set that its id stands for; SpecInvalid says what is amiss.

    Where a plan is asked for, the data set also tells the number of classes.
    """
    if spec.dataset.id is None:
        return spec
    try:
        dataset = store.reader.dataset(spec.dataset.id)
    except DatasetNotFound as error:
        raise SpecInvalid([unknown(error)]) from None
    if problems := list(_problems(spec, dataset, catalog)):
        raise SpecInvalid(problems)
    told = (dataset.report or {}).get("options", {})
    choice = DatasetChoice(
        name=dataset.format, id=dataset.id, options={**told, **spec.dataset.options}, sha256=dataset.sha256
    )
    full = spec.model_copy(update={"dataset": choice})
    if isinstance(full, PlanRequest) and full.assume.num_classes is None:
        assumed = full.assume.model_copy(update={"num_classes": dataset.num_classes})
        return full.model_copy(update={"assume": assumed})
    return full


def unknown(error: DatasetNotFound) -> Problem:
    """Of an id that is none, or was deleted as the job came."""
    return Problem("/dataset/id", "unknown_id", str(error))


def _problems(spec: JobSpec, dataset: Dataset, catalog: Catalog) -> Iterator[Problem]:
    given = spec.dataset
    if dataset.status != "ready":
        message = f"{dataset.id} is {dataset.status}; a job can read it once it is ready"
        yield Problem("/dataset/id", "not_ready", message, actual=dataset.status)
        return
    if dataset.task != spec.task.name:
        message = f"{dataset.id} is a data set for {dataset.task}, not for {spec.task.name}"
        yield Problem("/dataset/id", "wrong_task", message)
    if given.name not in (dataset.id, dataset.format):
        message = f"{dataset.id} is of the format {dataset.format}; leave the name out, or give that"
        yield Problem("/dataset/name", "wrong_format", message, fixes=[dataset.format])
    if given.sha256 not in (None, dataset.sha256):
        message = f"the content of {dataset.id} has another sha256: {dataset.sha256}"
        yield Problem("/dataset/sha256", "wrong_sha256", message)
    if (dataset.report or {}).get("has_masks") is False:
        yield from without_masks(spec, catalog, dataset.id)
    folder = (dataset.report or {}).get("options", {}).get("folder")
    if given.options.get("folder", folder) != folder:
        yield Problem("/dataset/options/folder", "not_taken", "the service knows the folder; leave it out")
