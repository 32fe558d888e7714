"""Folders of photographs: what is read, what is refused, and that every refusal names its file."""

import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix import registry
from acmix.datasets.image_folder import ImageFolder
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 210)


def _image(colour=RED, size=(12, 10)) -> Image.Image:
    return Image.new("RGB", size, colour)


def _write(root: Path, *, splits: Sequence[str] = ("train", "val", "test"), images: int = 4) -> Path:
    """Classes red and green in every split, so many images each."""
    for split in splits:
        for name, colour in (("green", GREEN), ("red", RED)):
            place = root / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(images):
                _image(colour).save(place / f"{number}.png")
    return root / "photos"


def _read(root: Path, path: Path, save) -> torch.Tensor:
    """The image as the data set reads it, after it was saved in place of a red one of train."""
    _write(root)
    (root / "photos/train/red/0.png").unlink()
    save(root / "photos/train/red" / path)
    split = ImageFolder(root, folder="photos").split("train")
    index = next(index for index, (name, _) in enumerate(split.files) if name.endswith(f"/{path}"))
    return split[index][0]


def test_classes_are_the_folders_of_train_in_order(tmp_path):
    _write(tmp_path)
    photos = ImageFolder(tmp_path, folder="photos", image_px=32)
    assert (photos.classes, photos.image_px) == (("green", "red"), 32)
    image_3HW, label = photos.split("val")[7]
    assert (image_3HW.dtype, image_3HW.shape, label) == (torch.uint8, (3, 10, 12), 1)
    assert tuple(image_3HW[:, 0, 0].tolist()) == RED


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (["train", "val", "test"], [80, 80, 80]),
        (["train", "test"], [72, 8, 80]),
        (["train", "val"], [72, 8, 80]),
        (["train"], [64, 8, 8]),
    ],
    ids=["all three", "no val", "no test", "train alone"],
)
def test_what_is_missing_is_cut_from_train(tmp_path, splits, sizes):
    _write(tmp_path, splits=splits, images=40)
    photos = ImageFolder(tmp_path, folder="photos")
    found = {name: photos.split(name).files for name in ("train", "val", "test")}
    assert [len(files) for files in found.values()] == sizes
    assert len({path for files in found.values() for path, _ in files}) == sum(sizes)
    for files in found.values():
        assert sum(label for _, label in files) == len(files) / 2
    assert found == {name: ImageFolder(tmp_path, folder="photos").split(name).files for name in found}


def test_too_few_images_to_cut_from_are_refused(tmp_path):
    _write(tmp_path, splits=["train"], images=1)
    with pytest.raises(DatasetCorrupt, match="2 images; too few to cut test and val from it"):
        ImageFolder(tmp_path, folder="photos")


def test_names_that_begin_with_a_dot_are_passed_over(tmp_path):
    place = _write(tmp_path)
    (place / ".cache").mkdir()
    (place / "train/.DS_Store").write_bytes(b"x")
    (place / "train/red/._0.png").write_bytes(b"x")
    assert len(ImageFolder(tmp_path, folder="photos").split("train")) == 8


# What is read


def test_an_image_stands_upright_as_its_exif_says(tmp_path):
    """Stored lying: blue left, green right; orientation 6 turns it clockwise, so blue comes to the top."""
    lying = _image(BLUE, (32, 16))
    lying.paste(GREEN, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    image_3HW = _read(tmp_path, Path("turned.jpg"), lambda path: lying.save(path, exif=exif, quality=95))
    assert image_3HW.shape == (3, 32, 16)
    assert image_3HW[:, 4, 8].argmax() == 2
    assert image_3HW[:, 28, 8].argmax() == 1


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".tif", ".tiff"])
def test_every_format_is_read(tmp_path, suffix):
    image_3HW = _read(tmp_path, Path(f"x{suffix}"), _image(BLUE).save)
    assert image_3HW.shape == (3, 10, 12)
    assert (image_3HW[:, 5, 5] - torch.tensor(BLUE)).abs().amax() <= 8


@pytest.mark.parametrize(
    ("name", "image", "colour"),
    [
        ("cmyk.jpg", _image(RED).convert("CMYK"), RED),
        ("cmyk.tif", _image(RED).convert("CMYK"), RED),
        ("grey.png", Image.new("L", (12, 10), 90), (90, 90, 90)),
        ("bits.png", Image.new("1", (12, 10), 1), (255, 255, 255)),
        ("palette.png", _image(GREEN).convert("P", palette=Image.Palette.ADAPTIVE), GREEN),
        ("alpha.png", Image.new("RGBA", (12, 10), (*BLUE, 10)), BLUE),
        ("grey_alpha.png", Image.new("LA", (12, 10), (90, 10)), (90, 90, 90)),
        ("16_bits.png", Image.fromarray(np.full((10, 12), 0xABCD, dtype=np.uint16)), (0xAB, 0xAB, 0xAB)),
        ("16_bits.tif", Image.fromarray(np.full((10, 12), 0xABCD, dtype=np.uint16)), (0xAB, 0xAB, 0xAB)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, name, image, colour):
    image_3HW = _read(tmp_path, Path(name), image.save)
    assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, 10, 12))
    assert (image_3HW[:, 5, 5].int() - torch.tensor(colour)).abs().amax() <= 8


def test_a_palette_with_transparent_colours_becomes_rgb(tmp_path):
    image = _image(GREEN).convert("P", palette=Image.Palette.ADAPTIVE)
    image_3HW = _read(tmp_path, Path("clear.png"), lambda path: image.save(path, transparency=bytes([0] * 256)))
    assert tuple(image_3HW[:, 5, 5].tolist()) == GREEN


def test_a_chunk_that_claims_gigabytes_takes_the_memory_of_what_is_there(tmp_path):
    """A PNG whose pixels are all there, in a chunk that is said to have 4 GB."""

    def save(path: Path) -> None:
        _image(BLUE).save(path)
        whole = path.read_bytes()
        at = whole.index(b"IDAT")
        path.write_bytes(whole[: at - 4] + b"\xff\xff\xff\xff" + whole[at:])

    tracemalloc.start()
    image_3HW = _read(tmp_path, Path("x.png"), save)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tuple(image_3HW[:, 5, 5].tolist()) == BLUE
    assert most_bytes < 100 * 2**20


# What is refused


def _truncated(path: Path) -> None:
    rng = np.random.RandomState(0)
    Image.fromarray(rng.randint(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def _bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that claims 20,000 by 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(60_001))), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def _big(path: Path) -> None:
    """Between Pillow's limit, where it warns, and twice that, where it raises by itself."""
    Image.new("1", (10_000, 10_000)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("name", "save", "says"),
    [
        ("truncated.jpg", _truncated, "truncated"),
        ("text.jpg", lambda path: path.write_text("a text"), "cannot identify"),
        ("empty.png", lambda path: path.write_bytes(b""), "cannot identify"),
        ("gif.png", lambda path: _image().save(path, format="GIF"), "cannot identify"),
        ("bomb.png", _bomb, "decompression bomb"),
        ("big.png", _big, "decompression bomb"),
        ("strip.png", lambda path: _image(size=(1000, 2)).save(path), "sides are 1000 and 2 px"),
        ("float.tif", lambda path: Image.new("F", (12, 10)).save(path), "mode F"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_when_it_is_asked_for(tmp_path, name, save, says):
    with pytest.raises(DatasetCorrupt, match=says) as caught:
        _read(tmp_path, Path(name), save)
    assert str(tmp_path / "photos/train/red" / name) in caught.value.message
    assert caught.value.reason().blame == "data"


def test_an_image_that_went_away_is_named(tmp_path):
    place = _write(tmp_path)
    split = ImageFolder(tmp_path, folder="photos").split("train")
    (place / "train/green/0.png").unlink()
    with pytest.raises(DatasetMissing, match=r"train/green/0\.png"):
        split[0]


def test_a_folder_without_train_is_named(tmp_path):
    _write(tmp_path, splits=["val"])
    with pytest.raises(DatasetMissing, match="photos/train is not a folder"):
        ImageFolder(tmp_path, folder="photos")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetMissing, match="elsewhere is not a folder"):
        ImageFolder(tmp_path, folder="elsewhere")


def _empty_class(place: Path) -> None:
    (place / "train/blue").mkdir()


def _empty_val(place: Path) -> None:
    for path in sorted((place / "val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _strange_class(place: Path) -> None:
    (place / "val/blue").mkdir()
    _image(BLUE).save(place / "val/blue/0.png")


def _file_as_class(place: Path) -> None:
    _image().save(place / "train/0.png")


def _file_as_val(place: Path) -> None:
    _empty_val(place)
    (place / "val").rmdir()
    (place / "val").write_text("x")


def _other_file(place: Path) -> None:
    (place / "train/red/list.txt").write_text("0.png")


def _folder_in_class(place: Path) -> None:
    (place / "train/red/more.png").mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_empty_class, "train/blue is an empty class"),
        (_empty_val, "photos/val has no classes"),
        (_strange_class, "val/blue is a class that train lacks"),
        (_file_as_class, "train/0.png is not a folder"),
        (_file_as_val, "photos/val is not a folder"),
        (_other_file, "red/list.txt is no image file"),
        (_folder_in_class, "red/more.png is no image file"),
    ],
)
def test_a_tree_of_another_shape_is_refused_and_the_place_named(tmp_path, spoil, says):
    spoil(_write(tmp_path))
    with pytest.raises(DatasetCorrupt, match=says):
        ImageFolder(tmp_path, folder="photos")


@pytest.mark.parametrize("folder", ["/etc", "..", "../photos", "photos/../../photos", "a\0b"])
def test_a_folder_out_of_the_data_root_is_refused(tmp_path, folder):
    _write(tmp_path)
    (tmp_path / "root").mkdir()
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        ImageFolder(tmp_path / "root", folder=folder)


@pytest.mark.parametrize("link", ["photos", "photos/val", "photos/train/red", "photos/train/red/0.png"])
def test_a_link_out_of_the_data_root_is_refused_wherever_it_is(tmp_path, link):
    _write(tmp_path / "root")
    inside, outside = tmp_path / "root" / link, tmp_path / "outside.png"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises((OptionInvalid, DatasetCorrupt), match=r"out of the data root|below the data root") as caught:
        ImageFolder(tmp_path / "root", folder="photos")
    assert link in caught.value.message


def test_a_link_within_the_data_root_is_followed(tmp_path):
    place = _write(tmp_path, splits=["train", "val"])
    (place / "test").symlink_to(place / "val")
    assert len(ImageFolder(tmp_path, folder="photos").split("test")) == 8


def test_the_folder_is_a_required_option(tmp_path):
    with pytest.raises(OptionInvalid, match="'folder': Field required"):
        registry.check_options(ImageFolder, {}, where="dataset image_folder")
