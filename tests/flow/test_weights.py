"""Weights through the front door: `acmix weights upload`, a job that starts from them, and their end."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from acmix.model import build
from tests.flow.service_process import Up, small_job


def acmix(service: Up, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from service.cli import main; main()", "weights", *words]
    return subprocess.run(
        [*command, "--url", str(service.http.base_url)], capture_output=True, text=True, check=False, timeout=60
    )


def small_weights(path: Path) -> Path:
    """Of the swapped model of `small_job`, alpha 0.25 in every layer."""
    job: dict[str, Any] = small_job()
    model = build(job["backbone"], job["swaps"], num_classes=10, image_px=8)
    state = {
        key: torch.full_like(value, 0.25) if key.endswith(".alpha") else value
        for key, value in model.state_dict().items()
    }
    save_file(state, path)
    return path


def test_an_uploaded_file_starts_a_job_and_goes_once_no_job_needs_it(service: Up, tmp_path: Path) -> None:
    uploaded = acmix(service, "upload", str(small_weights(tmp_path / "quarter.safetensors")), "--name", "a quarter")
    assert uploaded.returncode == 0, uploaded.stderr
    weights = uploaded.stdout.strip()
    assert weights.startswith("wts_")
    listed = acmix(service, "list").stdout.split("\t")
    assert [listed[0], listed[2].strip()] == [weights, "a quarter"]

    job = small_job(epochs=1, limit_train_batches=4)
    job["backbone"]["weights"] = weights
    ended = service.ended(job_id := service.submit(job))
    assert ended["status"] == "succeeded", ended["status_reason"]
    layers = service.http.get(f"/v1/jobs/{job_id}/traces").json()["layers"]
    assert [layer["alpha"][0] for layer in layers] == [0.25] * len(layers) != []

    assert acmix(service, "delete", weights).returncode == 0
    assert acmix(service, "list").stdout == ""
    refused = service.http.post("/v1/jobs", json=job)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/backbone/weights"


def test_what_is_no_safetensors_file_is_refused_in_a_sentence(service: Up, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 a pickle in a zip")
    refused = acmix(service, "upload", str(tmp_path / "weights.pt"))
    assert refused.returncode == 1
    assert "safetensors" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert acmix(service, "list").stdout == ""


def test_weights_that_are_not_there_cannot_be_deleted(service: Up) -> None:
    refused = acmix(service, "delete", "wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC")
    assert refused.returncode == 1
    assert "wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC" in refused.stderr
