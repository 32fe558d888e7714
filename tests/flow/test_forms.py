"""Every form of ACmix over HTTP: on digits it learns them, in timm's models too; what cannot be swapped says so."""

from typing import Any

import pytest

from tests.flow.service_process import Up

# docs/small-models.md has the same specs
SMALL: dict[str, dict[str, Any]] = {
    "swin_tiny": {
        "backbone": {"name": "swin_tiny", "options": {"embed_dim": 24, "patch_px": 1, "window": 4}},
        "training": {
            "epochs": 10,
            "batch_size": 64,
            "optimizer": {"name": "adamw", "lr": 0.001},
            "schedule": {"name": "cosine", "warmup_epochs": 2},
            "clip_norm": 5.0,
        },
    },
    "pvt_tiny": {
        "backbone": {"name": "pvt_tiny", "options": {"patch_px": 1, "width": 0.25, "reductions": [2, 2, 1, 1]}},
        "training": {
            "epochs": 10,
            "batch_size": 32,
            "optimizer": {"name": "adamw", "lr": 0.002},
            "schedule": {"name": "cosine", "warmup_epochs": 2},
        },
    },
    "san10": {
        "backbone": {"name": "san10", "options": {"stem": "small", "width": 0.25}},
        "training": {"epochs": 8, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 0.004}},
    },
}
EVERYWHERE = {"swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}


@pytest.mark.release
@pytest.mark.parametrize("name", SMALL)
def test_it_is_right_on_95_of_100_digits(service: Up, name: str) -> None:
    job = service.ended(service.submit({**EVERYWHERE, **SMALL[name]}), within_seconds=600)
    assert job["status"] == "succeeded", job["status_reason"]
    results = service.http.get(job["urls"]["results"]).json()
    assert results["final"]["metrics"]["accuracy"] >= 0.95


def test_a_model_of_timm_trains_with_swaps(service: Up) -> None:
    spec = {
        **EVERYWHERE,
        "backbone": {"name": "timm/resnet18"},
        "swaps": [{"layers": "layer4.*"}],
        "training": {"epochs": 1, "batch_size": 32, "limit_train_batches": 2},
        "trace": {"every_steps": 1},
    }
    job = service.ended(service.submit(spec), within_seconds=300)
    assert job["status"] == "succeeded", job["status_reason"]
    layers = service.http.get(job["urls"]["traces"]).json()["layers"]
    assert [layer["layer"] for layer in layers] == [f"layer4.{block}.conv{n}" for block in (0, 1) for n in (1, 2)]


def test_a_model_without_a_layer_to_swap_is_refused_with_a_sentence(service: Up) -> None:
    refused = service.http.post("/v1/jobs", json={**EVERYWHERE, "backbone": {"name": "timm/convnext_atto"}})
    assert refused.status_code == 422
    [fault] = refused.json()["errors"]
    assert fault["pointer"] == "/swaps/0/layers"
    assert "no layer that ACmix can stand in for" in fault["message"]
