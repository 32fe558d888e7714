"""What is said of uploaded data: a report that holds, or every fault by its file."""

import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from acmix.datasets.image_folder import ImageFolder
from acmix.errors import DatasetCorrupt
from acmix.inspection.command import Request, inspect
from acmix.inspection.progress import Progress
from tests.acmix.photos import noise, write_photos, zip_of

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 210)


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
    write_photos(tmp_path / "photos")
    noise(99, (30, 40)).convert("L").save(tmp_path / "photos/train/cat/grey.jpg")
    report = _inspect(tmp_path / "into", archive=[zip_of(tmp_path / "photos", tmp_path / "x", wrapped_in="my data/v2")])
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
    report = _inspect_folder(tmp_path, write_photos(tmp_path / "photos", splits=["train"], images=20))
    assert {name: split["samples"] for name, split in report["splits"].items()} == {"train": 32, "val": 4, "test": 4}


def test_the_hash_is_that_of_the_files_whatever_brought_them(tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / "notes.txt").write_text("mine")
    zipped, tarred = zip_of(photos, tmp_path / "1"), _tar(photos, tmp_path / "2")
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
    photos = write_photos(tmp_path / "photos")
    before = _inspect_folder(tmp_path, photos)["sha256"]
    path = photos / "train/cat/0.png"
    if change == "content":
        noise(1000).save(path)
    elif change == "name":
        path.rename(photos / "train/cat/x.png")
    else:
        path.rename(photos / "train/dog/x.png")
    assert _inspect_folder(tmp_path, photos)["sha256"] != before


def test_the_same_picture_in_two_splits_is_found_by_its_bytes_and_by_its_pixels(tmp_path):
    photos = write_photos(tmp_path / "photos")
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
    photos = write_photos(tmp_path / "photos", splits=["train"], images=2, classes=["cat"])
    write_photos(tmp_path / "more", splits=["train", "val"], images=60, classes=["dog"])
    for path in (tmp_path / "more").rglob("*.png"):
        target = photos / path.relative_to(tmp_path / "more")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    warnings = "\n".join(_inspect_folder(tmp_path, photos)["warnings"])
    assert "train has fewer than 10 images of cat" in warnings
    assert "train is uneven: " in warnings
    assert "test has nothing of cat" in warnings


def test_one_class_alone_is_warned_of(tmp_path):
    report = _inspect_folder(tmp_path, write_photos(tmp_path / "photos", classes=["cat"]))
    assert "only one class, cat" in report["warnings"][0]


def test_of_a_picture_of_many_frames_the_first_is_read(tmp_path):
    photos = write_photos(tmp_path / "photos")
    first, second = Image.new("RGB", (12, 10), RED), Image.new("RGB", (12, 10), BLUE)
    for name in ("a.webp", "b.tiff", "c.png"):
        first.save(photos / "train/cat" / name, save_all=True, append_images=[second], lossless=True)
    assert _inspect_folder(tmp_path, photos)["status"] == "ready"
    split = ImageFolder(photos, folder=".").split("train")
    for index in range(len(split)):
        if not split.source(index)[-5].isdigit():
            assert tuple(split[index][0][:, 5, 5].tolist()) == RED


def test_what_macos_keeps_is_counted(tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / "train/cat/._0.png").write_bytes(b"x")
    report = _inspect(tmp_path / "into", archive=[zip_of(photos, tmp_path / "x")])
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
    noise(7, (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def test_every_picture_that_cannot_be_read_is_a_fault_of_its_file(tmp_path):
    photos = write_photos(tmp_path / "photos")
    _cut(photos / "train/cat/cut.jpg")
    _bomb(photos / "train/dog/bomb.png")
    (photos / "val/cat/text.png").write_text("no picture")
    (photos / "val/dog/empty.webp").write_bytes(b"")
    noise(8, (300, 3)).save(photos / "test/dog/strip.png")
    noise(9).save(photos / "test/cat/gif.png", format="GIF")
    report = _inspect(tmp_path / "into", archive=[zip_of(photos, tmp_path / "x")])
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
    photos = write_photos(tmp_path / "photos")
    for number in range(25):
        (photos / f"train/cat/{number}.jpg").write_bytes(b"x")
    report = _inspect_folder(tmp_path, photos)
    assert (len(report["faults"]), report["faults_total"]) == (20, 25)


def test_damaged_pictures_are_read_or_are_faults_and_never_break_anything(tmp_path):
    """200 of them in every format, damaged by a fixed seed; what the data set reads decides."""
    chance, photos = random.Random(3), write_photos(tmp_path / "photos", splits=["val"])
    folder = photos / "train/cat"
    folder.mkdir(parents=True)
    (photos / "train/dog").mkdir()
    noise(0).save(photos / "train/dog/1.png")
    for number in range(200):
        path = folder / f"{number}.{('jpg', 'png', 'webp', 'bmp', 'tif')[number % 5]}"
        noise(number, (40, 30)).save(path)
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
    photos = write_photos(tmp_path / "photos")
    (photos / "train/cat/labels.csv").write_text("x")
    (photos / "train/dog/more").mkdir()
    (photos / "train/bird").mkdir()
    (photos / "val/fish").mkdir()
    (photos / "test/readme.txt").write_text("x")
    (photos / "train/notes.txt").write_text("x")
    report = _inspect(tmp_path / "into", archive=[zip_of(photos, tmp_path / "x", wrapped_in="wrapped")])
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
    write_photos(tmp_path / "photos", splits=["images", "labels"])
    report = _inspect(tmp_path / "into", archive=[zip_of(tmp_path / "photos", tmp_path / "x")])
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
    archive = zip_of(write_photos(tmp_path / "photos"), tmp_path / "x")
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
    report = _inspect(tmp_path / "into", folder=write_photos(tmp_path / "photos"), **request_of)
    assert report["status"] == "rejected"
    assert says in report["faults"][0]["message"]


# Data that lie there already


def test_a_folder_is_looked_at_in_place(tmp_path):
    photos = write_photos(tmp_path / "root/photos")
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
    photos = write_photos(tmp_path / "photos", splits=["train", "val"])
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
    archive, out = zip_of(write_photos(tmp_path / "photos"), tmp_path / "x"), io.StringIO()
    hours = iter(range(10**6))
    request = Request(tmp_path / "into", "classification", "image_folder", archive=[archive], sha256="0" * 64)
    inspect(request, Progress(out, clock=lambda: next(hours)))
    request = Request(tmp_path / "into", "classification", "image_folder", archive=[archive])
    inspect(request, Progress(out, clock=lambda: next(hours)))
    told = [json.loads(line)["progress"] for line in out.getvalue().splitlines()]
    assert list(dict.fromkeys(each["phase"] for each in told)) == ["hashing", "unpacking", "checking"]
    assert told[-1] == {"phase": "checking", "done": 72, "of": 72}
