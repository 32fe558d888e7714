"""Jobs that evaluate a checkpoint: the figures of its training again, on any split and data set that fits."""

from typing import Any

from tests.flow.service_process import Up, small_job


def _best_of_a_training(service: Up) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint, and the results of the job that left it."""
    job = service.ended(service.submit(small_job()))
    assert job["status"] == "succeeded", job["status_reason"]
    results = service.http.get(job["urls"]["results"]).json()
    checkpoints = service.http.get(job["urls"]["checkpoints"]).json()["data"]
    return next(each for each in checkpoints if each["best"]), results


def _evaluated(service: Up, checkpoint: str, **more: Any) -> dict[str, Any]:
    job = service.ended(service.submit({"kind": "evaluate", "checkpoint": checkpoint, **more}))
    assert job["status"] == "succeeded", job["status_reason"]
    assert job["kind"] == "evaluate"
    final: dict[str, Any] = service.http.get(job["urls"]["results"]).json()["final"]
    return final


def test_a_checkpoint_is_judged_again_as_its_training_judged_it(service: Up) -> None:
    best, results = _best_of_a_training(service)
    again = _evaluated(service, best["id"], name="again", resources={"processes": 2})
    assert again["metrics"] == results["final"]["metrics"]
    assert again["confusion_matrix"] == results["final"]["confusion_matrix"]
    assert (again["split"], again["checkpoint"]) == ("test", best["id"])
    worst = again["examples"][0]
    assert worst["source"] == f"number {worst['index']}"
    assert worst["named"] != worst["true"]

    on_val = _evaluated(service, best["id"], evaluation={"split": "val", "batch_size": 7})
    assert on_val["split"] == "val"
    assert abs(on_val["metrics"]["accuracy"] - results["best"]["metrics"]["accuracy"]) < 1e-9
    larger = _evaluated(service, best["id"], dataset={"name": "digits", "options": {"image_px": 16}})
    assert larger["metrics"] != again["metrics"]


def test_what_cannot_be_evaluated_is_told_before_it_is_queued(service: Up) -> None:
    best, _ = _best_of_a_training(service)
    absent = best["id"][:-1] + ("0" if best["id"][-1] != "0" else "1")
    for body, pointer, code in [
        ({"kind": "evaluate", "checkpoint": absent}, "/checkpoint", "unknown_id"),
        ({"kind": "evaluate"}, "/checkpoint", "missing"),
        (
            {"kind": "evaluate", "checkpoint": best["id"], "dataset": {"name": "digits_detection"}},
            "/dataset/name",
            "wrong_task",
        ),
        ({"kind": "evaluate", "checkpoint": best["id"], "swaps": []}, "/swaps", "unknown_field"),
        ({**small_job(), "checkpoint": best["id"]}, "/checkpoint", "not_taken"),
        ({**small_job(), "kind": "judge"}, "/kind", "literal_error"),
    ]:
        refused = service.http.post("/v1/jobs", json=body)
        assert refused.status_code == 422, body
        assert (pointer, code) in {(each["pointer"], each["code"]) for each in refused.json()["errors"]}, refused.text
