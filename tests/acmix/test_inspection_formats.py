"""Every format that a data set can be declared as: small trees of real scans, inspected as uploaded ones are."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acmix import registry
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
