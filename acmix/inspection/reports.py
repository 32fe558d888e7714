"""The report of an inspection: what is in the data set, or why it cannot be used."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from acmix.inspection.content import Content
from acmix.inspection.faults import Faults
from acmix.inspection.formats._contract import Format

if TYPE_CHECKING:
    from acmix.inspection.findings import Findings

FEW_SAMPLES = 10
UNEVEN = 20  # times as many of one class as of another
COUNTED = {  # what a number by class counts
    "classification": "images",
    "detection": "objects, without crowds",
    "segmentation": "images that have the class",
}

Report = dict[str, Any]


def ready(
    form: type[Format],
    content: Content,
    findings: "Findings",
    *,
    root: str,
    options: Mapping[str, Any],
    passed_over: int,
) -> Report:
    """Of data that training can read: `options` is what the data set's constructor takes to find them."""
    return {
        "status": "ready",
        **asdict(content),
        "classes": list(findings.classes),
        "num_classes": len(findings.classes),
        "has_masks": findings.has_masks,
        "splits": _splits(findings),
        "statistics": {**_statistics(form.task, findings), "passed_over": passed_over},
        "warnings": list(_warnings(form.task, findings)),
        "root": root,
        "options": dict(options),
    }


def rejected(faults: Faults, *, expected: str, found: str) -> Report:
    return {
        "status": "rejected",
        "faults": faults.as_json(),
        "faults_total": faults.total,
        "expected": expected,
        "found": found,
    }


def unpacked(content: Content, *, root: str) -> Report:
    return {"status": "unpacked", **asdict(content), "root": root}


def _splits(findings: "Findings") -> dict[str, Any]:
    return {
        name: {
            "samples": split.samples,
            "by_class": {each: split.labels[label] for label, each in enumerate(findings.classes)},
        }
        for name, split in findings.splits.items()
    }


def _statistics(task: str, findings: "Findings") -> dict[str, Any]:
    sides = {"width": findings.widths, "height": findings.heights}
    return {
        "image_sides": {
            name: {"min": min(pixels), "median": median(pixels), "max": max(pixels)} for name, pixels in sides.items()
        },
        "modes": dict(findings.modes.most_common()),
        "formats": dict(findings.formats.most_common()),
        "by_class_counts": COUNTED[task],
        "duplicates": [asdict(duplicate) for duplicate in findings.duplicates],
        "duplicates_total": findings.duplicates_total,
        "duplicates_within_a_split": findings.duplicates_within_a_split,
    }


def _warnings(task: str, findings: "Findings") -> Iterator[str]:
    """What training would take and a person should know."""
    if len(findings.classes) == 1:
        yield f"there is only one class, {findings.classes[0]}; a model has nothing to tell apart"
    yield from _class_warnings(task, findings)
    if findings.duplicates_total:
        yield (
            f"{findings.duplicates_total} images of a split are also in another, such as "
            f"{' and '.join(findings.duplicates[0].files)}; figures on val and test will look too good"
        )
    if findings.duplicates_within_a_split:
        yield f"{findings.duplicates_within_a_split} images are in their split more than once"


def _class_warnings(task: str, findings: "Findings") -> Iterator[str]:
    counts = {name: findings.splits["train"].labels[label] for label, name in enumerate(findings.classes)}
    if few := [name for name, count in counts.items() if count < FEW_SAMPLES]:
        what = COUNTED[task].partition(",")[0]
        yield f"train has fewer than {FEW_SAMPLES} {what} of {_some(few)}"
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[most] > UNEVEN * counts[least]:
        yield f"train is uneven: {counts[most]} of {most} and {counts[least]} of {least}"
    for split in ("val", "test"):
        labels = findings.splits[split].labels
        if absent := [name for label, name in enumerate(findings.classes) if not labels[label]]:
            yield f"{split} has nothing of {_some(absent)}; its figures say nothing of that"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more classes" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
