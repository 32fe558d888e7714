"""Specs that name a data set of a user by its id: what its check found comes in its place, or what is wrong is told."""

import io
from typing import Any

import pytest

from tests.service.deployed import Deployed
from tests.service.test_dataset_routes import ARCHIVE, NONE, check, create, put
from tests.service.test_dataset_rows import REPORT
from tests.service.work import spec_of

ABSENT = {"id": NONE}
FOUND = {**REPORT, "root": "flowers", "options": {"folder": "flowers"}}


def _ready(api: Deployed) -> str:
    """A data set of flowers, and a worker that can read it."""
    api.enrol()
    made = create(api)
    assert put(api, made, io.BytesIO(ARCHIVE).read()).status_code == 200
    assert api.checks.ready(check(api), FOUND)
    return made


def _fault(api: Deployed, dataset: dict[str, Any], **more: Any) -> dict[str, Any]:
    refused = api.post({**spec_of(), "dataset": dataset, **more})
    assert refused.status_code == 422, refused.text
    [fault] = refused.json()["errors"]
    return fault


def test_the_resolved_spec_has_format_options_and_hash(api: Deployed) -> None:
    made = _ready(api)
    job = api.submit(dataset={"id": made, "options": {"image_px": 64}})
    assert job["spec"]["dataset"] == {"id": made, "options": {"image_px": 64}}
    expected = {"folder": "flowers", "image_px": 64}
    whole = {"name": "image_folder", "id": made, "options": expected, "sha256": REPORT["sha256"]}
    assert job["resolved_spec"]["dataset"] == whole
    again = api.submit(dataset=job["resolved_spec"]["dataset"])
    assert again["resolved_spec"]["dataset"] == whole


def test_what_does_not_fit_the_data_set_is_told(api: Deployed) -> None:
    made = _ready(api)
    fault = _fault(api, {"id": made, "name": "digits"})
    assert (fault["pointer"], fault["code"], fault["fixes"]) == ("/dataset/name", "wrong_format", ["image_folder"])
    fault = _fault(api, {"id": made, "sha256": "d" * 64})
    assert (fault["pointer"], fault["code"]) == ("/dataset/sha256", "wrong_sha256")
    fault = _fault(api, {"id": made, "options": {"folder": "../other"}})
    assert (fault["pointer"], fault["code"]) == ("/dataset/options/folder", "not_taken")
    fault = _fault(api, {"id": made}, task={"name": "detection"})
    assert (fault["pointer"], fault["code"]) == ("/dataset/id", "wrong_task")
    fault = _fault(api, {"id": made, "options": {"image_px": 1}})
    assert fault["pointer"] == "/dataset/options/image_px"


def test_one_that_is_not_there_or_not_ready_is_told(api: Deployed) -> None:
    api.enrol()
    fault = _fault(api, ABSENT)
    assert (fault["pointer"], fault["code"]) == ("/dataset/id", "unknown_id")
    fault = _fault(api, {"id": create(api)})
    assert (fault["pointer"], fault["code"], fault["actual"]) == ("/dataset/id", "not_ready", "empty")
    assert api.http.post("/v1/plans", json={**spec_of(), "dataset": ABSENT}).status_code == 422


@pytest.mark.parametrize("wrong", ["ds_1", "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "", 7])
def test_an_id_that_can_be_none_is_told(api: Deployed, wrong: Any) -> None:
    api.enrol()
    refused = api.post({**spec_of(), "dataset": {"id": wrong}})
    assert refused.status_code == 422
    assert "/dataset/id" in {fault["pointer"] for fault in refused.json()["errors"]}
