"""A spec's models and their sizes, or the problems that say why there are none and what would do."""

import logging
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from torch import nn

from acmix import registry
from acmix.catalog import Slot, claim
from acmix.errors import AcmixError, NameNotFound, OptionInvalid, Problem, SpecInvalid
from acmix.model import build
from acmix.plan_request import IMAGE_SIZE
from acmix.planning import sizes
from acmix.planning.sizes import StepSize
from acmix.spec import JobSpec, Swap, pointer
from acmix.training.setup import task_of
from acmix.uncompiled import on_meta

MAX_REASON_CHARACTERS = 300
TRIED_PX = (224, 256, 384, 64, 32)
MOST_FIXES = 3

log = logging.getLogger(__name__)


def plain(job: JobSpec, *, num_classes: int, image_px: int) -> nn.Module:
    """The model without swaps, on the meta device."""
    unswapped = _with_swaps(job, [])
    try:
        return _built(unswapped, num_classes, image_px)
    except NameNotFound as error:
        raise _invalid("/backbone/name", error) from None
    except OptionInvalid as error:
        raise _invalid("/backbone/options", error) from None
    except Exception as error:
        raise _misfit(unswapped, error, num_classes, image_px) from error


def claims(job: JobSpec, slots: Sequence[Slot]) -> Mapping[str, int]:
    """The index of the swap that claims each slot, by the slot's name."""
    names = [slot.name for slot in slots]
    claimed, faults = claim([swap.globs for swap in job.swaps], names)
    if faults:
        raise SpecInvalid(
            [Problem(pointer(("swaps", i, "layers")), "layers_invalid", text, allowed=names) for i, text in faults]
        )
    return claimed


def swapped(job: JobSpec, slots: Sequence[Slot], *, num_classes: int, image_px: int) -> nn.Module:
    """The model with its swaps, on the meta device."""
    try:
        return _built(job, num_classes, image_px)
    except AcmixError as error:
        faults = list(_swap_faults(job, slots, num_classes, image_px))
        raise SpecInvalid(faults or [Problem("/swaps", error.code, error.message)]) from None


def measured(model: nn.Module, job: JobSpec, slots: Sequence[Slot], *, num_classes: int, image_px: int) -> StepSize:
    """Sizes of a training step of the model, which must be the job's, on the meta device; it is used up."""
    names = [slot.name for slot in slots]
    try:
        return sizes.measure(model, job, num_classes=num_classes, image_px=image_px, layers=names)
    except OptionInvalid as error:  # the model is there: it is the optimizer's, such as one that needs another
        raise _invalid("/training/optimizer", error) from None
    except Exception as error:
        raise _misfit(job, error, num_classes, image_px) from error


def _with_swaps(job: JobSpec, swaps: list[Swap]) -> JobSpec:
    return job.model_copy(update={"swaps": swaps})


def _built(job: JobSpec, num_classes: int, image_px: int) -> nn.Module:
    task = task_of(job, [str(number) for number in range(num_classes)])
    with on_meta():
        backbone = build(job.backbone, job.swaps, num_classes=task.num_outputs, image_px=image_px)
        return task.model(backbone, image_px)


def _invalid(at: str, error: AcmixError) -> SpecInvalid:
    return SpecInvalid([Problem(at, error.code, error.message)])


def _swap_faults(job: JobSpec, slots: Sequence[Slot], num_classes: int, image_px: int) -> list[Problem]:
    """What is wrong with each swap, found by trying it alone."""
    claimed = claims(job, slots)
    problems = []
    for index, each in enumerate(job.swaps):
        try:
            _built(_with_swaps(job, [each]), num_classes, image_px)
        except NameNotFound as error:
            problems.append(Problem(pointer(("swaps", index, "mixer", "name")), error.code, error.message))
        except AcmixError as error:
            own = [slot for slot in slots if claimed.get(slot.name) == index]
            problems.append(_option_problem(index, each, own, error))
    return problems


def _option_problem(index: int, swap: Swap, slots: Sequence[Slot], error: AcmixError) -> Problem:
    """The fault of a mixer's options, with what would do where one of them must divide the channels."""
    path: tuple[str | int, ...] = ("swaps", index, "mixer", "options")
    for slot in slots:
        form = registry.entries("mixers").get(f"{swap.mixer.name}:{slot.kind}")
        if form is None or form.divides_channels is None:
            continue
        option = form.divides_channels
        parts = swap.mixer.options.get(option, registry.options_model(form.replacing).model_fields[option].default)
        if parts is not None and slot.channels % parts:  # null: as the layer itself has it
            common = gcd(*(each.channels for each in slots if each.kind == slot.kind))
            do = [value for value in range(1, common + 1) if common % value == 0]
            fixes = sorted(do, key=lambda value: abs(value - parts))[:MOST_FIXES]
            at = pointer((*path, option))
            return Problem(at, "does_not_divide", error.message, allowed=do, actual=parts, fixes=fixes)
    return Problem(pointer(path), error.code, error.message)


def _misfit(job: JobSpec, error: Exception, num_classes: int, image_px: int) -> SpecInvalid:
    """Why a model cannot be built for such images or trained on them: found by trying other ones."""
    name, reason = job.backbone.name, _sentence(error)
    log.info("%s cannot be had at %s px", name, image_px, exc_info=error)
    if _runs(job, num_classes, image_px, images=2):
        if job.training.batch_size == 1:
            message = f"{name} cannot be trained on one image of {image_px} px at a time: {reason}; 2 do"
            return SpecInvalid([Problem("/training/batch_size", "too_small", message, limit=2, actual=1, fixes=[2])])
        return SpecInvalid([Problem(_culprit(job), "cannot_train", f"{name} cannot be trained: {reason}")])
    do = [px for px in _candidates(image_px) if _runs(job, num_classes, px, images=2)]
    if not do:
        return SpecInvalid([Problem(_culprit(job), "cannot_run", f"{name} cannot run here: {reason}")])
    fixes = sorted(do, key=lambda px: abs(px - image_px))[:MOST_FIXES]
    message = f"{name} cannot take images of {image_px} px: {reason}; {' or '.join(map(str, fixes))} px would do"
    return SpecInvalid([Problem("/dataset", IMAGE_SIZE, message, actual=image_px, fixes=fixes)])


def _culprit(job: JobSpec) -> str:
    """The plain backbone has been measured before the swapped model, so then it is the swaps."""
    return "/swaps" if job.swaps else "/backbone/name"


def _candidates(image_px: int) -> list[int]:
    """The multiples of 32 around, and common sizes."""
    below = image_px // 32 * 32
    return [px for px in dict.fromkeys((below, below + 32, *TRIED_PX)) if px not in (0, image_px)]


def _runs(job: JobSpec, num_classes: int, image_px: int, *, images: int) -> bool:
    try:
        model = _built(job, num_classes, image_px)
        sizes.forward(model, job, num_classes=num_classes, images=images, image_px=image_px)
    except Exception:  # whatever a backbone from elsewhere raises
        return False
    return True


def _sentence(error: Exception) -> str:
    """The first line of what was raised."""
    lines: list[Any] = str(error).strip().splitlines() or [type(error).__name__]
    return str(lines[0])[:MAX_REASON_CHARACTERS].rstrip(" .:")
