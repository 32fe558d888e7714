"""Composed scenes: the same for ever, at any size, with boxes, masks and label maps that say the same."""

from pathlib import Path

import pytest
import torch

from acmix import registry
from acmix.datasets._digit_scenes import cut_outs
from acmix.datasets.digits_detection import DigitsDetection
from acmix.datasets.digits_segmentation import DigitsSegmentation

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
ROOT = Path()


def test_a_scene_is_the_same_in_every_process_and_order():
    first, again = (DigitsDetection(ROOT).split("train") for _ in range(2))
    last_to_first = [again[index] for index in (5, 3, 0)][::-1]
    for index, (image, target) in zip((0, 3, 5), last_to_first, strict=True):
        expected, expected_target = first[index]
        assert torch.equal(image, expected)
        assert all(torch.equal(target[name], expected_target[name]) for name in expected_target)


def test_boxes_fit_the_masks_and_masks_do_not_meet():
    split = DigitsDetection(ROOT, image_px=96).split("val")
    for image_3HW, target in (split[index] for index in range(len(split))):
        assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, 96, 96))
        assert target["masks"].sum(0).max() <= 1
        for box, mask_HW, area in zip(target["boxes"], target["masks"], target["areas"], strict=True):
            rows, columns = mask_HW.nonzero().unbind(1)
            plain = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(each) for each in plain]
            assert area == len(rows)


def test_label_maps_are_those_of_the_masks():
    boxes, maps = DigitsDetection(ROOT).split("test"), DigitsSegmentation(ROOT).split("test")
    for index in range(20):
        (image, target), (same_image, labels_HW) = boxes[index], maps[index]
        painted = torch.zeros_like(labels_HW)
        for label, mask_HW in zip(target["labels"], target["masks"], strict=True):
            painted[mask_HW.bool()] = int(label) + 1
        assert torch.equal(image, same_image)
        assert torch.equal(labels_HW, painted)


def test_no_scan_is_in_the_scenes_of_two_splits():
    scans = {name: {each.tobytes() for each in cut_outs(name).opacities} for name in ("train", "val", "test")}
    assert [len(cut_outs(name).labels) for name in scans] == [1257, 180, 360]
    assert not scans["train"] & scans["val"]
    assert not scans["train"] & scans["test"]


@pytest.mark.parametrize("image_px", [32, 100, 300])
def test_scenes_come_at_any_size(image_px: int):
    split = DigitsDetection(ROOT, image_px=image_px, train_scenes=7).split("train")
    image_3HW, target = split[6]
    assert len(split) == 7
    assert image_3HW.shape == (3, image_px, image_px)
    assert target["masks"].shape[1:] == (image_px, image_px)
    assert split.source(6) == "scene 6 of train"
    with pytest.raises(IndexError):
        split[7]


def test_every_digit_is_drawn_about_as_often():
    split = DigitsDetection(ROOT, image_px=32).split("train")
    counts = torch.bincount(torch.cat([split[index][1]["labels"] for index in range(400)]), minlength=10)
    assert counts.min() > 0.6 * counts.float().mean()


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="the package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_clothing_makes_scenes_too(task: str):
    entry = registry.get("datasets", f"fashion_mnist_{task}")
    dataset = entry(ROOT, image_px=64)
    image_3HW, target = dataset.split("val")[0]
    assert image_3HW.shape == (3, 64, 64)
    if task == "detection":
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
    else:
        assert dataset.classes[0] == "background"
        assert set(target.unique().tolist()) <= set(range(len(dataset.classes)))
