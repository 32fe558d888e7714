"""ADE20K's layout: 150 classes, and 0 for a pixel of none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix.datasets.ade20k import Ade20k
from acmix.errors import DatasetCorrupt, DatasetMissing

WIDTH, HEIGHT = 15, 10
HEADER = "Idx\tRatio\tTrain\tVal\tName"


def _values() -> np.ndarray:
    return np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) + 1


def _write(root: Path, *, images: int = 20, values_HW: np.ndarray | None = None) -> Path:
    place = root / "ADEChallengeData2016"
    mask = Image.fromarray((_values() if values_HW is None else values_HW).astype(np.uint8))
    for part, letters in (("training", "train"), ("validation", "val")):
        for kind in ("images", "annotations"):
            (place / kind / part).mkdir(parents=True)
        for number in range(1, images + 1):
            name = f"ADE_{letters}_{number:08}"
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(place / f"images/{part}/{name}.jpg")
            mask.save(place / f"annotations/{part}/{name}.png")
    return place


def test_value_k_is_class_k_minus_1_and_0_is_ignored(tmp_path):
    values_HW = _values()
    values_HW[3] = 0
    _write(tmp_path, values_HW=values_HW)
    scenes = Ade20k(tmp_path, folder="ADEChallengeData2016")
    assert (scenes.num_classes, scenes.image_px) == (150, 512)
    image_3HW, labels_HW = scenes.split("train")[0]
    assert (image_3HW.dtype, image_3HW.shape, labels_HW.dtype) == (torch.uint8, (3, HEIGHT, WIDTH), torch.uint8)
    assert np.array_equal(labels_HW.numpy(), np.where(values_HW == 0, 255, values_HW - 1))


def test_validation_is_test_and_a_tenth_of_training_is_val(tmp_path):
    _write(tmp_path)
    scenes = Ade20k(tmp_path, folder="ADEChallengeData2016")
    splits = {name: scenes.split(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "val": 2, "test": 20}
    assert splits["test"].source(0) == "images/validation/ADE_val_00000001.jpg"
    assert splits["val"].source(0).startswith("images/training/")
    again = Ade20k(tmp_path, folder="ADEChallengeData2016").split("val")
    assert [again.source(index) for index in range(2)] == [splits["val"].source(index) for index in range(2)]


def test_classes_are_named_by_the_published_table_as_it_is(tmp_path):
    """Some of its numbers, and some of its names, have a space behind them."""
    rows = [f"{number}{' ' * (number % 3)}\t0.1\t20\t2\tname {number} " for number in range(1, 151)]
    (_write(tmp_path) / "objectInfo150.txt").write_text("\n".join([HEADER, *rows, ""]))
    classes = Ade20k(tmp_path, folder="ADEChallengeData2016").classes
    assert (classes[0], classes[149], len(classes)) == ("name 1", "name 150", 150)


def test_without_the_table_classes_are_numbered(tmp_path):
    _write(tmp_path)
    assert Ade20k(tmp_path, folder="ADEChallengeData2016").classes == tuple(map(str, range(1, 151)))


@pytest.mark.parametrize("rows", [[], ["1\t0.1\t20\t2\twall"], [f"{number}\tx" for number in (2, *range(2, 151))]])
def test_another_table_is_named(tmp_path, rows):
    (_write(tmp_path) / "objectInfo150.txt").write_text("\n".join([HEADER, *rows]))
    with pytest.raises(DatasetCorrupt, match=r"objectInfo150\.txt must have a row for each class from 1 to 150"):
        Ade20k(tmp_path, folder="ADEChallengeData2016")


@pytest.mark.parametrize("value", [151, 255])
def test_a_value_beyond_the_classes_is_named_with_its_file(tmp_path, value):
    _write(tmp_path, values_HW=np.full((HEIGHT, WIDTH), value))
    split = Ade20k(tmp_path, folder="ADEChallengeData2016").split("test")
    says = rf"annotations/validation/ADE_val_00000001\.png has a pixel of value {value}; values here are 0 to 150"
    with pytest.raises(DatasetCorrupt, match=says):
        split[0]


@pytest.mark.parametrize(
    "gone", ["images/training", "images/validation", "annotations/training", "annotations/validation"]
)
def test_a_missing_folder_is_named(tmp_path, gone):
    place = _write(tmp_path)
    (place / gone).rename(place / "elsewhere")
    with pytest.raises(DatasetMissing, match=f"{gone} is not a folder"):
        Ade20k(tmp_path, folder="ADEChallengeData2016")


def test_a_missing_mask_is_named(tmp_path):
    (_write(tmp_path) / "annotations/training/ADE_train_00000004.png").unlink()
    with pytest.raises(DatasetMissing, match=r"ADE_train_00000004\.jpg has no mask ADE_train_00000004\.png"):
        Ade20k(tmp_path, folder="ADEChallengeData2016")


def test_a_link_out_of_the_data_root_is_refused(tmp_path):
    place = _write(tmp_path / "root")
    (place / "images").rename(tmp_path / "outside")
    (place / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(DatasetCorrupt, match="images/training is a link out of the data root"):
        Ade20k(tmp_path / "root", folder="ADEChallengeData2016")
