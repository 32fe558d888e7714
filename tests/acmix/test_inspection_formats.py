"""Every format that a data set can be declared as: small trees of real scans, inspected as uploaded ones are."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix import registry
from acmix.datasets.digits_detection import DigitsDetection
from acmix.datasets.digits_segmentation import DigitsSegmentation
from acmix.formats import FORMATS
from acmix.inspection import formats
from acmix.inspection.command import Request, inspect
from acmix.inspection.progress import Progress

SIDE = 48


def _scenes(task: str) -> list[tuple[Image.Image, Any]]:
    kind: Any = {"detection": DigitsDetection, "segmentation": DigitsSegmentation}[task]
    split = kind(Path(), image_px=SIDE).split("train")
    return [
        (Image.fromarray(image.permute(1, 2, 0).numpy()), target) for image, target in map(split.__getitem__, range(8))
    ]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _coco(place: Path) -> Path:
    """Gives an image that is listed."""
    images, annotations = [], []
    for number, (image, target) in enumerate(_scenes("detection")):
        _save(image, place / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            sized = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            corners = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
            row = {"id": len(annotations), "image_id": number, "category_id": label, "bbox": sized}
            annotations.append({**row, "segmentation": [corners], "iscrowd": 0})
    names = [{"id": label, "name": str(label)} for label in range(10)]
    (place / "annotations").mkdir()
    document = {"images": images, "annotations": annotations, "categories": names}
    (place / "annotations/train.json").write_text(json.dumps(document))
    return place / "train/3.png"


def _voc(place: Path) -> Path:
    (place / "ImageSets/Main").mkdir(parents=True)
    (place / "Annotations").mkdir()
    for number, (image, target) in enumerate(_scenes("detection")):
        _save(image, place / "JPEGImages" / f"{number}.jpg")
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1:.0f}</xmin><ymin>{top + 1:.0f}</ymin>"
            f"<xmax>{right:.0f}</xmax><ymax>{bottom:.0f}</ymax></bndbox></object>"
            for (left, top, right, bottom), label in zip(
                target["boxes"].tolist(), target["labels"].tolist(), strict=True
            )
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        (place / "Annotations" / f"{number}.xml").write_text(text)
    for split, numbers in (("train", range(6)), ("val", (6, 7))):
        (place / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
    return place / "JPEGImages/3.jpg"


def _ade20k(place: Path) -> Path:
    for number, (image, labels) in enumerate(_scenes("segmentation")):
        part = "training" if number < 6 else "validation"
        _save(image, place / "images" / part / f"{number}.jpg")
        _save(Image.fromarray(labels.numpy()), place / "annotations" / part / f"{number}.png")
    return place / "images/training/3.jpg"


def _mask_folder(place: Path) -> Path:
    for number, (image, labels) in enumerate(_scenes("segmentation")):
        _save(image, place / "train/images" / f"{number}.png")
        _save(Image.fromarray(labels.numpy()), place / "train/masks" / f"{number}.png")
    (place / "classes.txt").write_text("\n".join(DigitsSegmentation.classes))
    return place / "train/images/3.png"


def _classes(place: Path) -> Path:
    random = np.random.RandomState(0)
    for number in range(8):
        pixels = random.randint(0, 256, (20, 20, 3)).astype(np.uint8)
        split = "train" if number < 6 else "val"
        _save(Image.fromarray(pixels), place / split / f"n0{number % 2}" / f"{number}.JPEG")
    return place / "train/n01/3.JPEG"


TREES: dict[str, Callable[[Path], Path]] = {
    "coco": _coco,
    "voc": _voc,
    "ade20k": _ade20k,
    "mask_folder": _mask_folder,
    "imagenet": _classes,
    "image_folder": _classes,
}


def _inspect(tmp_path: Path, name: str) -> dict[str, Any]:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "tree").rglob("*")):
            file.write(path, Path("wrapped", path.relative_to(tmp_path / "tree")))
    task = formats.formats()[name].task
    return inspect(Request(tmp_path / "into", task, name, archive=[archive]), Progress(io.StringIO()))


def test_every_format_that_can_be_declared_is_there():
    there: dict[str, list[str]] = {}
    for each in formats.formats().values():
        there.setdefault(each.task, []).append(each.name)
    assert {task: sorted(names) for task, names in there.items()} == {
        task: list(each) for task, each in FORMATS.items()
    }
    assert sorted(TREES) == sorted(formats.formats())


@pytest.mark.parametrize("name", TREES)
def test_a_sound_tree_is_ready_to_train_on(tmp_path: Path, name: str):
    (tmp_path / "tree").mkdir()
    TREES[name](tmp_path / "tree")
    report = _inspect(tmp_path, name)
    assert report["status"] == "ready", report
    assert sum(split["samples"] for split in report["splits"].values()) == 8
    assert report["has_masks"] == (name == "coco")
    with Image.open(tmp_path / "into/samples.png") as sheet:
        assert min(sheet.size) > 300
    dataset = registry.get("datasets", name)(tmp_path / "into/content", **report["options"])
    assert list(dataset.classes) == report["classes"]
    assert len(dataset.split("train")) == report["splits"]["train"]["samples"]


@pytest.mark.parametrize("name", TREES)
def test_an_image_that_is_none_is_named(tmp_path: Path, name: str):
    (tmp_path / "tree").mkdir()
    broken = TREES[name](tmp_path / "tree")
    broken.write_bytes(b"\x89PNG\r\n\x1a\nthis is no image")
    report = _inspect(tmp_path, name)
    assert report["status"] == "rejected"
    assert [fault["file"] for fault in report["faults"]] == [broken.relative_to(tmp_path / "tree").as_posix()]
    assert not (tmp_path / "into/samples.png").exists()


@pytest.mark.parametrize("name", TREES)
def test_an_empty_tree_is_told_what_was_expected(tmp_path: Path, name: str):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/notes.txt").write_text("nothing here")
    report = _inspect(tmp_path, name)
    assert report["status"] == "rejected"
    assert report["expected"] == formats.formats()[name].expected
    assert "notes.txt" in report["found"]
