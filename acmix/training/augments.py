"""Augments by task and name."""

from collections.abc import Callable, Mapping
from typing import Any

from acmix.datasets._contract import Dataset
from acmix.errors import NameNotFound, unknown_name
from acmix.registry import check_options
from acmix.spec import FlatChoice
from acmix.training import augment, dense_augment

_BY_TASK: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "classification": augment.AUGMENTS,
    "detection": dense_augment.DETECTION,
    "segmentation": dense_augment.SEGMENTATION,
}


def of(task: str) -> Mapping[str, Callable[..., Any]]:
    """Those of a task; their keyword-only arguments are their options."""
    return _BY_TASK.get(task, {})


def steps(dataset: Dataset, choice: FlatChoice) -> Any:
    """What an augment does to the samples of a data set; NameNotFound and OptionInvalid say what there is."""
    known = of(dataset.task)
    if choice.name not in known:
        raise NameNotFound(unknown_name(f"augment for {dataset.task}", choice.name, list(known)))
    make = known[choice.name]
    return make(dataset, **check_options(make, choice.options, where=f"augment {choice.name}"))
