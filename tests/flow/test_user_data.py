"""A user's own data, from an archive over HTTP to a trained model."""

import zipfile
from pathlib import Path
from typing import Any

from service.client import Client
from tests.acmix.photos import noise, write_photos
from tests.acmix.trees import TREES
from tests.flow.service_process import Up, small_job

BACKBONE = {"name": "resnet26", "options": {"width": 0.0625}}


def _zip(tree: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(tree.rglob("*")):
            archive.write(path, Path("digits", path.relative_to(tree)))
    return target


def _uploaded(service: Up, archive: Path, task: str, form: str) -> dict[str, Any]:
    with Client(str(service.http.base_url)) as client:
        declared = client.create_dataset("scenes of digits", task=task, format_=form)
        client.upload_dataset(declared["id"], archive, part_bytes=4096)
        return client.wait_dataset(declared["id"])


def test_uploaded_scenes_are_checked_and_trained_on(service: Up, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    TREES["coco"](tmp_path / "tree")
    dataset = _uploaded(service, _zip(tmp_path / "tree", tmp_path / "digits.zip"), "detection", "coco")
    assert dataset["status"] == "ready", dataset
    assert dataset["classes"] == [str(digit) for digit in range(10)]
    assert dataset["has_masks"] is True
    sheet = service.http.get(f"/v1/datasets/{dataset['id']}/samples.png")
    assert sheet.content.startswith(b"\x89PNG")

    spec = {
        "task": {"name": "detection", "options": {"head": "mask_rcnn", "channels": 16, "proposals": 20, "regions": 16}},
        "backbone": BACKBONE,
        "swaps": [{"layers": "layer4.*"}],
        "dataset": {"id": dataset["id"], "options": {"image_px": 64}},
        "training": {"epochs": 1, "batch_size": 2, "optimizer": {"name": "adamw", "lr": 1e-3}},
        "trace": {"every_steps": 1},
    }
    plan = service.http.post("/v1/plans", json=spec)
    assert plan.status_code == 200, plan.text
    assert [row["layer"] for row in plan.json()["layers"] if row["mixer"]] == ["layer4.0.conv2"]
    posted = service.http.post("/v1/jobs", json=spec)
    assert posted.status_code == 201, posted.text
    asked = posted.json()["resolved_spec"]["dataset"]
    assert asked | {"options": {}} == {
        "name": "coco",
        "id": dataset["id"],
        "sha256": dataset["sha256"],
        "options": {},
    }
    refused = service.http.delete(f"/v1/datasets/{dataset['id']}")
    assert refused.status_code == 409
    job = service.ended(posted.json()["id"], within_seconds=120)
    assert job["status"] == "succeeded", job["status_reason"]
    final = service.http.get(job["urls"]["results"]).json()["final"]
    assert final["dataset"] == dataset["id"]
    assert {"box_ap", "mask_ap"} <= final["metrics"].keys()
    assert service.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204


def test_a_head_of_masks_is_refused_for_boxes_alone(service: Up, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    TREES["voc"](tmp_path / "tree")
    dataset = _uploaded(service, _zip(tmp_path / "tree", tmp_path / "boxes.zip"), "detection", "voc")
    assert (dataset["status"], dataset["has_masks"]) == ("ready", False)
    task = {"name": "detection", "options": {"head": "cascade_mask_rcnn"}}
    spec = {"backbone": BACKBONE, "task": task, "dataset": {"id": dataset["id"]}}
    refused = service.http.post("/v1/jobs", json=spec)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["pointer"], error["code"], error["allowed"]) == ("/task/options/head", "no_masks", ["retinanet"])


def test_an_archive_with_a_broken_image_is_rejected_by_its_name(service: Up, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    TREES["mask_folder"](tmp_path / "tree").write_bytes(b"no image")
    dataset = _uploaded(service, _zip(tmp_path / "tree", tmp_path / "broken.zip"), "segmentation", "mask_folder")
    assert dataset["status"] == "rejected"
    assert [fault["file"] for fault in dataset["faults"]] == ["train/images/3.png"]
    spec = {"backbone": BACKBONE, "task": {"name": "segmentation"}, "dataset": {"id": dataset["id"]}}
    refused = service.http.post("/v1/jobs", json=spec)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["pointer"], error["code"], error["actual"]) == ("/dataset/id", "not_ready", "rejected")


def test_what_changed_below_the_data_root_since_it_was_checked_is_not_trained_on(service: Up) -> None:
    folder = write_photos(service.data / "datasets/animals")
    with Client(str(service.http.base_url)) as client:
        declared = client.create_dataset("animals", task="classification", format_="image_folder", path="animals")
        assert client.wait_dataset(declared["id"])["status"] == "ready"
    spec = {**small_job(epochs=1), "dataset": {"id": declared["id"], "options": {"image_px": 16}}}

    def ended() -> dict[str, Any]:
        return service.ended(service.submit(spec))

    assert ended()["status"] == "succeeded"
    photo = folder / "train/cat/3.png"
    before = photo.read_bytes()
    noise(1000).save(photo)
    reason = ended()["status_reason"]
    assert (reason["code"], reason["blame"]) == ("dataset_corrupt", "data")
    changed = (
        "the data below path='animals' changed since it was checked; what changed last is 'animals/train/cat/3.png'"
    )
    assert reason["message"] == f"{declared['id']}, which the job reads, is not what was checked: {changed}"
    photo.write_bytes(before)
    assert ended()["status"] == "succeeded"
