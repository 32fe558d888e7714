"""Learning rate schedules by name: closed forms of the epoch, so that a resumed run is on the same curve."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from acmix.errors import OptionInvalid, unknown_name
from acmix.registry import check_options
from acmix.spec import FlatChoice

Epochs = Annotated[float, Field(ge=0, le=100_000)]
Factor = Annotated[float, Field(ge=0, le=1)]


def cosine(epoch: float, epochs: float, *, warmup_epochs: Epochs = 1, final_factor: Factor = 0.0) -> float:
    """Half a cosine from the learning rate down to `final_factor` of it, after a linear warm-up."""
    share = _share(epoch, epochs, warmup_epochs)
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * share))


def linear(epoch: float, epochs: float, *, warmup_epochs: Epochs = 1, final_factor: Factor = 0.0) -> float:
    """A straight line from the learning rate down to `final_factor` of it, after a linear warm-up."""
    return 1 - (1 - final_factor) * _share(epoch, epochs, warmup_epochs)


def polynomial(
    epoch: float, epochs: float, *, warmup_epochs: Epochs = 1, power: Annotated[float, Field(gt=0, le=10)] = 0.9
) -> float:
    """(1 - share of training done) to the `power`, after a linear warm-up; usual in segmentation."""
    return float((1 - _share(epoch, epochs, warmup_epochs)) ** power)


def step(
    epoch: float,
    epochs: float,  # noqa: ARG001  # all schedules are called alike
    *,
    warmup_epochs: Epochs = 0,  # noqa: ARG001  # `build` applies it
    every_epochs: Annotated[float, Field(gt=0, le=100_000)] = 30,
    factor: Factor = 0.1,
) -> float:
    """Multiplied by `factor` every so many epochs."""
    return float(factor ** math.floor(epoch / every_epochs))


def milestones(
    epoch: float,
    epochs: float,  # noqa: ARG001  # as above
    *,
    at_epochs: Annotated[list[Epochs], Field(max_length=1000)],
    warmup_epochs: Epochs = 0,  # noqa: ARG001  # as above
    factor: Factor = 0.1,
) -> float:
    """Multiplied by `factor` at each of the epochs in `at_epochs`."""
    return float(factor ** sum(epoch >= milestone for milestone in at_epochs))


def constant(epoch: float, epochs: float, *, warmup_epochs: Epochs = 0) -> float:  # noqa: ARG001  # as above
    """The learning rate as it is, after a linear warm-up if one is asked for."""
    return 1.0


SCHEDULES: Mapping[str, Callable[..., float]] = {
    function.__name__: function for function in (cosine, linear, polynomial, step, milestones, constant)
}


def build(optimizer: Optimizer, choice: FlatChoice, *, epochs: int, steps_an_epoch: int) -> LambdaLR:
    """The schedule of a spec, advanced once an optimizer step.

    During the warm-up step n (from 0) has (n + 1) / warm-up steps of the learning rate.

    Raises:
        OptionInvalid: an unknown name or option.
    """
    if choice.name not in SCHEDULES:
        raise OptionInvalid(unknown_name("schedule", choice.name, list(SCHEDULES)))
    curve = SCHEDULES[choice.name]
    options = check_options(curve, choice.options, where=f"schedule {choice.name}")
    warmup_steps: int = round(options["warmup_epochs"] * steps_an_epoch)

    def factor(step_number: int) -> float:
        if step_number < warmup_steps:
            return (step_number + 1) / warmup_steps
        return curve(min(step_number / steps_an_epoch, epochs), epochs, **options)

    return LambdaLR(optimizer, factor)


def _share(epoch: float, epochs: float, warmup_epochs: float) -> float:
    """How much of training after the warm-up is done, 0 to 1."""
    return min(1.0, max(0.0, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)))
