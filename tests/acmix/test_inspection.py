"""What is said of uploaded data: a report that holds, or every fault by its file; and the command in its limits."""

import io
import json
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix.datasets.image_folder import ImageFolder
from acmix.errors import DatasetCorrupt
from acmix.inspection import contact_sheet, reports
from acmix.inspection.command import Request, inspect
from acmix.inspection.content import Content
from acmix.inspection.findings import look_at
from acmix.inspection.formats._contract import Format
from acmix.inspection.progress import Progress

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 210)


def _noise(seed: int, size=(12, 10)) -> Image.Image:
    """A picture like no other."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _photos(
    place: Path, *, splits: Iterable[str] = ("train", "val", "test"), images: int = 12, classes=("cat", "dog")
) -> Path:
    """So many different pictures in each class of each split."""
    seed = 0
    for split in splits:
        for name in classes:
            folder = place / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                seed += 1
                _noise(seed).save(folder / f"{number}.png")
    return place


def _zip(place: Path, file: Path, *, wrapped_in: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in place.rglob("*"):
            archive.write(path, Path(wrapped_in) / path.relative_to(place))
    return file


def _tar(place: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        archive.add(place, "some/folder")
    return file


def _inspect(into: Path, **request) -> dict:
    given = {"task": "classification", "format": "image_folder", **request}
    return inspect(Request(into, **given), Progress(io.StringIO()))


def _inspect_folder(tmp_path: Path, place: Path) -> dict:
    (tmp_path / "into").mkdir(exist_ok=True)
    return _inspect(tmp_path / "into", folder=place)


# Data that can be used


def test_what_is_ready_can_be_trained_on_as_the_report_says(tmp_path):
    _photos(tmp_path / "photos")
    _noise(99, (30, 40)).convert("L").save(tmp_path / "photos/train/cat/grey.jpg")
    report = _inspect(tmp_path / "into", archive=[_zip(tmp_path / "photos", tmp_path / "x", wrapped_in="my data/v2")])
    files = [path for path in (tmp_path / "photos").rglob("*") if path.is_file()]
    assert report["status"] == "ready"
    assert report["files"] == len(files) == 73
    assert report["size_bytes"] == sum(path.stat().st_size for path in files)
    assert (report["classes"], report["num_classes"]) == (["cat", "dog"], 2)
    assert report["splits"] == {
        "train": {"samples": 25, "by_class": {"cat": 13, "dog": 12}},
        "val": {"samples": 24, "by_class": {"cat": 12, "dog": 12}},
        "test": {"samples": 24, "by_class": {"cat": 12, "dog": 12}},
    }
    statistics = report["statistics"]
    assert statistics["image_sides"]["width"] == {"min": 12, "median": 12, "max": 30}
    assert statistics["image_sides"]["height"] == {"min": 10, "median": 10, "max": 40}
    assert statistics["modes"] == {"RGB": 72, "L": 1}
    assert statistics["formats"] == {"PNG": 72, "JPEG": 1}
    assert (statistics["duplicates"], report["warnings"]) == ([], [])
    assert report["root"] == "my data/v2"
    read = ImageFolder(tmp_path / "into/content", **report["options"])
    assert {name: len(read.split(name)) for name in report["splits"]} == {"train": 25, "val": 24, "test": 24}
    json.dumps(report)


def test_splits_that_are_missing_are_reported_as_training_cuts_them(tmp_path):
    report = _inspect_folder(tmp_path, _photos(tmp_path / "photos", splits=["train"], images=20))
    assert {name: split["samples"] for name, split in report["splits"].items()} == {"train": 32, "val": 4, "test": 4}


def test_the_hash_is_that_of_the_files_whatever_brought_them(tmp_path):
    photos = _photos(tmp_path / "photos")
    (photos / "notes.txt").write_text("mine")
    zipped, tarred = _zip(photos, tmp_path / "1"), _tar(photos, tmp_path / "2")
    reports = [
        _inspect(tmp_path / "a", archive=[zipped]),
        _inspect(tmp_path / "b", archive=[tarred]),
        _inspect(tmp_path / "c", archive=[tarred], unpack_only=True),
        _inspect_folder(tmp_path, photos),
    ]
    assert len({report["sha256"] for report in reports}) == 1
    assert [report["root"] for report in reports] == [".", "some/folder", "some/folder", "."]
    assert (reports[2]["status"], (tmp_path / "c/samples.png").exists()) == ("unpacked", False)


@pytest.mark.parametrize("change", ["content", "name", "place"])
def test_the_hash_changes_with_any_file(tmp_path, change):
    photos = _photos(tmp_path / "photos")
    before = _inspect_folder(tmp_path, photos)["sha256"]
    path = photos / "train/cat/0.png"
    if change == "content":
        _noise(1000).save(path)
    elif change == "name":
        path.rename(photos / "train/cat/x.png")
    else:
        path.rename(photos / "train/dog/x.png")
    assert _inspect_folder(tmp_path, photos)["sha256"] != before


def test_the_same_picture_in_two_splits_is_found_by_its_bytes_and_by_its_pixels(tmp_path):
    photos = _photos(tmp_path / "photos")
    (photos / "val/cat/same.png").write_bytes((photos / "train/cat/3.png").read_bytes())
    Image.open(photos / "train/dog/4.png").save(photos / "test/dog/again.bmp")
    (photos / "train/cat/twice.png").write_bytes((photos / "train/cat/5.png").read_bytes())
    report = _inspect_folder(tmp_path, photos)
    assert report["statistics"]["duplicates"] == [
        {"files": ("train/cat/3.png", "val/cat/same.png"), "splits": ("train", "val"), "same": "bytes"},
        {"files": ("train/dog/4.png", "test/dog/again.bmp"), "splits": ("train", "test"), "same": "pixels"},
    ]
    assert report["statistics"]["duplicates_total"] == 2
    assert report["statistics"]["duplicates_within_a_split"] == 1
    assert (
        "2 images of a split are also in another, such as train/cat/3.png and val/cat/same.png" in report["warnings"][0]
    )
    assert "1 images are in their split more than once" in report["warnings"][1]


def test_classes_that_are_few_uneven_or_absent_are_warned_of(tmp_path):
    photos = _photos(tmp_path / "photos", splits=["train"], images=2, classes=["cat"])
    _photos(tmp_path / "more", splits=["train", "val"], images=60, classes=["dog"])
    for path in (tmp_path / "more").rglob("*.png"):
        target = photos / path.relative_to(tmp_path / "more")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    warnings = "\n".join(_inspect_folder(tmp_path, photos)["warnings"])
    assert "train has fewer than 10 images of cat" in warnings
    assert "train is uneven: " in warnings
    assert "test has nothing of cat" in warnings


def test_one_class_alone_is_warned_of(tmp_path):
    report = _inspect_folder(tmp_path, _photos(tmp_path / "photos", classes=["cat"]))
    assert "only one class, cat" in report["warnings"][0]


def test_of_a_picture_of_many_frames_the_first_is_read(tmp_path):
    photos = _photos(tmp_path / "photos")
    first, second = Image.new("RGB", (12, 10), RED), Image.new("RGB", (12, 10), BLUE)
    for name in ("a.webp", "b.tiff", "c.png"):
        first.save(photos / "train/cat" / name, save_all=True, append_images=[second], lossless=True)
    assert _inspect_folder(tmp_path, photos)["status"] == "ready"
    split = ImageFolder(photos, folder=".").split("train")
    for index in range(len(split)):
        if not split.source(index)[-5].isdigit():
            assert tuple(split[index][0][:, 5, 5].tolist()) == RED


def test_what_macos_keeps_is_counted(tmp_path):
    photos = _photos(tmp_path / "photos")
    (photos / "train/cat/._0.png").write_bytes(b"x")
    report = _inspect(tmp_path / "into", archive=[_zip(photos, tmp_path / "x")])
    assert (report["files"], report["statistics"]["passed_over"]) == (72, 1)


# Data that cannot


def _bomb(path: Path) -> None:
    """A PNG whose header says 50,000 x 50,000 pixels."""
    chunks = (b"IHDR", struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))
    content = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


def _cut(path: Path) -> None:
    _noise(7, (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def test_every_picture_that_cannot_be_read_is_a_fault_of_its_file(tmp_path):
    photos = _photos(tmp_path / "photos")
    _cut(photos / "train/cat/cut.jpg")
    _bomb(photos / "train/dog/bomb.png")
    (photos / "val/cat/text.png").write_text("no picture")
    (photos / "val/dog/empty.webp").write_bytes(b"")
    _noise(8, (300, 3)).save(photos / "test/dog/strip.png")
    _noise(9).save(photos / "test/cat/gif.png", format="GIF")
    report = _inspect(tmp_path / "into", archive=[_zip(photos, tmp_path / "x")])
    assert report["status"] == "rejected"
    assert report["faults_total"] == 6
    told = {fault["file"]: fault for fault in report["faults"]}
    assert list(told) == [
        "train/cat/cut.jpg",
        "train/dog/bomb.png",
        "val/cat/text.png",
        "val/dog/empty.webp",
        "test/cat/gif.png",
        "test/dog/strip.png",
    ]
    for file, fault in told.items():
        assert fault["code"] == "dataset_corrupt"
        assert fault["message"].startswith(f"{file} cannot be read as an image")
        assert str(tmp_path) not in fault["message"]
    assert "decompression bomb" in told["train/dog/bomb.png"]["message"]
    assert "train/<class>/<image>" in report["expected"]
    assert report["found"].splitlines()[1] == "train/: 2 folders, 26 files (.png 25, .jpg 1)"
    assert not (tmp_path / "into/samples.png").exists()


def test_twenty_faults_are_told_and_all_are_counted(tmp_path):
    photos = _photos(tmp_path / "photos")
    for number in range(25):
        (photos / f"train/cat/{number}.jpg").write_bytes(b"x")
    report = _inspect_folder(tmp_path, photos)
    assert (len(report["faults"]), report["faults_total"]) == (20, 25)


def test_damaged_pictures_are_read_or_are_faults_and_never_break_anything(tmp_path):
    """200 of them in every format, damaged by a fixed seed; what the data set reads decides."""
    chance, photos = random.Random(3), _photos(tmp_path / "photos", splits=["val"])
    folder = photos / "train/cat"
    folder.mkdir(parents=True)
    (photos / "train/dog").mkdir()
    _noise(0).save(photos / "train/dog/1.png")
    for number in range(200):
        path = folder / f"{number}.{('jpg', 'png', 'webp', 'bmp', 'tif')[number % 5]}"
        _noise(number, (40, 30)).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.randrange(len(content))] if number % 7 == 0 else content)
    report = _inspect_folder(tmp_path, photos)
    photos_read, faults = ImageFolder(photos, folder="."), 0
    for split in map(photos_read.split, ("train", "val", "test")):
        for index in range(len(split)):
            try:
                split[index]
            except DatasetCorrupt:
                faults += 1
    assert report["faults_total"] == faults > 50


def test_a_tree_of_another_shape_is_rejected_with_all_its_faults(tmp_path):
    photos = _photos(tmp_path / "photos")
    (photos / "train/cat/labels.csv").write_text("x")
    (photos / "train/dog/more").mkdir()
    (photos / "train/bird").mkdir()
    (photos / "val/fish").mkdir()
    (photos / "test/readme.txt").write_text("x")
    (photos / "train/notes.txt").write_text("x")
    report = _inspect(tmp_path / "into", archive=[_zip(photos, tmp_path / "x", wrapped_in="wrapped")])
    assert {fault["file"]: fault["message"].partition(" is ")[2][:14] for fault in report["faults"]} == {
        "test/readme.txt": "a class that t",
        "train/bird": "an empty class",
        "train/cat/labels.csv": "no image file;",
        "train/dog/more": "no image file;",
        "train/notes.txt": "not a folder b",
        "val/fish": "a class that t",
    }
    assert report["faults_total"] == 6


def test_data_without_train_are_rejected_with_what_was_found(tmp_path):
    _photos(tmp_path / "photos", splits=["images", "labels"])
    report = _inspect(tmp_path / "into", archive=[_zip(tmp_path / "photos", tmp_path / "x")])
    assert report["faults"][0]["code"] == "dataset_missing"
    assert report["faults"][0]["message"] == "train is not a folder; images lie in train/<class>/"
    assert report["found"] == "images/: 2 folders, 24 files (.png 24)\nlabels/: 2 folders, 24 files (.png 24)"


def test_a_refused_archive_is_one_fault_and_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("fine.txt", "x")
        archive.writestr("../evil.txt", "x")
    report = _inspect(tmp_path / "into", archive=[tmp_path / "x"])
    assert [fault["code"] for fault in report["faults"]] == ["archive_refused"]
    assert "'../evil.txt'" in report["faults"][0]["message"]
    assert report["found"] == "nothing was unpacked"
    assert not list((tmp_path / "into/content").iterdir())
    assert not (tmp_path / "evil.txt").exists()


def test_another_sha256_than_was_declared_is_a_rejection_that_names_both(tmp_path):
    archive = _zip(_photos(tmp_path / "photos"), tmp_path / "x")
    report = _inspect(tmp_path / "into", archive=[archive], sha256="0" * 64)
    [fault] = report["faults"]
    actual = fault["message"].partition(" is ")[2][:64]
    assert f"{actual} and not {'0' * 64}" in fault["message"]
    assert _inspect(tmp_path / "into", archive=[archive], sha256=actual.upper())["status"] == "ready"


@pytest.mark.parametrize(
    ("request_of", "says"),
    [
        ({"format": "imagefolder"}, "nearest: image_folder"),
        ({"task": "translation"}, "no format is for the task 'translation'"),
        ({"options": {"colour": True}}, "options are: folder, image_px"),
        ({"options": {"image_px": 4}}, "option 'image_px'"),
        ({"options": {"folder": "/etc"}}, "folder='/etc' is not taken"),
    ],
)
def test_what_cannot_be_asked_for_is_a_fault(tmp_path, request_of, says):
    (tmp_path / "into").mkdir()
    report = _inspect(tmp_path / "into", folder=_photos(tmp_path / "photos"), **request_of)
    assert report["status"] == "rejected"
    assert says in report["faults"][0]["message"]


# Data that lie there already


def test_a_folder_is_looked_at_in_place(tmp_path):
    photos = _photos(tmp_path / "root/photos")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    (tmp_path / "into").mkdir()
    report = _inspect(tmp_path / "into", folder=tmp_path / "root", options={"image_px": 64})
    assert report["options"] == {"folder": "photos", "image_px": 64}
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["samples.png"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before
    assert _inspect(tmp_path / "into", folder=photos, sha256=report["sha256"])["status"] == "ready"
    changed = _inspect(tmp_path / "into", folder=photos, sha256="1" * 64)
    assert report["sha256"] in changed["faults"][0]["message"]


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(tmp_path):
    photos = _photos(tmp_path / "photos", splits=["train", "val"])
    (photos / "test").symlink_to(photos / "val")
    (tmp_path / "outside.png").write_bytes((photos / "train/cat/0.png").read_bytes())
    report = _inspect_folder(tmp_path, photos)
    assert report["splits"]["test"]["samples"] == 24
    (photos / "train/cat/x.png").symlink_to(tmp_path / "outside.png")
    assert "train/cat/x.png is a link out of" in _inspect_folder(tmp_path, photos)["faults"][0]["message"]


def test_a_folder_that_is_not_there_is_a_fault(tmp_path):
    assert _inspect(tmp_path, folder=tmp_path / "photos")["faults"][0]["code"] == "dataset_missing"


# Progress


def test_progress_is_told_once_a_second_at_most():
    out, times = io.StringIO(), iter([0.0, 0.5, 0.9, 1.0, 1.5, 2.1])
    progress = Progress(out, clock=lambda: next(times))
    for done in range(6):
        progress.of("checking")(done, None)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"progress": {"phase": "checking", "done": done, "of": None}} for done in (0, 3, 5)
    ]


def test_every_phase_is_told(tmp_path):
    archive, out = _zip(_photos(tmp_path / "photos"), tmp_path / "x"), io.StringIO()
    hours = iter(range(10**6))
    request = Request(tmp_path / "into", "classification", "image_folder", archive=[archive], sha256="0" * 64)
    inspect(request, Progress(out, clock=lambda: next(hours)))
    request = Request(tmp_path / "into", "classification", "image_folder", archive=[archive])
    inspect(request, Progress(out, clock=lambda: next(hours)))
    told = [json.loads(line)["progress"] for line in out.getvalue().splitlines()]
    assert list(dict.fromkeys(each["phase"] for each in told)) == ["hashing", "unpacking", "checking"]
    assert told[-1] == {"phase": "checking", "done": 72, "of": 72}


# The contact sheet


class _Objects:
    """Grey pictures of any task."""

    name, classes = "objects", ("thing", "other thing")

    def __init__(self, *targets) -> None:
        self.targets = targets

    def split(self, name: str):
        return self

    def source(self, index: int) -> str:
        return f"{index}.png"

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return torch.full((3, 120, 240), 100, dtype=torch.uint8), self.targets[index]


def _boxes(*, masks: bool = False) -> dict[str, torch.Tensor]:
    target = {
        "boxes": torch.tensor([[20.0, 30.0, 100.0, 110.0], [150.0, 10.0, 230.0, 60.0]]),
        "labels": torch.tensor([0, 1]),
        "areas": torch.tensor([6400.0, 4000.0]),
        "crowd": torch.tensor([False, True]),
    }
    if masks:
        target["masks"] = torch.zeros((2, 120, 240), dtype=torch.uint8)
        target["masks"][0, 60:110, 20:60] = 1
    return target


CELL_TOP = contact_sheet.GAP_PX + (contact_sheet.CELL_PX - 120) // 2  # of a picture half as high as wide
CELL_LEFT = contact_sheet.GAP_PX


def _drawn(target) -> np.ndarray:
    """The first sample's picture on the sheet."""
    sheet = np.asarray(contact_sheet.draw_sheet(_Objects(target)))
    return sheet[CELL_TOP : CELL_TOP + 120, CELL_LEFT : CELL_LEFT + 240]


def test_samples_are_spread_over_train(tmp_path):
    for name, colour in (("a", RED), ("b", GREEN), ("c", BLUE), ("d", RED)):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "photos/train" / name / f"{number}.png")
    sheet = contact_sheet.draw_sheet(ImageFolder(tmp_path, folder="photos"))
    step = contact_sheet.CELL_PX + contact_sheet.GAP_PX
    for row, colour in enumerate((RED, GREEN, BLUE, RED)):
        for column in range(4):
            assert sheet.getpixel((100 + column * step, 100 + row * (step + contact_sheet.CAPTION_PX))) == colour


def test_of_the_same_data_the_sheet_is_the_same(tmp_path):
    photos = ImageFolder(_photos(tmp_path), folder=".")
    contact_sheet.write(photos, tmp_path / "1.png")
    contact_sheet.write(photos, tmp_path / "2.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_the_class_stands_below_its_picture():
    captions = slice(CELL_LEFT + 0, CELL_LEFT + 240)
    rows = slice(
        contact_sheet.GAP_PX + contact_sheet.CELL_PX,
        contact_sheet.GAP_PX + contact_sheet.CELL_PX + contact_sheet.CAPTION_PX,
    )
    drawn = [np.asarray(contact_sheet.draw_sheet(_Objects(label)))[rows, captions] for label in (0, 1)]
    assert all((caption < 100).any() for caption in drawn)
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[0] < 100).sum() < (drawn[1] < 100).sum()


def test_boxes_masks_and_labels_are_drawn_where_they_are():
    plain, boxed, masked = _drawn(0), _drawn(_boxes()), _drawn(_boxes(masks=True))
    assert (plain == 100).all()
    assert (boxed[80, 20] != 100).any()
    assert (boxed[80, 99] != 100).any()
    assert (boxed[109, 60] != 100).any()
    assert (boxed[80, 60] == 100).all()
    assert (boxed[80, 110] == 100).all()
    assert (boxed[34:44, 24:60] != 100).any()  # the class's name
    assert (masked[80, 40] != 100).any()
    assert (masked[80, 80] == 100).all()


def test_a_label_map_is_tinted_by_class_and_left_alone_where_ignored():
    labels_HW = torch.full((120, 240), 255, dtype=torch.uint8)
    labels_HW[:, :80], labels_HW[:, 80:160] = 0, 1
    drawn = _drawn(labels_HW)
    assert len({tuple(drawn[60, x]) for x in (40, 120, 200)}) == 3
    assert (drawn[:, 160:] == 100).all()


def test_other_tasks_are_counted_by_their_targets(tmp_path):
    class Boxes(Format):
        name, task, layout, expected = "boxes", "detection", frozenset(), "boxes"

    class Maps(Boxes):
        task = "segmentation"

    labels_HW = torch.tensor([[1, 1, 255]], dtype=torch.uint8)
    content = Content("0" * 64, 1, 1)
    for form, target, by_class in [
        (Boxes, _boxes(), {"thing": 1, "other thing": 0}),
        (Maps, labels_HW, {"thing": 0, "other thing": 1}),
    ]:
        findings = look_at(_Objects(target), tmp_path, lambda done, of: None)
        report = reports.ready(form, content, findings, root=".", options={}, passed_over=0)
        assert report["splits"]["train"] == {"samples": 1, "by_class": by_class}


# The command


def _command(into: Path, *arguments: object, note_imports: bool = False) -> tuple[int, list[dict], str]:
    """Exit status, lines of stdout, stderr."""
    command = [sys.executable, *(["-X", "importtime"] if note_imports else []), "-m", "acmix", "inspect"]
    command += ["--into", into, "--task", "classification", "--format", "image_folder", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_command_tells_progress_and_ends_with_the_report(tmp_path):
    whole = _zip(_photos(tmp_path / "photos"), tmp_path / "x").read_bytes()
    parts = [tmp_path / "1", tmp_path / "2"]
    parts[0].write_bytes(whole[:7000])
    parts[1].write_bytes(whole[7000:])
    status, lines, _ = _command(
        tmp_path / "into", "--archive", parts[0], "--archive", parts[1], "--options", '{"image_px": 32}'
    )
    assert status == 0
    assert all(set(line["progress"]) == {"phase", "done", "of"} for line in lines[:-1])
    assert len(lines) > 1
    assert (lines[-1]["status"], lines[-1]["options"]) == ("ready", {"folder": ".", "image_px": 32})
    with Image.open(tmp_path / "into/samples.png") as sheet:
        assert sheet.size == (1000, 1112)


def test_the_command_refuses_an_archive_without_torch(tmp_path):
    (tmp_path / "x").write_bytes(b"no archive")
    status, lines, log = _command(tmp_path / "into", "--archive", tmp_path / "x", note_imports=True)
    assert (status, lines[-1]["status"]) == (0, "rejected")
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert "zstandard" in imported
    assert not imported & {"torch", "numpy", "PIL"}


def test_the_command_fails_where_its_memory_does_not_suffice(tmp_path):
    """A picture of 72 million pixels, which training would read, in 100 MB."""
    photos = _photos(tmp_path / "photos")
    Image.new("L", (9000, 8000)).save(photos / "train/cat/large.png")
    status, lines, log = _command(tmp_path, "--folder", photos, "--memory-bytes", 100 * 2**20)
    assert status == 1
    assert "MemoryError" in log
    assert all("status" not in line for line in lines)


def test_the_command_takes_lower_limits(tmp_path):
    archive = _zip(_photos(tmp_path / "photos"), tmp_path / "x")
    status, lines, _ = _command(tmp_path / "into", "--archive", archive, "--limits", '{"entries": 50}')
    assert (status, lines[-1]["faults_total"]) == (0, 1)
    assert "50 are the most" in lines[-1]["faults"][0]["message"]
