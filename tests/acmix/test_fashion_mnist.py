"""Fashion-MNIST is read by our own IDX reader, which believes nothing that a header says."""

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch

from acmix.datasets.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid


def _idx(dims: tuple[int, ...], content: bytes, *, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + content


def _write(root: Path, *, zipped: bool = True) -> Path:
    """A data set of 20 train and 3 test images below the root; image i is filled with i."""
    place = root / "fashion"
    place.mkdir(parents=True)
    for prefix, samples in (("train", 20), ("t10k", 3)):
        images = _idx((samples, 28, 28), b"".join(bytes([index]) * 784 for index in range(samples)))
        labels = _idx((samples,), bytes(index % 10 for index in range(samples)))
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = place / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return place


@pytest.mark.parametrize("zipped", [True, False], ids=["gzip", "plain"])
def test_a_folder_of_ones_own_is_read(tmp_path, zipped):
    _write(tmp_path, zipped=zipped)
    fashion = FashionMnist(tmp_path, folder="fashion")
    assert [len(fashion.split(name)) for name in ("train", "val", "test")] == [18, 2, 3]
    for name in ("train", "val"):
        for image_3HW, label in (fashion.split(name)[index] for index in range(len(fashion.split(name)))):
            assert image_3HW.shape == (3, 28, 28)
            assert label == image_3HW[0, 0, 0] % 10


def test_the_published_files_are_read():
    if not DEBIAN_FOLDER.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{DEBIAN_FOLDER} is absent: Debian's package dataset-fashion-mnist holds it; .ci/run installs it")
    fashion = FashionMnist(Path())
    assert [len(fashion.split(name)) for name in ("train", "val", "test")] == [54_000, 6_000, 10_000]
    assert torch.tensor(fashion.split("val").labels).bincount().tolist() == [600] * 10
    assert fashion.split("test")[0][1] == fashion.classes.index("ankle boot")
    values = fashion.split("train").images_SCHW[::10].double() / 255
    assert values.mean().item() == pytest.approx(fashion.mean[0], abs=2e-3)
    assert values.std().item() == pytest.approx(fashion.std[0], abs=2e-3)


def test_a_missing_file_is_named(tmp_path):
    (_write(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetMissing, match="t10k-labels-idx1-ubyte"):
        FashionMnist(tmp_path, folder="fashion")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetMissing, match="elsewhere"):
        FashionMnist(tmp_path, folder="elsewhere")


LABELS = _idx((20,), bytes(20))
IMAGES = _idx((20, 28, 28), bytes(20 * 784))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("images-idx3", b"", "begins with"),
        ("images-idx3", IMAGES[:9], "begins with"),
        ("images-idx3", LABELS, "3 dimensions"),
        ("images-idx3", _idx((20, 28, 28), bytes(20 * 784), kind=13), "begins with 00000d03"),
        ("images-idx3", _idx((20, 27, 28), bytes(20 * 784)), r"shape \(20, 27, 28\)"),
        ("images-idx3", _idx((2**32 - 1, 28, 28), b""), "4294967295"),
        ("images-idx3", _idx((0, 28, 28), b""), r"shape \(0, 28, 28\)"),
        ("images-idx3", IMAGES[:-1], "fewer bytes than the 15680"),
        ("images-idx3", IMAGES + b"\0", "more bytes than the 15680"),
        ("labels-idx1", _idx((19,), bytes(19)), "19 labels for 20 images"),
        ("labels-idx1", _idx((20,), bytes([10] * 20)), "label 10; labels are 0 to 9"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["gzip", "plain"])
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, content, says, zipped):
    path = _write(tmp_path, zipped=zipped) / f"train-{name}-ubyte{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DatasetCorrupt, match=says) as caught:
        FashionMnist(tmp_path, folder="fashion")
    assert str(path) in caught.value.message


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = _write(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "flipped": whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 8]) + whole[middle + 8 :],
            "no gzip": b"PK" + whole,
        }[damage]
    )
    with pytest.raises(DatasetCorrupt) as caught:
        FashionMnist(tmp_path, folder="fashion")
    assert str(path) in caught.value.message


@pytest.mark.parametrize("folder", ["/etc", "..", "../fashion", "fashion/../../fashion", "a\0b", ""])
def test_a_folder_out_of_the_data_root_is_refused(tmp_path, folder):
    _write(tmp_path)
    (tmp_path / "root").mkdir()
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        FashionMnist(tmp_path / "root", folder=folder)


def test_a_link_out_of_the_data_root_is_refused(tmp_path):
    place = _write(tmp_path / "outside")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(place)
    with pytest.raises(OptionInvalid, match="link out of the data root"):
        FashionMnist(tmp_path / "root", folder="link")


def test_a_link_in_a_circle_is_refused(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OptionInvalid, match="circle"):
        FashionMnist(tmp_path, folder="circle")


def test_a_name_longer_than_the_file_system_takes_is_missing(tmp_path):
    with pytest.raises(DatasetMissing):
        FashionMnist(tmp_path, folder="x" * 900)
