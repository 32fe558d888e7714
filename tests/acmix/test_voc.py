"""Pascal VOC's layout: boxes counted from 0, difficult objects set aside, masks by palette; refusals have names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix.datasets.voc import CLASSES, Voc
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

WIDTH, HEIGHT = 20, 12


def _object(name: str = "dog", box: Sequence[object] = (3, 2, 10, 9), rest: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox>{rest}</object>"


def _annotation(*objects: str, size: str = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>") -> str:
    return f"<annotation><folder>VOC2012</folder>{size}{''.join(objects)}</annotation>"


PLAIN = _annotation(_object())


def _write(root: Path, annotations: dict[str, str], *, kind: str = "Main", **lists: Sequence[str]) -> Path:
    """Images with these annotations, and lists of them; train, val and test hold all unless they are given."""
    place = root / "VOC2012"
    for folder in ("JPEGImages", "Annotations", f"ImageSets/{kind}", "SegmentationObject"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for name, annotation in annotations.items():
        Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30)).save(place / f"JPEGImages/{name}.jpg")
        (place / f"Annotations/{name}.xml").write_text(annotation)
    for part, names in (lists or {part: list(annotations) for part in ("train", "val", "test")}).items():
        (place / f"ImageSets/{kind}/{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return place


def _target(root: Path, annotation: str, **options) -> dict[str, torch.Tensor]:
    _write(root, {"a": annotation})
    return Voc(root, folder="VOC2012", **options).split("train")[0][1]


def test_a_box_holds_its_last_pixels_and_counts_from_0(tmp_path):
    target = _target(tmp_path, _annotation(_object(box=(3, 2, 10, 9)), _object("cat", (1, 1, 20, 12))))
    assert target["boxes"].tolist() == [[2, 1, 10, 9], [0, 0, 20, 12]]
    assert target["areas"].tolist() == [64, 240]
    assert {key: value.dtype for key, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "areas": torch.float32,
        "crowd": torch.bool,
    }


def test_a_box_may_have_fractions_and_ends_where_the_image_ends(tmp_path):
    target = _target(tmp_path, _annotation(_object(box=("0", " 1.5 ", "25", "9.25"))))
    assert target["boxes"].tolist() == [[0, 0.5, 20, 9.25]]


def test_the_parts_of_an_object_are_not_taken_for_it(tmp_path):
    head = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part>"
    target = _target(tmp_path, _annotation(_object("person", rest=head)))
    assert target["boxes"].tolist() == [[2, 1, 10, 9]]


def test_an_image_without_objects_is_kept(tmp_path):
    _write(tmp_path, {"a": PLAIN, "b": _annotation()})
    target = Voc(tmp_path, folder="VOC2012").split("train")[1][1]
    assert [tuple(target[key].shape) for key in ("boxes", "labels", "areas", "crowd")] == [(0, 4), (0,), (0,), (0,)]


HARD = "<difficult>1</difficult>"


@pytest.mark.parametrize(("difficult", "crowd"), [("ignore", [False, True]), ("keep", [False, False])])
def test_difficult_objects_are_a_crowd_unless_they_are_kept(tmp_path, difficult, crowd):
    two = _annotation(_object(rest="<difficult>0</difficult>"), _object(rest=HARD))
    assert _target(tmp_path, two, difficult=difficult)["crowd"].tolist() == crowd


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["tvmonitor", "aeroplane"], CLASSES, [19, 0]),
        (["zebra", "dog", "ape"], ("ape", "dog", "zebra"), [2, 1, 0]),
    ],
    ids=["vocs own", "others"],
)
def test_classes_are_vocs_twenty_or_those_found(tmp_path, names, classes, labels):
    _write(tmp_path, {"a": _annotation(*map(_object, names))})
    pictures = Voc(tmp_path, folder="VOC2012", image_px=320)
    assert (pictures.classes, pictures.image_px) == (classes, 320)
    assert pictures.split("train")[0][1]["labels"].tolist() == labels


def test_a_class_that_only_val_has_is_a_class(tmp_path):
    one, other = _annotation(_object("ape")), _annotation(_object("yak"))
    _write(tmp_path, {"a": one, "b": other, "c": one}, train=["a", "c"], val=["b"])
    assert Voc(tmp_path, folder="VOC2012").classes == ("ape", "yak")


@pytest.mark.parametrize(
    ("lists", "sizes"),
    [
        ({"train": range(10), "val": range(10, 14), "test": range(14, 20)}, [10, 4, 6]),
        ({"train": range(10), "val": range(10, 14), "trainval": range(14)}, [9, 1, 4]),
        ({"trainval": range(14), "test": range(14, 20)}, [13, 1, 6]),
        ({"trainval": range(14), "val": range(10, 14)}, [12, 1, 1]),
        ({"train": range(20)}, [16, 2, 2]),
    ],
    ids=["all three", "as VOC2012", "trainval and test", "val is part of trainval", "train alone"],
)
def test_splits_are_the_lists_and_what_is_missing_is_cut_from_train(tmp_path, lists, sizes):
    named = {part: [f"2008_{number:06}" for number in numbers] for part, numbers in lists.items()}
    _write(tmp_path, {f"2008_{number:06}": PLAIN for number in range(20)}, **named)
    pictures = Voc(tmp_path, folder="VOC2012")
    splits = [pictures.split(name) for name in ("train", "val", "test")]
    assert [len(split) for split in splits] == sizes
    assert len({split.source(index) for split in splits for index in range(len(split))}) == sum(sizes)
    assert splits[0].source(0).startswith("JPEGImages/2008_0000")


def test_images_may_have_other_suffixes_and_names_spaces(tmp_path):
    place = _write(tmp_path, {"my dog": PLAIN})
    (place / "JPEGImages/my dog.jpg").unlink()
    Image.new("RGBA", (WIDTH, HEIGHT), (9, 8, 7, 6)).save(place / "JPEGImages/my dog.PNG")
    split = Voc(tmp_path, folder="VOC2012").split("test")
    assert split.source(0) == "JPEGImages/my dog.PNG"
    assert split[0][0][:, 0, 0].tolist() == [9, 8, 7]


# Masks


def _palette(values_HW: np.ndarray, path: Path) -> None:
    """With VOC's kind of palette: value 1 is dark red, value 2 dark green, and the border of objects cream."""
    image = Image.fromarray(values_HW.astype(np.uint8)).convert("L")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *([99] * 3 * 252), 224, 224, 192])
    image.save(path)


def _with_masks(root: Path, values_HW: np.ndarray, *, annotation: str | None = None) -> Path:
    two = annotation or _annotation(_object(), _object("cat", (12, 3, 18, 11)))
    place = _write(root, {"a": two}, kind="Segmentation")
    _palette(values_HW, place / "SegmentationObject/a.png")
    return place


def _values() -> np.ndarray:
    values_HW = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    values_HW[1:9, 2:10] = 255
    values_HW[2:8, 3:9] = 1
    values_HW[4:10, 12:17] = 2
    return values_HW


def test_masks_are_the_values_of_the_palette_not_its_colours(tmp_path):
    values_HW = _values()
    _with_masks(tmp_path, values_HW)
    pictures = Voc(tmp_path, folder="VOC2012", masks=True)
    assert pictures.has_masks
    target = pictures.split("train")[0][1]
    assert target["masks"].dtype == torch.uint8
    assert np.array_equal(target["masks"].numpy(), np.stack([values_HW == 1, values_HW == 2]))
    assert target["areas"].tolist() == [36, 30]
    assert target["crowd"].tolist() == [False, False]


def test_an_object_without_a_pixel_is_taken_for_a_difficult_one(tmp_path):
    _with_masks(tmp_path, np.where(_values() == 2, 255, _values()))
    target = Voc(tmp_path, folder="VOC2012", masks=True).split("train")[0][1]
    assert target["crowd"].tolist() == [False, True]
    assert target["masks"][1].sum() == 0


def test_with_masks_the_images_are_those_of_the_segmentation_lists(tmp_path):
    place = _with_masks(tmp_path, _values())
    _write(tmp_path, {"b": PLAIN, "c": PLAIN})
    assert len(Voc(tmp_path, folder="VOC2012", masks=True).split("train")) == 1
    assert len(Voc(tmp_path, folder="VOC2012").split("train")) == 2
    (place / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(DatasetMissing, match=r"neither .*Segmentation/train\.txt nor trainval\.txt"):
        Voc(tmp_path, folder="VOC2012", masks=True)


@pytest.mark.parametrize(
    ("values_HW", "says"),
    [
        (np.full((HEIGHT, WIDTH), 3), r"a\.png has a pixel of value 3; the annotation has 2 objects"),
        (np.zeros((HEIGHT + 1, WIDTH)), r"a\.png has 20x13 px; its annotation says 20x12"),
    ],
)
def test_a_mask_that_does_not_fit_its_annotation_is_named(tmp_path, values_HW, says):
    _with_masks(tmp_path, values_HW)
    split = Voc(tmp_path, folder="VOC2012", masks=True).split("train")
    with pytest.raises(DatasetCorrupt, match=says):
        split[0]


def test_a_mask_of_colours_is_named_with_what_would_do(tmp_path):
    place = _with_masks(tmp_path, _values())
    Image.new("RGB", (WIDTH, HEIGHT)).save(place / "SegmentationObject/a.png")
    split = Voc(tmp_path, folder="VOC2012", masks=True).split("train")
    with pytest.raises(DatasetCorrupt, match=r"a\.png .*colours \(mode RGB\).* save it as a grey or palette PNG"):
        split[0]


def test_a_missing_mask_is_named(tmp_path):
    (_with_masks(tmp_path, _values()) / "SegmentationObject/a.png").unlink()
    with pytest.raises(DatasetMissing, match=r"Segmentation/train\.txt: 'a\.png' is not in .*SegmentationObject"):
        Voc(tmp_path, folder="VOC2012", masks=True)


# Images


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _size(width: object, height: object) -> str:
    return f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (_size(20, 12), (3, 12, 20)),
        (_size(12, 20), (3, 20, 12)),
        ("", (3, 12, 20)),
        (_size(0, 0), (3, 12, 20)),
    ],
    ids=["as stored", "as seen", "no size", "size 0"],
)
def test_an_image_is_turned_only_where_its_annotations_size_says_so(tmp_path, size, shape):
    place = _write(tmp_path, {"a": _annotation(_object(), size=size)})
    Image.new("RGB", (20, 12)).save(place / "JPEGImages/a.jpg", exif=_exif(6))
    image_3HW, target = Voc(tmp_path, folder="VOC2012").split("train")[0]
    assert image_3HW.shape == shape
    assert target["boxes"].tolist() == [[2, 1, 10, 9]]


def test_an_image_of_another_size_than_its_annotations_is_named_with_both(tmp_path):
    place = _write(tmp_path, {"a": PLAIN})
    pictures = Voc(tmp_path, folder="VOC2012")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(place / "JPEGImages/a.jpg")
    with pytest.raises(DatasetCorrupt, match=r"JPEGImages/a\.jpg has 20x13 px where .*Annotations/a\.xml says 20x12"):
        pictures.split("train")[0]


# What is refused

LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        ("", "is no XML"),
        ("<annotation>", "is no XML"),
        (PLAIN + PLAIN, "is no XML"),
        ('<?xml version="1.0" encoding="klingon"?>' + PLAIN, "is no XML"),
        ("<html/>", "holds a 'html', not an annotation"),
        (LAUGHS + _annotation(_object("&b;")), "defines entities, which no annotation needs; remove its DOCTYPE"),
        (OUTSIDE + _annotation(_object("&a;")), "defines entities"),
        (_annotation(_object(), size=_size("wide", 12)), "has the size widex12, which is not of whole numbers"),
        (_annotation(_object(), size=_size(20.5, 12)), r"has the size 20\.5x12"),
        (_annotation(_object(), size=_size("9" * 10, 12)), "has the size 9999999999x12"),
        (_annotation(_object(), _object("")), "object 2: its name is ''"),
        (_annotation(_object("a\tb")), r"object 1: its name is 'a\\tb'"),
        (_annotation(_object(box=("left", 2, 10, 9))), "object 1: xmin is 'left', not a finite number"),
        (_annotation(_object(box=(3, "nan", 10, 9))), "object 1: ymin is 'nan'"),
        (_annotation(_object(box=(3, 2, "1e999", 9))), "object 1: xmax is '1e999'"),
        (_annotation(_object(box=(3, 2, 10, ""))), "object 1: ymax is ''"),
        (_annotation("<object><name>dog</name></object>"), "object 1: xmin is ''"),
        (_annotation(_object(), _object(box=(10, 2, 3, 9))), "object 2: box 9,1 to 3,9 has no area"),
        (_annotation(_object(box=(3, 2, 2, 9))), "object 1: box 2,1 to 2,9 has no area"),
        (_annotation(_object(box=(30, 2, 40, 9))), "object 1: box 29,1 to 40,9 lies outside of its image of 20x12"),
        (_annotation(_object(rest="<difficult>maybe</difficult>")), "object 1: difficult is 'maybe'; it is 0 or 1"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused_and_named(tmp_path, annotation, says):
    _write(tmp_path, {"sound": PLAIN, "a": annotation})
    with pytest.raises(DatasetCorrupt, match=rf"Annotations/a\.xml.*{says}") as caught:
        Voc(tmp_path, folder="VOC2012")
    assert caught.value.reason().blame == "data"


def test_an_annotation_may_be_in_an_encoding_of_its_own(tmp_path):
    place = _write(tmp_path, {"a": PLAIN})
    text = '<?xml version="1.0" encoding="iso-8859-1"?>' + _annotation(_object("chien méchant"))
    (place / "Annotations/a.xml").write_bytes(text.encode("latin-1"))
    assert Voc(tmp_path, folder="VOC2012").classes == ("chien méchant",)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("JPEGImages/a.jpg", r"train\.txt: 'a\.jpg' is not in .*JPEGImages"),
        ("Annotations/a.xml", r"train\.txt: 'a\.xml' is not in .*Annotations"),
        ("ImageSets/Main/train.txt", r"neither .*Main/train\.txt nor trainval\.txt is there"),
    ],
)
def test_a_missing_file_is_named(tmp_path, gone, says):
    (_write(tmp_path, {"a": PLAIN}) / gone).unlink()
    with pytest.raises(DatasetMissing, match=says):
        Voc(tmp_path, folder="VOC2012")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], r"train\.txt lists no images"),
        (["a", "b", "a"], r"train\.txt lists 'a' twice"),
        (["../Annotations/a"], r"'\.\./Annotations/a\.jpg' must be a path below .*JPEGImages"),
        (["/etc/passwd"], r"'/etc/passwd\.jpg' must be a path below"),
    ],
)
def test_a_list_that_cannot_be_is_named(tmp_path, names, says):
    _write(tmp_path, {"a": PLAIN, "b": PLAIN}, train=names, val=["a"])
    with pytest.raises(DatasetCorrupt, match=says):
        Voc(tmp_path, folder="VOC2012")


def test_a_list_of_one_class_is_not_taken_for_a_list_of_images(tmp_path):
    _write(tmp_path, {"a": PLAIN}, train=["a -1"])
    with pytest.raises(DatasetMissing, match=r"'a -1\.jpg' is not in"):
        Voc(tmp_path, folder="VOC2012")


def test_annotations_without_any_object_are_refused(tmp_path):
    _write(tmp_path, {"a": _annotation()})
    with pytest.raises(DatasetCorrupt, match="VOC2012 have no objects"):
        Voc(tmp_path, folder="VOC2012")


@pytest.mark.parametrize(
    "link", ["JPEGImages", "JPEGImages/a.jpg", "Annotations", "Annotations/a.xml", "ImageSets/Main/train.txt"]
)
def test_a_link_out_of_the_data_root_is_refused_wherever_it_is(tmp_path, link):
    place = _write(tmp_path / "root", {"a": PLAIN})
    outside = tmp_path / "outside"
    (place / link).rename(outside)
    (place / link).symlink_to(outside)
    with pytest.raises(DatasetCorrupt, match="out of the data root"):
        Voc(tmp_path / "root", folder="VOC2012")


def test_a_folder_out_of_the_data_root_is_refused(tmp_path):
    _write(tmp_path, {"a": PLAIN})
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        Voc(tmp_path / "VOC2012", folder="../VOC2012")
