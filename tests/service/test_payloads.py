"""P14: no code runs from what is posted: as weights, as a spec."""

from pathlib import Path

import pytest

from tests.payloads import payloads
from tests.service.deployed import Deployed

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
TAKEN = {"safetensors that tells code", "safetensors with a pickle in it"}  # as the tensors and words that they are


def test_none_runs_as_weights_that_are_uploaded(api: Deployed, tmp_path: Path) -> None:
    for payload in payloads(tmp_path / "mark"):
        answer = api.http.post("/v1/weights", content=payload.content)
        assert answer.status_code == (201 if payload.name in TAKEN else 422), (payload.name, answer.text)
    assert not (tmp_path / "mark").exists()


def test_none_runs_as_a_spec_that_is_posted(api: Deployed, tmp_path: Path) -> None:
    api.enrol()
    for payload in payloads(tmp_path / "mark"):
        for path in ("/v1/jobs", "/v1/plans", "/v1/datasets"):
            answer = api.http.post(path, content=payload.content, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), (payload.name, answer.text)
    assert not (tmp_path / "mark").exists()
