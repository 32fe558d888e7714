"""The specs that the pages of docs/ print, posted as they are: every head learns what its page says."""

import json
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from acmix.spec import parse
from tests.flow.service_process import Up

log = logging.getLogger(__name__)

DOCS = Path(__file__).parents[2] / "docs"
BARS: dict[str, dict[str, float]] = {
    "classification": {"accuracy": 0.97},
    "retinanet": {"box_ap50": 0.80},
    "mask_rcnn": {"box_ap50": 0.80, "mask_ap50": 0.75},
    "cascade_mask_rcnn": {"box_ap50": 0.80, "mask_ap50": 0.75},
    "semantic_fpn": {"miou": 0.75},
    "upernet": {"miou": 0.75},
}


def _printed() -> dict[str, dict[str, Any]]:
    """By name, the specs of the pages on tasks."""
    pages = [DOCS / f"{task}.md" for task in ("classification", "detection", "segmentation")]
    found = [json.loads(text) for page in pages for text in re.findall(r"```json\n(.*?)```", page.read_text(), re.S)]
    return {spec["name"]: spec for spec in found if "backbone" in spec}


def _learned(service: Up, name: str) -> dict[str, float]:
    """The figures that a spec's best checkpoint has on test, which are at least those of its page."""
    job = service.ended(service.submit(_printed()[name]), within_seconds=3600)
    assert job["status"] == "succeeded", job["status_reason"]
    metrics: dict[str, float] = service.http.get(job["urls"]["results"]).json()["final"]["metrics"]
    log.info("%s: %.0f s, %s", name, _seconds(job), metrics)
    assert {bar for bar, least in BARS[name].items() if metrics[bar] < least} == set(), metrics
    return metrics


def _seconds(job: dict[str, Any]) -> float:
    return (datetime.fromisoformat(job["ended_at"]) - datetime.fromisoformat(job["started_at"])).total_seconds()


def test_every_head_has_a_spec_that_can_be_read() -> None:
    for spec in _printed().values():
        parse(spec)
    assert set(_printed()) == set(BARS)


@pytest.mark.release
@pytest.mark.parametrize("name", sorted({*BARS} - {"mask_rcnn", "cascade_mask_rcnn"}))
def test_a_spec_learns_what_its_page_says(service: Up, name: str) -> None:
    _learned(service, name)


@pytest.mark.release
def test_a_cascade_is_as_good_as_a_single_stage_after_as_many_epochs(service: Up) -> None:
    single = _learned(service, "mask_rcnn")
    assert _learned(service, "cascade_mask_rcnn")["box_ap"] >= single["box_ap"]
