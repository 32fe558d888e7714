"""ImageNet's layout: classes by wnid, val in folders or flat with its list; every refusal names its file."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from acmix.datasets.image_folder import ImageFolder
from acmix.datasets.imagenet import ImageNet
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

TENCH, CRANE, MACHINE = WNIDS = ("n01440764", "n02012849", "n03126707")
COLOURS = dict(zip(WNIDS, ((200, 20, 20), (20, 200, 20), (20, 20, 200)), strict=True))
VAL = {"ILSVRC2012_val_00000001": MACHINE, "ILSVRC2012_val_00000002": TENCH, "ILSVRC2012_val_00000003": MACHINE}
SOLUTION = "ImageId,PredictionString\n" + "".join(
    f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for name, wnid in VAL.items()
)
ANNOTATIONS = "".join(f"{name}.JPEG\t{wnid}\t0\t32\t44\t62\n" for name, wnid in VAL.items())


def _save(path: Path, wnid: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), COLOURS[wnid]).save(path, format="JPEG")


def _write(root: Path, *, flat: bool = False, images: int = 10, **texts: str) -> Path:
    """The layout, with text files by their name without suffix."""
    place = root / "imagenet"
    for wnid in WNIDS:
        for number in range(images):
            _save(place / f"train/{wnid}/{wnid}_{number}.JPEG", wnid)
    for name, wnid in VAL.items():
        _save(place / "val" / ("" if flat else wnid) / f"{name}.JPEG", wnid)
    for name, text in texts.items():
        (place / name.replace("__", "/")).with_suffix(".csv" if "solution" in name else ".txt").write_text(text)
    return place


def test_val_is_test_and_a_tenth_of_train_is_val(tmp_path):
    _write(tmp_path)
    photos = ImageNet(tmp_path, folder="imagenet", image_px=64)
    assert (photos.classes, photos.image_px) == (WNIDS, 64)
    splits = {name: photos.split(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 27, "val": 3, "test": 3}
    image_3HW, label = splits["train"][26]
    assert (image_3HW.dtype, image_3HW.shape, label) == (torch.uint8, (3, 10, 12), 2)
    assert splits["train"].source(0).startswith(f"train/{TENCH}/")
    for image_3HW, label in splits["test"]:
        assert (image_3HW[:, 5, 5] - torch.tensor(COLOURS[WNIDS[label]])).abs().amax() <= 8


def test_it_cuts_train_as_a_folder_of_images_does(tmp_path):
    _write(tmp_path)
    splits = [kind(tmp_path, folder="imagenet").split("val") for kind in (ImageNet, ImageFolder)]
    assert splits[0].files == splits[1].files


@pytest.mark.parametrize(
    "texts",
    [
        {"LOC_val_solution": SOLUTION},
        {"val_annotations": ANNOTATIONS},
        {"val__val_annotations": ANNOTATIONS},
        {"val_annotations": "\n" + ANNOTATIONS.replace("\t", " ")},
    ],
    ids=["LOC_val_solution.csv", "val_annotations.txt", "in val", "with spaces"],
)
def test_a_flat_val_takes_its_labels_from_a_list(tmp_path, texts):
    _write(tmp_path, flat=True, **texts)
    split = ImageNet(tmp_path, folder="imagenet").split("test")
    found = {Path(split.source(index)).stem: WNIDS[split[index][1]] for index in range(len(split))}
    assert found == VAL


def test_a_test_without_labels_is_passed_over(tmp_path):
    place = _write(tmp_path)
    _save(place / "test/ILSVRC2012_test_00000001.JPEG", TENCH)
    assert len(ImageNet(tmp_path, folder="imagenet").split("test")) == len(VAL)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_synset_mapping", "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"),
        ("words", "n00001740\tentity\nn01440764\ttench, Tinca tinca\nn02012849\tcrane\nn03126707\tcrane\n"),
    ],
)
def test_classes_are_named_by_a_file_and_two_that_are_alike_by_their_wnids_too(tmp_path, name, text):
    _write(tmp_path, **{name: text})
    assert ImageNet(tmp_path, folder="imagenet").classes == (
        "tench, Tinca tinca",
        "crane (n02012849)",
        "crane (n03126707)",
    )


def test_a_class_without_a_name_keeps_its_wnid(tmp_path):
    _write(tmp_path, words="n02012849\tcrane\nn01440764\n")
    assert ImageNet(tmp_path, folder="imagenet").classes == (TENCH, "crane", MACHINE)


def test_a_flat_val_without_its_list_is_refused_with_what_would_do(tmp_path):
    _write(tmp_path, flat=True, ILSVRC2012_validation_ground_truth="490\n361\n171\n")
    says = r"val is flat, and neither LOC_val_solution\.csv nor val_annotations\.txt is there"
    with pytest.raises(DatasetMissing, match=says) as caught:
        ImageNet(tmp_path, folder="imagenet")
    assert "a folder a wnid" in caught.value.reason().hint


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (
            SOLUTION + "ILSVRC2012_val_00000004,n01440764 1 2 3 4\n",
            DatasetMissing,
            "a label of 'ILSVRC2012_val_00000004'",
        ),
        (SOLUTION.replace("_00000002,", "_00000001,"), DatasetCorrupt, "labels an image twice or not at all"),
        (
            SOLUTION.replace(f"{TENCH} 1 2 3 4 {TENCH} 5 6 7 8 ", ""),
            DatasetCorrupt,
            "labels an image twice or not at all",
        ),
        (SOLUTION.replace(TENCH, "n99999999"), DatasetCorrupt, "_00000002 in 'n99999999', a class that train lacks"),
        ("\n".join(SOLUTION.split("\n")[:3]), DatasetCorrupt, r"val_00000003\.JPEG has no label in .*LOC_val_solution"),
        (SOLUTION + "alone\n", DatasetCorrupt, r"has the line \['alone'\]; each needs an image and its class"),
    ],
    ids=["no such image", "twice", "no class", "unknown class", "too few", "one column"],
)
def test_a_list_that_cannot_be_is_named(tmp_path, text, error, says):
    _write(tmp_path, flat=True, LOC_val_solution=text)
    with pytest.raises(error, match=says) as caught:
        ImageNet(tmp_path, folder="imagenet")
    assert "LOC_val_solution.csv" in caught.value.message


@pytest.mark.parametrize("gone", ["train", "val"])
def test_a_missing_part_is_named(tmp_path, gone):
    place = _write(tmp_path)
    (place / gone).rename(place / "elsewhere")
    with pytest.raises(DatasetMissing, match=f"imagenet/{gone} is not a folder"):
        ImageNet(tmp_path, folder="imagenet")


def _other_file(place: Path) -> None:
    (place / "val/list.csv").write_text("x")


def _strange_class(place: Path) -> None:
    (place / "val").rename(place / "old")
    _save(place / "val/n99999999/a.JPEG", TENCH)


def _flat_train(place: Path) -> None:
    _save(place / "train/a.JPEG", TENCH)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_other_file, r"val/list\.csv is no image file"),
        (_strange_class, "val/n99999999 is a class that train lacks"),
        (_flat_train, r"train/a\.JPEG is not a folder below the data root"),
    ],
)
def test_a_tree_of_another_shape_is_refused_and_the_place_named(tmp_path, spoil, says):
    spoil(_write(tmp_path, flat=True, LOC_val_solution=SOLUTION))
    with pytest.raises(DatasetCorrupt, match=says):
        ImageNet(tmp_path, folder="imagenet")


@pytest.mark.parametrize("link", ["train", f"val/{min(VAL)}.JPEG", "val", "LOC_val_solution.csv", "words.txt"])
def test_a_link_out_of_the_data_root_is_refused_wherever_it_is(tmp_path, link):
    place = _write(tmp_path / "root", flat=True, LOC_val_solution=SOLUTION, words="n01440764\ttench\n")
    outside = tmp_path / "outside"
    (place / link).rename(outside)
    (place / link).symlink_to(outside)
    with pytest.raises(DatasetCorrupt, match=r"out of the data root|below the data root"):
        ImageNet(tmp_path / "root", folder="imagenet")


def test_a_folder_out_of_the_data_root_is_refused(tmp_path):
    _write(tmp_path)
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        ImageNet(tmp_path / "imagenet", folder="../imagenet")
