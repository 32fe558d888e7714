"""Every format that a data set can be declared as: small trees of real scans, inspected as uploaded ones are."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acmix import registry
from acmix.errors import DatasetCorrupt
from acmix.formats import FORMATS
from acmix.inspection import formats
from acmix.inspection.command import Request, inspect
from acmix.inspection.progress import Progress
from tests.acmix.trees import TREES


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


def _spoil_coco(place: Path) -> list[tuple[str, str]]:
    index = place / "annotations/train.json"
    document = json.loads(index.read_text())
    rows = document["annotations"]
    rows[0]["bbox"] = [1, 2]
    rows[1]["category_id"] = 77
    rows[2]["area"] = -1
    rows[4]["id"] = rows[3]["id"]
    index.write_text(json.dumps(document))
    (place / "train/0.png").unlink()
    (place / "train/5.png").unlink()
    told = [
        f"annotation {rows[0]['id']}: bbox [1, 2] is not four finite numbers",
        f"annotation {rows[1]['id']}: category_id 77 is none of categories",
        f"annotation {rows[2]['id']}: area -1 is no finite number",
        f"annotation id {rows[3]['id']} stands there twice",
    ]
    missing = [(f"train/{number}.png", f"'{number}.png' is not in train") for number in (0, 5)]
    return [("annotations/train.json", each) for each in told] + missing


def _spoil_voc(place: Path) -> list[tuple[str, str]]:
    annotations = place / "Annotations"
    (annotations / "0.xml").write_text("<annotation><object>")
    flat = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>1</xmax><ymax>9</ymax></bndbox>"
    nameless = f"<object><name></name>{flat}</object>"
    hard = f"<object><name>1</name><difficult>2</difficult>{flat}</object>"
    (annotations / "2.xml").write_text(f"<annotation>{nameless}{hard}</annotation>")
    (annotations / "7.xml").write_text("<picture/>")
    return [
        ("Annotations/0.xml", "is no XML"),
        ("Annotations/2.xml", "object 1: its name is ''"),
        ("Annotations/2.xml", "object 2: difficult is '2'"),
        ("Annotations/7.xml", "holds a 'picture'"),
    ]


def _spoil_voc_files(place: Path) -> list[tuple[str, str]]:
    (place / "JPEGImages/1.jpg").unlink()
    (place / "Annotations/4.xml").unlink()
    (place / "ImageSets/Main/val.txt").write_text("6\n7\n6\n8\n")
    return [
        ("JPEGImages/1.jpg", "ImageSets/Main/train.txt: '1.jpg' is not in JPEGImages"),
        ("Annotations/4.xml", "ImageSets/Main/train.txt: '4.xml' is not in Annotations"),
        ("ImageSets/Main/val.txt", "lists '6' twice"),
        ("JPEGImages/8.jpg", "ImageSets/Main/val.txt: '8.jpg' is not in JPEGImages"),
        ("Annotations/8.xml", "ImageSets/Main/val.txt: '8.xml' is not in Annotations"),
    ]


def _spoil_voc_boxes(place: Path) -> list[tuple[str, str]]:
    told = []
    for number, (left, right, why) in {1: (9, 3, "has no area"), 6: (900, 910, "lies outside of its image")}.items():
        box = f"<bndbox><xmin>{left}</xmin><ymin>5</ymin><xmax>{right}</xmax><ymax>9</ymax></bndbox>"
        path = place / "Annotations" / f"{number}.xml"
        text = path.read_text().replace("</annotation>", f"<object><name>1</name>{box}</object></annotation>")
        path.write_text(text)
        told.append((f"Annotations/{number}.xml", why))
    return told


def _spoil_coco_boxes(place: Path) -> list[tuple[str, str]]:
    index = place / "annotations/train.json"
    document = json.loads(index.read_text())
    rows = document["annotations"]
    rows[0]["bbox"] = [3, 3, 0, 5]
    rows[1]["segmentation"] = [[1, 2, 3]]
    rows[2]["bbox"] = [300, 3, 5, 5]
    index.write_text(json.dumps(document))
    whys = {0: "has no area", 2: "lies outside of its image", 1: ""}
    return [
        ("annotations/train.json", f"annotation {rows[row]['id']}: {'box ' * bool(why)}") for row, why in whys.items()
    ]


def _spoil_ade20k(place: Path) -> list[tuple[str, str]]:
    (place / "images/training/2.jpg").unlink()
    (place / "annotations/training/4.png").unlink()
    (place / "annotations/validation/7.png").rename(place / "annotations/validation/8.png")
    return [
        ("annotations/training/2.png", "has no image of that name"),
        ("images/training/4.jpg", "has no mask 4.png"),
        ("images/validation/7.jpg", "has no mask 7.png"),
        ("annotations/validation/8.png", "has no image of that name"),
    ]


def _spoil_mask_folder(place: Path) -> list[tuple[str, str]]:
    (place / "train/images/notes.txt").write_text("x")
    (place / "train/images/1.jpg").write_bytes((place / "train/images/1.png").read_bytes())
    (place / "train/masks/2.tif").write_bytes(b"")
    return [
        ("train/images/1.png", "have one name"),
        ("train/images/notes.txt", "is no file with a suffix read here"),
        ("train/masks/2.tif", "is no file with a suffix read here"),
    ]


def _spoil_imagenet(place: Path) -> list[tuple[str, str]]:
    (place / "train/n00/notes.txt").write_text("x")
    (place / "train/n02").mkdir()
    (place / "val/n07").mkdir()
    return [
        ("train/n00/notes.txt", "is no image file"),
        ("train/n02", "is an empty class"),
        ("val/n07", "is a class that train lacks"),
    ]


SPOILED = {
    "coco": ("coco", _spoil_coco),
    "coco, boxes": ("coco", _spoil_coco_boxes),
    "voc": ("voc", _spoil_voc),
    "voc, files": ("voc", _spoil_voc_files),
    "voc, boxes": ("voc", _spoil_voc_boxes),
    "ade20k": ("ade20k", _spoil_ade20k),
    "mask_folder": ("mask_folder", _spoil_mask_folder),
    "imagenet": ("imagenet", _spoil_imagenet),
    "image_folder": ("image_folder", _spoil_imagenet),
}


@pytest.mark.parametrize(("name", "spoil"), SPOILED.values(), ids=SPOILED)
def test_faults_of_an_index_are_told_together_each_with_its_file(
    tmp_path: Path, name: str, spoil: Callable[[Path], list[tuple[str, str]]]
):
    (tmp_path / "tree").mkdir()
    TREES[name](tmp_path / "tree")
    expected = spoil(tmp_path / "tree")
    report = _inspect(tmp_path, name)
    assert report["status"] == "rejected"
    assert [fault["file"] for fault in report["faults"]] == [file for file, _ in expected], report["faults"]
    for fault, (_, told) in zip(report["faults"], expected, strict=True):
        assert told in fault["message"]
        assert str(tmp_path) not in fault["message"]
    assert report["faults_total"] == len(expected)


def test_of_more_faults_than_are_told_the_number_is(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    TREES["coco"](tmp_path / "tree")
    index = tmp_path / "tree/annotations/train.json"
    document = json.loads(index.read_text())
    document["annotations"] += [{"id": 1000 + number, "image_id": 99, "category_id": 0} for number in range(30)]
    index.write_text(json.dumps(document))
    report = _inspect(tmp_path, "coco")
    assert report["faults_total"] == 30
    assert [fault["message"].split()[2] for fault in report["faults"]] == [f"{1000 + number}:" for number in range(20)]
    with pytest.raises(DatasetCorrupt, match="annotation 1000: image_id 99 is none of images"):
        registry.get("datasets", "coco")(tmp_path, folder="tree")
