"""Folders of images and masks: a pixel's value is its class, however the PNG is written; refusals name their file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix import registry
from acmix.datasets.mask_folder import MaskFolder
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

WIDTH, HEIGHT = 12, 10
PARTS = ("train", "val", "test")


def _values() -> np.ndarray:
    """Classes 0, 1 and 2, and a stripe of none."""
    values_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    values_HW[2:6, 3:8] = 1
    values_HW[5:, 9:] = 2
    values_HW[0] = 255
    return values_HW


def _write(
    root: Path, *, images: str = "{}/images", masks: str = "{}/masks", parts=PARTS, count: int = 2, values=None
) -> Path:
    place = root / "scenes"
    for part in parts:
        for folder in (images, masks):
            (place / folder.format(part)).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (WIDTH, HEIGHT), (number, 20, 30)).save(place / images.format(part) / f"{number}.jpg")
            mask = Image.fromarray(_values() if values is None else values)
            mask.save(place / masks.format(part) / f"{number}.png")
    return place


def _first(root: Path, save, **options) -> torch.Tensor:
    """The label map of train's first image, after its mask was written again."""
    place = _write(root)
    save(place / "train/masks/0.png")
    return MaskFolder(root, folder="scenes", **options).split("train")[0][1]


def test_an_image_comes_with_the_classes_of_its_pixels(tmp_path):
    _write(tmp_path)
    scenes = MaskFolder(tmp_path, folder="scenes", image_px=64)
    assert (scenes.classes, scenes.image_px) == (("0", "1", "2"), 64)
    split = scenes.split("train")
    image_3HW, labels_HW = split[1]
    assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert labels_HW.dtype == torch.uint8
    assert np.array_equal(labels_HW.numpy(), _values())
    assert split.source(1) == "train/images/1.jpg"


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
@pytest.mark.parametrize("inner", [True, False], ids=["train/images", "images/train"])
def test_every_usual_layout_is_read(tmp_path, masks, inner):
    names = (
        {"images": "{}/images", "masks": "{}/" + masks} if inner else {"images": "images/{}", "masks": masks + "/{}"}
    )
    _write(tmp_path, **names)
    scenes = MaskFolder(tmp_path, folder="scenes")
    for part in PARTS:
        split = scenes.split(part)
        assert (len(split), split.source(0)) == (2, names["images"].format(part) + "/0.jpg")
        assert np.array_equal(split[0][1].numpy(), _values())


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (["train", "val", "test"], [20, 20, 20]),
        (["train", "val"], [18, 2, 20]),
        (["train", "test"], [18, 2, 20]),
        (["train"], [16, 2, 2]),
    ],
    ids=["all three", "no test", "no val", "train alone"],
)
def test_what_is_missing_is_cut_from_train(tmp_path, parts, sizes):
    _write(tmp_path, parts=parts, count=20)
    scenes = MaskFolder(tmp_path, folder="scenes")
    splits = [scenes.split(name) for name in PARTS]
    assert [len(split) for split in splits] == sizes
    sources = [[split.source(index) for index in range(len(split))] for split in splits]
    assert len({source for part in sources for source in part}) == sum(sizes)
    again = MaskFolder(tmp_path, folder="scenes").split("train")
    assert [again.source(index) for index in range(len(again))] == sources[0]


# Classes


def test_classes_are_named_by_a_file(tmp_path):
    (_write(tmp_path) / "classes.txt").write_text("sky\n road \ncar\ntree\n\n")
    assert MaskFolder(tmp_path, folder="scenes").classes == ("sky", "road", "car", "tree")


def test_without_names_classes_go_up_to_the_highest_value_of_train(tmp_path):
    place = _write(tmp_path)
    Image.fromarray(np.full((HEIGHT, WIDTH), 6, dtype=np.uint8)).save(place / "train/masks/1.png")
    assert MaskFolder(tmp_path, folder="scenes").classes == tuple("0123456")


def test_another_value_may_be_the_one_of_no_class(tmp_path):
    _write(tmp_path, values=np.where(_values() == 255, 7, _values()).astype(np.uint8))
    scenes = MaskFolder(tmp_path, folder="scenes", ignore_value=7)
    assert scenes.classes == ("0", "1", "2")
    assert np.array_equal(scenes.split("train")[0][1].numpy(), _values())


@pytest.mark.parametrize("names", [None, "grass\nwater\n"])
def test_where_zero_is_ignored_classes_begin_at_one(tmp_path, names):
    place = _write(tmp_path)
    if names:
        (place / "classes.txt").write_text(names)
    scenes = MaskFolder(tmp_path, folder="scenes", zero_is="ignored")
    assert scenes.classes == (("grass", "water") if names else ("1", "2"))
    expected_HW = np.select([_values() == 1, _values() == 2], [0, 1], 255)
    assert np.array_equal(scenes.split("train")[0][1].numpy(), expected_HW)


@pytest.mark.parametrize("text", ["", "\n\n", "a\n\nb\n", "a\nb\na\n", "\n".join(map(str, range(256)))])
def test_a_list_of_names_that_cannot_be_is_named(tmp_path, text):
    (_write(tmp_path) / "classes.txt").write_text(text)
    with pytest.raises(DatasetCorrupt, match=r"classes\.txt must name 1 to 255 different classes, one a line"):
        MaskFolder(tmp_path, folder="scenes")


# Masks


def _grey_png(path: Path, values_HW: np.ndarray, bits: int) -> None:
    """A grey PNG of so many bits a pixel: Pillow writes none of two or four."""
    digits = np.unpackbits(values_HW[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(len(values_HW), -1), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values_HW.shape[1], values_HW.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def _palette(path: Path, values_HW: np.ndarray, **options) -> None:
    """Colours that say nothing of the values."""
    image = Image.fromarray(values_HW).convert("L")
    image.putpalette(np.random.RandomState(0).randint(0, 255, 768).tolist())
    image.save(path, **options)


def _small() -> np.ndarray:
    return np.where(_values() == 255, 1, _values()).astype(np.uint8)


@pytest.mark.parametrize(
    ("save", "expected_HW"),
    [
        (lambda path: _palette(path, _values()), _values()),
        (lambda path: _palette(path, _small(), bits=2), _small()),
        (lambda path: _palette(path, _small(), bits=4), _small()),
        (lambda path: _palette(path, _values(), transparency=1), _values()),
        (lambda path: _grey_png(path, _small() % 2, 1), _small() % 2),
        (lambda path: _grey_png(path, _small(), 2), _small()),
        (lambda path: _grey_png(path, _small(), 4), _small()),
        (lambda path: _grey_png(path, _values(), 8), _values()),
        (lambda path: Image.fromarray(_values().astype(np.uint16)).save(path), _values()),
        (lambda path: Image.fromarray(_small() % 2 == 1).save(path), _small() % 2),
    ],
    ids=[
        *("palette", "palette of 2 bits", "palette of 4 bits", "transparent palette"),
        *("grey of 1 bit", "grey of 2 bits", "grey of 4 bits", "grey", "grey of 16 bits", "black and white"),
    ],
)
def test_a_value_is_read_as_it_is_stored_whatever_the_kind_of_png(tmp_path, save, expected_HW):
    assert np.array_equal(_first(tmp_path, save).numpy(), expected_HW)


def test_values_of_16_bits_that_stand_for_no_class_are_ignored_by_their_value(tmp_path):
    values_HW = _values().astype(np.uint16)
    values_HW[values_HW == 255] = 65535
    _write(tmp_path, values=values_HW)
    labels_HW = MaskFolder(tmp_path, folder="scenes", ignore_value=65535).split("train")[0][1]
    assert np.array_equal(labels_HW.numpy(), _values())


def _with(value: int) -> np.ndarray:
    values_HW = _values().astype(np.uint16)
    values_HW[7, 4] = value
    return values_HW


@pytest.mark.parametrize("value", [3, 254, 256, 65535])
def test_a_value_beyond_the_classes_is_named_with_its_file(tmp_path, value):
    place = _write(tmp_path)
    (place / "classes.txt").write_text("a\nb\nc\n")
    Image.fromarray(_with(value)).save(place / "val/masks/0.png")
    split = MaskFolder(tmp_path, folder="scenes").split("val")
    with pytest.raises(
        DatasetCorrupt, match=rf"val/masks/0\.png has a pixel of value {value}; values here are 0 to 2 and 255"
    ):
        split[0]


def test_more_classes_than_a_label_map_can_hold_are_refused_by_value_and_file(tmp_path):
    place = _write(tmp_path)
    Image.fromarray(_with(256)).save(place / "train/masks/1.png")
    with pytest.raises(
        DatasetCorrupt, match=r"train/masks/1\.png has a pixel of value 256; there may be 255"
    ) as caught:
        MaskFolder(tmp_path, folder="scenes")
    assert "ignore_value" in caught.value.reason().hint


def test_masks_without_a_class_are_refused(tmp_path):
    _write(tmp_path, values=np.full((HEIGHT, WIDTH), 255, dtype=np.uint8))
    with pytest.raises(DatasetCorrupt, match=r"the masks of train of .* have no pixel of a class"):
        MaskFolder(tmp_path, folder="scenes")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_colours_is_refused_with_what_would_do(tmp_path, mode):
    with pytest.raises(DatasetCorrupt, match=rf"0\.png .*colours \(mode {mode}\).* save it as a grey or palette PNG"):
        _first(tmp_path, Image.new(mode, (WIDTH, HEIGHT)).save)


def test_a_mask_that_is_no_png_inside_is_named(tmp_path):
    with pytest.raises(DatasetCorrupt, match=r"masks/0\.png cannot be read as an image"):
        _first(tmp_path, lambda path: Image.new("L", (WIDTH, HEIGHT)).save(path, format="BMP"))


def test_a_mask_of_another_size_than_its_image_is_named_with_both(tmp_path):
    says = r"images/0\.jpg has 12x10 px where .*masks/0\.png says 12x11"
    with pytest.raises(DatasetCorrupt, match=says):
        _first(tmp_path, Image.new("L", (WIDTH, HEIGHT + 1)).save)


@pytest.mark.parametrize(
    ("stored", "mask", "shape"),
    [((12, 10), (12, 10), (3, 10, 12)), ((12, 10), (10, 12), (3, 12, 10)), ((10, 10), (10, 10), (3, 10, 10))],
    ids=["as stored", "as seen", "square"],
)
def test_an_image_is_turned_only_where_its_masks_size_says_so(tmp_path, stored, mask, shape):
    place = _write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", stored, (0, 200, 0))
    lying.paste((0, 0, 200), (0, 0, 4, stored[1]))
    lying.save(place / "train/images/0.jpg", exif=exif, quality=95)
    Image.new("L", mask).save(place / "train/masks/0.png")
    image_3HW = MaskFolder(tmp_path, folder="scenes").split("train")[0][0]
    assert image_3HW.shape == shape
    blue = image_3HW[:, 1, -2] if mask != stored else image_3HW[:, -2, 1]
    assert blue.argmax() == 2


@pytest.mark.parametrize(
    ("name", "image", "colour"),
    [
        ("0.jpg", Image.new("RGB", (WIDTH, HEIGHT), (220, 30, 30)).convert("CMYK"), (220, 30, 30)),
        ("0.jpg", Image.new("L", (WIDTH, HEIGHT), 90), (90, 90, 90)),
        ("0.png", Image.new("RGBA", (WIDTH, HEIGHT), (30, 30, 210, 10)), (30, 30, 210)),
        ("0.png", Image.fromarray(np.full((HEIGHT, WIDTH), 0xABCD, dtype=np.uint16)), (0xAB, 0xAB, 0xAB)),
    ],
    ids=["cmyk", "grey", "alpha", "16 bits"],
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, name, image, colour):
    place = _write(tmp_path)
    (place / "train/images/0.jpg").unlink()
    image.save(place / "train/images" / name)
    image_3HW = MaskFolder(tmp_path, folder="scenes").split("train")[0][0]
    assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert (image_3HW[:, 5, 5].int() - torch.tensor(colour)).abs().amax() <= 8


# What is refused


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("train/masks/1.png", r"train/images/1\.jpg has no mask 1\.png in .*train/masks"),
        ("val/images/0.jpg", r"val/masks/0\.png has no image of that name in .*val/images"),
    ],
)
def test_an_image_or_a_mask_alone_is_named(tmp_path, gone, says):
    (_write(tmp_path) / gone).unlink()
    with pytest.raises(DatasetMissing, match=says):
        MaskFolder(tmp_path, folder="scenes")


@pytest.mark.parametrize("gone", ["train/masks", "train/images", "val/masks", "test/images"])
def test_a_part_without_images_or_masks_is_named(tmp_path, gone):
    place = _write(tmp_path)
    (place / gone).rename(place / "elsewhere")
    with pytest.raises(DatasetMissing, match=f"scenes has no images and masks of {gone.split('/')[0]}") as caught:
        MaskFolder(tmp_path, folder="scenes")
    assert "train/images" in caught.value.reason().hint


def _two_of_a_name(place: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(place / "train/images/0.png")


def _text(place: Path) -> None:
    (place / "train/images/readme.txt").write_text("x")


def _mask_as_jpeg(place: Path) -> None:
    (place / "train/masks/0.png").rename(place / "train/masks/0.jpg")


def _folder_as_image(place: Path) -> None:
    (place / "train/images/2.jpg").mkdir()


def _nothing(place: Path) -> None:
    for path in (*(place / "train/images").iterdir(), *(place / "train/masks").iterdir()):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_two_of_a_name, r"images/0\.png and .*images/0\.jpg have one name"),
        (_text, r"images/readme\.txt is no file with a suffix read here: \.bmp, \.jpeg"),
        (_mask_as_jpeg, r"masks/0\.jpg is no file with a suffix read here: \.png"),
        (_folder_as_image, r"images/2\.jpg is no file"),
        (_nothing, "train/images has no images"),
    ],
)
def test_a_tree_of_another_shape_is_refused_and_the_place_named(tmp_path, spoil, says):
    spoil(_write(tmp_path))
    with pytest.raises(DatasetCorrupt, match=says):
        MaskFolder(tmp_path, folder="scenes")


def test_too_few_images_to_cut_from_are_refused(tmp_path):
    _write(tmp_path, parts=["train"])
    with pytest.raises(DatasetCorrupt, match="2 images; too few to cut test and val from it"):
        MaskFolder(tmp_path, folder="scenes")


def test_names_that_begin_with_a_dot_are_passed_over(tmp_path):
    place = _write(tmp_path)
    (place / "train/images/.DS_Store").write_bytes(b"x")
    (place / "train/masks/._0.png").write_bytes(b"x")
    assert len(MaskFolder(tmp_path, folder="scenes").split("train")) == 2


@pytest.mark.parametrize("gone", ["train/images/0.jpg", "train/masks/0.png"])
def test_a_file_that_went_away_is_named(tmp_path, gone):
    place = _write(tmp_path)
    split = MaskFolder(tmp_path, folder="scenes").split("train")
    (place / gone).unlink()
    with pytest.raises(DatasetMissing, match=f"{gone} is not there any more"):
        split[0]


@pytest.mark.parametrize("link", ["train/images", "train/masks/0.png", "val/images/1.jpg", "classes.txt"])
def test_a_link_out_of_the_data_root_is_refused_wherever_it_is(tmp_path, link):
    place = _write(tmp_path / "root")
    (place / "classes.txt").write_text("a\nb\nc\n")
    outside = tmp_path / "outside"
    (place / link).rename(outside)
    (place / link).symlink_to(outside)
    with pytest.raises(DatasetCorrupt, match="out of the data root") as caught:
        MaskFolder(tmp_path / "root", folder="scenes")
    assert link in caught.value.message


def test_a_folder_out_of_the_data_root_is_refused(tmp_path):
    _write(tmp_path)
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        MaskFolder(tmp_path / "scenes", folder="../scenes")


@pytest.mark.parametrize("options", [{"ignore_value": -1}, {"ignore_value": 65536}, {"zero_is": "void"}])
def test_its_options_are_checked(options):
    with pytest.raises(OptionInvalid, match=next(iter(options))):
        registry.check_options(MaskFolder, {"folder": "scenes", **options}, where="dataset mask_folder")
