"""The whole product through its front door: `acmix up`, HTTP, a trained model with its traces."""

import hashlib
import json
from xml.etree import ElementTree

import pytest
from safetensors.torch import load

from tests.flow.service_process import Service, small_job, wait_for

LAYERS = [f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def done(service: Service) -> dict:
    """A job that has succeeded, shared by the tests that only look."""
    job = service.ended(service.submit(small_job(metadata={"study": "depth"})))
    assert job["status"] == "succeeded", job["status_reason"]
    return job


def test_a_job_ends_with_results_of_its_best_checkpoint_on_test(service: Service, done: dict) -> None:
    results = service.http.get(done["urls"]["results"]).json()
    assert results["complete"]
    assert [evaluation["split"] for evaluation in results["evaluations"]] == ["val"] * 3 + ["test"]
    assert results["final"]["split"] == "test"
    assert results["best"]["epoch"] == done["best"]["epoch"]
    assert results["final"]["checkpoint"] == results["best"]["checkpoint"] == done["best"]["checkpoint"]
    matrix = results["final"]["confusion_matrix"]
    assert sum(map(sum, matrix)) == 360
    assert results["final"]["metrics"]["accuracy"] == sum(matrix[i][i] for i in range(10)) / 360
    assert len(results["final"]["per_class"]) == 10


def test_the_job_tells_all_about_itself(done: dict) -> None:
    assert done["progress"]["fraction"] == 1
    assert done["attempt"] == 1
    assert done["failures"] == done["losses"] == 0
    assert done["devices"] == ["cpu"]
    assert set(done["versions"]) == {"acmix", "torch", "cuda", "python"}
    assert done["resolved_spec"]["resources"]["gpus"] == 0
    assert done["best"]["checkpoint"].startswith("ckpt_")
    assert done["started_at"] < done["ended_at"]


def test_traces_are_served_for_every_layer_in_depth_order(service: Service, done: dict) -> None:
    layers = service.http.get(done["urls"]["traces"]).json()["layers"]
    assert [layer["layer"] for layer in layers] == LAYERS
    assert [layer["depth"] for layer in layers] == [0, 1, 2, 3]
    last = done["progress"]["steps"]
    for layer in layers:
        assert layer["step"] == [0, *range(5, last + 1, 5)]
        assert layer["alpha"][0] == layer["beta"][0] == 0.5
    csv = service.http.get(done["urls"]["traces"], headers={"Accept": "text/csv"}).text.splitlines()
    assert csv[0] == "layer,depth,step,alpha,beta,attention_rms,convolution_rms"
    assert len(csv) == 1 + 4 * len(layers[0]["step"])
    for style in ("depth", "trajectory"):
        picture = service.http.get(f"{done['urls']['traces']}.svg", params={"style": style})
        assert picture.headers["content-type"].startswith("image/svg+xml")
        assert ElementTree.fromstring(picture.text).tag == "{http://www.w3.org/2000/svg}svg"


def test_metrics_hold_every_step_once(service: Service, done: dict) -> None:
    curves = service.metrics(done["id"])
    assert list(curves["train/loss"]) == list(range(1, done["progress"]["steps"] + 1))
    assert len(curves["val/accuracy"]) == 3
    assert set(curves) >= {"train/lr", "train/accuracy", "val/loss", "test/accuracy"}


def test_events_are_numbered_without_gaps_and_end_with_the_end(service: Service, done: dict) -> None:
    events = service.events(done["id"])
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["data"]["status"] == "queued"
    assert events[1]["data"] == {"status": "running", "worker": done["worker"], "resumed_from": None}
    assert events[-1]["type"] == "status"
    assert events[-1]["data"]["status"] == "succeeded"
    assert len([event for event in events if event["type"] == "trace"]) == 1 + done["progress"]["steps"] // 5


def test_a_stream_begins_where_the_reader_left_off_and_closes_with_the_job(service: Service, done: dict) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "3"}
    with service.http.stream("GET", done["urls"]["events"], headers=headers) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith(("id:", "data:"))]
    assert lines[0] == "id: 4"
    assert json.loads(lines[-1].removeprefix("data:"))["data"]["status"] == "succeeded"


def test_a_checkpoint_comes_down_whole_and_in_parts(service: Service, done: dict) -> None:
    best = service.http.get(f"/v1/checkpoints/{done['best']['checkpoint']}").json()
    url = f"/v1/checkpoints/{best['id']}/content"
    whole = service.http.get(url)
    assert hashlib.sha256(whole.content).hexdigest() == best["sha256"]
    assert whole.headers["etag"] == f'"{best["sha256"]}"'
    assert len(whole.content) == best["size_bytes"]
    assert f"{LAYERS[0]}.alpha" in load(whole.content)
    part = service.http.get(url, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole.content[100:200]


def test_logs_hold_what_the_attempt_printed(service: Service, done: dict) -> None:
    text = service.http.get(f"/v1/jobs/{done['id']}/logs").text
    assert "epoch 3 of 3" in text
    tail = service.http.get(f"/v1/jobs/{done['id']}/logs", params={"tail": 1}).text
    assert text.endswith(tail)


def test_the_resolved_spec_posted_again_gives_the_same_losses_to_the_last_bit(service: Service, done: dict) -> None:
    again = service.ended(service.submit(done["resolved_spec"]))
    assert again["resolved_spec"] == done["resolved_spec"]
    assert service.metrics(again["id"]) == service.metrics(done["id"])


def test_a_job_cancelled_in_mid_epoch_ends_at_once_and_leaves_no_process(service: Service) -> None:
    job_id = service.submit(small_job(epochs=5000))
    wait_for(lambda: service.events(job_id, "metrics"))
    answer = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 202
    job = service.ended(job_id, within_seconds=10)
    assert job["status"] == "cancelled"
    assert job["status_reason"]["code"] == "cancelled_by_user"
    wait_for(lambda: not service.runs(), within_seconds=5)
    assert service.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


def test_a_deleted_job_is_gone_with_its_files(service: Service) -> None:
    job = service.ended(service.submit(small_job(epochs=1, limit_train_batches=4)))
    files = service.artifacts / "jobs" / job["id"]
    assert list(files.rglob("model.safetensors"))
    assert service.http.delete(f"/v1/jobs/{job['id']}").status_code in (200, 204)
    assert service.http.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert not files.exists()


def test_a_run_that_cannot_work_fails_with_a_reason_that_blames_the_right_one(service: Service) -> None:
    missing = {**small_job(), "dataset": {"name": "image_folder", "options": {"folder": "nowhere"}}}
    job = service.ended(service.submit(missing))
    assert job["status"] == "failed"
    assert job["status_reason"]["code"] == "dataset_missing"
    assert job["status_reason"]["blame"] == "data"
    assert "nowhere" in job["status_reason"]["message"]
    wild = small_job(optimizer={"name": "sgd", "lr": 1e6}, schedule={"name": "constant"}, epochs=50)
    job = service.ended(service.submit(wild))
    assert job["status_reason"]["code"] == "diverged"
    assert "the first layer to" in job["status_reason"]["message"]


def test_a_runtime_limit_is_kept(service: Service) -> None:
    job_id = service.submit({**small_job(epochs=5000), "resources": {"max_runtime_seconds": 6}})
    assert service.ended(job_id)["status_reason"]["code"] == "max_runtime_exceeded"


def test_nothing_of_a_run_is_left_on_the_machine(service: Service, done: dict) -> None:
    wait_for(lambda: not list(service.attempts.iterdir()), within_seconds=10)
