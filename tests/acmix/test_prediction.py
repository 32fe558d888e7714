"""A checkpoint's file alone names what is in an image file, as the evaluation of its training names it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as runs
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from acmix import registry, spec
from acmix.errors import CheckpointIncompatible, ImageUnreadable
from acmix.prediction import predictor as predictor_module
from acmix.prediction.predictor import Predictor
from acmix.training.run import run
from tests.acmix.photos import noise
from tests.acmix.small import few_digits_judged, of_type, small_spec
from tests.acmix.small_scenes import HEADS as DETECTORS
from tests.acmix.small_scenes import dense_spec

JPEG, ORIENTATION = "image.jpg", 0x0112


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1] / "model.safetensors"


def png(image_3HW: torch.Tensor, file: Path) -> Path:
    Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).save(file)
    return file


def decoded(mask: dict[str, Any]) -> np.ndarray:
    found: np.ndarray = runs.decode({"size": mask["size"], "counts": mask["counts"].encode()})
    return found


def attentive(file: Path) -> Predictor:
    """It keeps objects of any score: those of a head that has hardly learned are below what torchvision keeps."""
    predictor = Predictor(file)
    if hasattr(predictor.model, "score_thresh"):
        predictor.model.score_thresh = 0.0
    return predictor


@pytest.fixture(scope="module", autouse=True)
def few_are_judged() -> Iterator[None]:
    with few_digits_judged(50):
        yield


@pytest.fixture(scope="module")
def classifier(few_are_judged: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Its checkpoint, and its accuracy on test."""
    folder = tmp_path_factory.mktemp("classifier")
    events = list(run(small_spec(epochs=3, limit_train_batches=12), folder))
    final = of_type(events, "evaluation")[-1].data
    return newest(folder), final["metrics"]["accuracy"]


@pytest.fixture(scope="module", params=(*DETECTORS, "semantic_fpn", "upernet"))
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A head, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp(request.param)
    list(run(spec.parse(dense_spec(request.param, epochs=1)), folder))
    return request.param, newest(folder)


def test_a_classifier_names_files_as_its_evaluation_names_them(classifier: tuple[Path, float], tmp_path: Path) -> None:
    file, accuracy = classifier
    predictor, split = Predictor(file), registry.get("datasets", "digits")(tmp_path).split("test")
    hits = 0
    for index in range(len(split)):
        image_3HW, label = split[index]
        said = predictor.predict(png(image_3HW, tmp_path / "image.png")).said
        hits += said["classes"][0]["class"] == str(label)
    assert 0.2 < accuracy == hits / len(split)
    probabilities = [each["probability"] for each in said["classes"]]
    assert (len(probabilities), probabilities) == (5, sorted(probabilities, reverse=True))
    assert (said["task"], said["image"]) == ("classification", {"width": 8, "height": 8})


def test_a_dense_head_names_files_as_its_task_names_the_data_sets_images(
    dense: tuple[str, Path], tmp_path: Path
) -> None:
    head, file = dense
    predictor = attentive(file)
    job = spec.parse(dense_spec(head))
    dataset = registry.get("datasets", job.dataset.name)(tmp_path, **job.dataset.options)
    image_3HW, _ = dataset.split("test")[1]
    said = predictor.predict(png(image_3HW, tmp_path / "image.png"), min_score=0.0).said
    _, transform = predictor.task.transforms(dataset, job.training.augment)
    images, _ = transform.collate([dataset.split("test")[1]], [0])
    with torch.inference_mode():
        answer = predictor.model(images if head in DETECTORS else torch.stack(list(images)))
    if head in DETECTORS:
        order = answer[0]["scores"].argsort(descending=True)
        assert len(order) > 0
        np.testing.assert_allclose([each["score"] for each in said["objects"]], answer[0]["scores"][order], atol=1e-6)
        np.testing.assert_allclose([each["box"] for each in said["objects"]], answer[0]["boxes"][order], atol=1e-4)
        if head != "retinanet":
            masks = answer[0]["masks"][order, 0] >= 0.5
            assert all((decoded(e["mask"]) == m.numpy()).all() for e, m in zip(said["objects"], masks, strict=True))
        return
    map_HW = answer[0][0].argmax(dim=0)
    for each in said["classes"]:
        wanted = (map_HW == dataset.classes.index(each["class"])).numpy()
        assert (decoded(each["mask"]) == wanted).all()
        assert each["share"] == pytest.approx(wanted.mean())
    assert sum(each["share"] for each in said["classes"]) == pytest.approx(1)


def test_an_image_too_large_is_shown_smaller_and_told_in_its_own_pixels(
    dense: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, file = dense
    noise(3, size=(200, 100)).save(tmp_path / "image.png")
    monkeypatch.setattr(predictor_module, "MOST_PIXELS", 5000)
    prediction = attentive(file).predict(tmp_path / "image.png", min_score=0.0)
    assert prediction.shown.image.shape == (3, 50, 100)
    assert prediction.said["image"] == {"width": 200, "height": 100}
    if head in DETECTORS:
        boxes = prediction.named.target["boxes"].flip(0)
        np.testing.assert_allclose([each["box"] for each in prediction.said["objects"]], boxes * 2, rtol=1e-5)
    masks = [each["mask"] for each in prediction.said.get("classes", prediction.said.get("objects")) if "mask" in each]
    assert all(decoded(mask).shape == (100, 200) for mask in masks)
    assert prediction.picture().size == (512, 256)


def test_objects_of_too_low_a_score_are_left_out(dense: tuple[str, Path], tmp_path: Path) -> None:
    head, file = dense
    noise(3, size=(64, 64)).save(tmp_path / "image.png")
    predictor = attentive(file)
    every = predictor.predict(tmp_path / "image.png", min_score=0.0).said
    if head not in DETECTORS:
        assert predictor.predict(tmp_path / "image.png", min_score=1.0).said == every
        return
    scores = [each["score"] for each in every["objects"]]
    assert scores == sorted(scores, reverse=True)
    bar = scores[len(scores) // 2]
    kept = predictor.predict(tmp_path / "image.png", min_score=bar).said["objects"]
    assert [each["score"] for each in kept] == [score for score in scores if score >= bar]
    assert 0 < len(kept) <= len(scores)


def test_an_image_is_turned_as_its_orientation_says(classifier: tuple[Path, float], tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    noise(1, size=(30, 20)).save(tmp_path / JPEG, exif=turned)
    said = Predictor(classifier[0]).predict(tmp_path / JPEG).said
    assert said["image"] == {"width": 20, "height": 30}


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_image_is_told_without_a_path(
    content: bytes, classifier: tuple[Path, float], tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(ImageUnreadable, match="cannot be read as an image") as caught:
        Predictor(classifier[0]).predict(tmp_path / "image")
    assert str(tmp_path) not in caught.value.message
    assert caught.value.hint == "formats: JPEG, PNG, WEBP, BMP, TIFF"


@pytest.mark.parametrize("about", [None, "no JSON", {}, {"classes": ["0"]}, {"images": {"image_px": 8}}])
def test_a_file_that_does_not_say_what_it_was_trained_by_is_refused(
    about: Any, classifier: tuple[Path, float], tmp_path: Path
) -> None:
    with safe_open(classifier[0], "pt") as opened:
        told = json.loads(opened.metadata()["acmix"])
    if isinstance(about, dict):
        left = {name: value for name, value in told.items() if name not in ("images", "classes")}
        about = json.dumps({**left, **about})
    metadata = {} if about is None else {"acmix": about}
    save_file(load_file(classifier[0]), tmp_path / "other.safetensors", metadata)
    with pytest.raises(CheckpointIncompatible, match=r"other\.safetensors does not say by what it was trained"):
        Predictor(tmp_path / "other.safetensors")


def test_by_hand_and_line_by_line_the_answer_is_the_same(classifier: tuple[Path, float], tmp_path: Path) -> None:
    noise(1).save(tmp_path / "image.png")
    (tmp_path / "text").write_text("text")
    python = [sys.executable, "-m", "acmix", "predict"]
    image, drawn = tmp_path / "image.png", tmp_path / "drawn.png"
    by_hand = subprocess.run(
        [*python, str(classifier[0]), str(image), "--drawn", str(drawn)], capture_output=True, text=True, check=True
    )
    with Image.open(drawn) as picture:
        assert picture.size == (512, 427)
    drawn.unlink()
    requests = [
        {"checkpoint": str(classifier[0]), "image": str(image), "min_score": 0.5, "drawn": str(drawn)},
        {"checkpoint": str(classifier[0]), "image": str(tmp_path / "text"), "min_score": 0.5, "drawn": None},
        {"checkpoint": str(tmp_path / "absent"), "image": str(image)},
        {"image": 3},
        {"checkpoint": str(classifier[0]), "image": str(image)},
    ]
    served = subprocess.run(
        [*python, "--serve"],
        check=True,
        input="".join(f"{json.dumps(each)}\n" for each in requests),
        capture_output=True,
        text=True,
    )
    ready, first, unreadable, absent, malformed, again = map(json.loads, served.stdout.splitlines())
    assert ready["ready"]
    assert first == json.loads(by_hand.stdout) == again
    assert drawn.exists()
    codes = [each["error"]["code"] for each in (unreadable, absent, malformed)]
    assert codes == ["image_unreadable", "weights_missing", "internal"]
    refused = subprocess.run(
        [*python, str(classifier[0]), str(tmp_path / "text")], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, json.loads(refused.stdout)) == (1, unreadable)
