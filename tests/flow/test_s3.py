"""The same service with its files in a bucket: trained, killed, fetched, deleted; and the store away in mid-job."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.client import Client
from service.store.artifacts import Artifacts
from service.store.errors import ArtifactNotFound
from tests.acmix.trees import TREES
from tests.flow.service_process import Up, kill, small_job, up, wait_for
from tests.flow.test_user_data import _uploaded, _zip
from tests.seaweed import BUCKET, SeaweedFS


@pytest.fixture(scope="module")
def service(seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("data")
    with up(data, ARTIFACTS_URL=f"s3://{BUCKET}/flow", **seaweed.environment) as running:
        yield running
        assert not (data / "artifacts").exists()


@pytest.fixture
def artifacts(seaweed: SeaweedFS) -> Artifacts:
    return seaweed.artifacts("flow")


def test_a_killed_job_goes_on_from_the_bucket_and_leaves_nothing_there_once_deleted(
    service: Up, artifacts: Artifacts, tmp_path: Path
) -> None:
    job_id = service.submit(small_job(epochs=4))
    wait_for(lambda: service.events(job_id, "checkpoint") and service.runs())
    kill(service.workers()[0])
    job = service.ended(job_id)
    assert (job["status"], job["attempt"], job["losses"]) == ("succeeded", 2, 1)
    assert list(service.metrics(job_id)["train/loss"]) == list(range(1, 81))
    second = next(event for event in service.events(job_id) if event["attempt"] == 2)
    assert second["data"]["resumed_from"]["step"] >= 20

    checkpoint = job["best"]["checkpoint"]
    with Client(str(service.http.base_url)) as client:
        described = client.download_checkpoint(checkpoint, tmp_path / "best.safetensors")
        uploaded = client.upload_weights(tmp_path / "best.safetensors")
    content = (tmp_path / "best.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == described["sha256"] == uploaded["sha256"]
    path = f"/v1/checkpoints/{checkpoint}/content"
    ours = service.http.get(path, headers={"Range": "bytes=100-199"})
    moved = service.http.get(path, params={"redirect": "true"}).headers["Location"]
    theirs = httpx.get(moved, headers={"Range": "bytes=100-199"})
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content) == (206, content[100:200])

    again = small_job(epochs=1)
    again["backbone"]["weights"] = uploaded["id"]
    assert service.ended(service.submit(again))["status"] == "succeeded"
    for resource in (f"/v1/jobs/{job_id}", f"/v1/weights/{uploaded['id']}"):
        assert service.http.delete(resource).status_code == 204
    for prefix in (f"jobs/{job_id}", f"weights/{uploaded['id']}"):
        with pytest.raises(ArtifactNotFound):
            artifacts.fetch_folder(prefix, tmp_path / "left")


def test_a_store_that_is_away_in_mid_job_costs_nothing(service: Up, seaweed: SeaweedFS) -> None:
    """From the first checkpoint until the run itself has ended: what could not be stored waits."""
    job_id = service.submit(small_job(epochs=4))
    wait_for(lambda: service.events(job_id, "checkpoint") and service.runs())
    with seaweed.down():
        wait_for(lambda: not service.runs())
        assert service.http.get("/readyz").status_code == 503
        assert service.job(job_id)["status"] == "running"
    job = service.ended(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert list(service.metrics(job_id)["train/loss"]) == list(range(1, 81))
    events = service.events(job_id)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    kept = service.http.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"]
    assert max(each["step"] for each in kept) == 80
    for each in kept:
        file = service.http.get(f"/v1/checkpoints/{each['id']}/content")
        assert hashlib.sha256(file.content).hexdigest() == each["sha256"]


def test_an_uploaded_data_set_lies_in_the_bucket_until_it_is_deleted(
    service: Up, artifacts: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    TREES["voc"](tmp_path / "tree")
    dataset = _uploaded(service, _zip(tmp_path / "tree", tmp_path / "boxes.zip"), "detection", "voc")
    assert dataset["status"] == "ready", dataset
    sheet = service.http.get(f"/v1/datasets/{dataset['id']}/samples.png")
    assert sheet.content.startswith(b"\x89PNG")
    artifacts.fetch_folder(f"datasets/{dataset['id']}", tmp_path / "there")
    assert service.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    with pytest.raises(ArtifactNotFound):
        artifacts.fetch_folder(f"datasets/{dataset['id']}", tmp_path / "left")
