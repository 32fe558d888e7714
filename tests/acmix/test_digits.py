"""The digits come with scikit-learn, are cut the same for ever, and cost nothing to import."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from acmix import registry
from acmix.datasets import _scans
from acmix.datasets._split import cut
from acmix.datasets.digits import Digits
from acmix.errors import OptionInvalid


def _flat(split) -> torch.Tensor:
    return torch.stack([split[index][0] for index in range(len(split))])


def test_the_splits_have_the_published_sizes_and_share_no_scan():
    digits = Digits(Path())
    splits = {name: digits.split(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 1257, "val": 180, "test": 360}
    scans = torch.cat([_flat(split) for split in splits.values()]).flatten(1).unique(dim=0)
    assert len(scans) == 1797


def test_every_split_holds_every_digit_by_its_share():
    digits = Digits(Path())
    for name, least, most in (("train", 121, 129), ("val", 17, 19), ("test", 34, 38)):
        counts = Counter(digits.split(name).labels)
        assert sorted(counts) == list(range(10))
        assert least <= min(counts.values()) <= max(counts.values()) <= most


def test_the_cut_never_changes():
    """Recorded: results are only comparable while these stay."""
    digits = Digits(Path())
    assert digits.split("train").labels[:12] == [0, 3, 7, 8, 0, 1, 2, 3, 5, 6, 0, 1]
    assert digits.split("val").labels[:12] == [1, 2, 2, 7, 1, 3, 0, 0, 7, 2, 8, 7]
    assert digits.split("test").labels[:12] == [4, 5, 6, 9, 4, 7, 8, 9, 9, 6, 9, 9]


def test_an_image_is_rgb_bytes_with_an_integer_label():
    split = Digits(Path()).split("train")
    image_3HW, label = split[0]
    assert (image_3HW.dtype, image_3HW.shape, type(label)) == (torch.uint8, (3, 8, 8), int)
    assert _flat(split).amax() == 255
    assert torch.equal(image_3HW[0], image_3HW[2])


def test_image_px_enlarges_the_scans():
    digits = Digits(Path(), image_px=32)
    assert digits.split("val")[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("image_px", [7, 225, 8.0, "8"])
def test_an_image_px_out_of_bounds_is_refused_by_name(image_px):
    with pytest.raises(OptionInvalid, match="image_px"):
        registry.check_options(Digits, {"image_px": image_px}, where="dataset digits")


def test_mean_and_std_are_those_of_the_train_split():
    digits = Digits(Path())
    values = _flat(digits.split("train")).double() / 255
    assert values.mean().item() == pytest.approx(digits.mean[0], abs=1e-4)
    assert values.std(correction=0).item() == pytest.approx(digits.std[0], abs=1e-4)


def test_the_scans_are_scikit_learns_wherever_it_keeps_them(monkeypatch: pytest.MonkeyPatch):
    found = load_digits()
    for file in (_scans.FILE, Path("elsewhere.csv.gz")):
        monkeypatch.setattr(_scans, "FILE", file)
        scans, labels = _scans.digit_scans()
        assert np.array_equal(scans, found.images)
        assert np.array_equal(labels, found.target)
        assert (scans.dtype, labels.dtype) == (np.float64, np.int64)


def test_using_the_data_set_imports_neither_scikit_learn_nor_torchvision():
    code = "import pathlib, sys; from acmix.datasets.digits import Digits; Digits(pathlib.Path())"
    code += "\nsys.exit(bool({'sklearn', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cut_does_not_favour_classes_that_come_first():
    """1,000 classes of 3 in order: the tenth comes from all over, not from the first hundreds."""
    labels = [label for label in range(1000) for _ in range(3)]
    part, rest = cut(labels, [300])
    assert sorted([*part.tolist(), *rest.tolist()]) == list(range(3000))
    drawn = [labels[index] for index in part.tolist()]
    assert len(set(drawn)) == 300
    assert 450 < sum(drawn) / len(drawn) < 550


def test_a_class_of_one_sample_stays_in_train():
    part, rest = cut([0] * 30 + [1], [3])
    assert 30 not in part.tolist()
    assert 30 in rest.tolist()
