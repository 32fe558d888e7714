"""COCO's layout: what is read comes out as by COCO's own tools, and every refusal names its place."""

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference

from acmix import registry
from acmix.datasets.coco import Coco
from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

WIDTH, HEIGHT = 24, 16
TRIANGLE = [[3.7, 2.1, 15.3, 3.9, 6.5, 12.7]]
DOCUMENT: dict[str, Any] = {
    "info": {"description": "two animals"},
    "categories": [
        {"id": 17, "name": "cat", "supercategory": "animal"},
        {"id": 3, "name": "dog", "supercategory": "animal"},
    ],
    "images": [
        {"id": 7, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 9, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {"id": 40, "image_id": 7, "category_id": 3, "bbox": [3.5, 2, 12, 11], "segmentation": TRIANGLE, "area": 70.5},
        {"id": 41, "image_id": 2, "category_id": 17, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {
            "id": 30,
            "image_id": 7,
            "category_id": 17,
            "bbox": [20, 10, 9, 9],
            "segmentation": [[20, 10, 24, 10, 24, 16]],
        },
    ],
}


def _annotation(**changes: Any) -> dict[str, Any]:
    return {**DOCUMENT["annotations"][0], "id": 50, **changes}


def _document(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The three images, with these annotations if there are any."""
    return copy.deepcopy({**DOCUMENT, **({"annotations": list(annotations)} if annotations else {}), **changes})


def _write(
    root: Path,
    document: Any = DOCUMENT,
    *,
    images: str = "train2017",
    file: str = "annotations/instances_train2017.json",
    prefix: str = "",
) -> Path:
    """One part below `animals`: its images and its instances file, whose text may be given as it is."""
    place = root / "animals"
    (place / images).mkdir(parents=True, exist_ok=True)
    (place / file).parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a.png", "b.png", "empty.png")):
        Image.new("RGB", (WIDTH, HEIGHT), (10 * number, 20, 30)).save(place / images / f"{prefix}{name}")
    (place / file).write_text(document if isinstance(document, str) else json.dumps(document))
    return place


def _read(root: Path, document: Any = DOCUMENT, **options: Any) -> Coco:
    """The data set whose train has the document; val and test are sound ones."""
    _write(root, document)
    _write(root, images="val2017", file="annotations/instances_val2017.json")
    _write(root, images="test2017", file="annotations/instances_test2017.json")
    return Coco(root, folder="animals", **options)


def _targets(animals: Coco) -> dict[str, dict[str, torch.Tensor]]:
    split = animals.split("train")
    return {Path(split.source(index)).name: split[index][1] for index in range(len(split))}


def test_classes_are_the_categories_in_the_order_of_their_ids(tmp_path):
    animals = _read(tmp_path, image_px=320)
    assert (animals.classes, animals.image_px) == (("dog", "cat"), 320)


def test_every_image_comes_with_its_own_objects_in_the_order_of_the_ids_of_images(tmp_path):
    split = _read(tmp_path).split("train")
    assert [split.source(index) for index in range(3)] == [
        "train2017/a.png",
        "train2017/b.png",
        "train2017/empty.png",
    ]
    image_3HW, target = split[1]
    assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert image_3HW[:, 0, 0].tolist() == [10, 20, 30]
    assert {key: value.dtype for key, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "masks": torch.uint8,
        "areas": torch.float32,
        "crowd": torch.bool,
    }
    assert target["labels"].tolist() == [0, 1]
    assert target["crowd"].tolist() == [False, False]


def test_boxes_become_corners_and_end_where_the_image_ends(tmp_path):
    assert _targets(_read(tmp_path))["b.png"]["boxes"].tolist() == [[3.5, 2, 15.5, 13], [20, 10, 24, 16]]


def test_an_image_without_annotations_is_kept(tmp_path):
    target = _targets(_read(tmp_path))["empty.png"]
    assert [tuple(target[key].shape) for key in ("boxes", "labels", "masks", "areas", "crowd")] == [
        (0, 4),
        (0,),
        (0, HEIGHT, WIDTH),
        (0,),
        (0,),
    ]


def test_an_area_is_the_files_else_the_masks_else_the_boxes(tmp_path):
    outline = _annotation(id=51, segmentation=[[1, 1, 5, 1, 5, 4, 1, 4]], area=None)
    crowd = _annotation(id=52, bbox=[2, 2, 5, 3], segmentation=None, area=None, iscrowd=1)
    target = _targets(_read(tmp_path, _document(_annotation(), outline, crowd)))["b.png"]
    assert target["areas"].tolist() == [70.5, 12, 15]
    assert target["masks"][1].sum() == 12


def test_an_area_is_the_masks_also_where_not_every_object_has_one(tmp_path):
    outline = _annotation(segmentation=[[1, 1, 5, 1, 5, 4, 1, 4]], area=None)
    animals = _read(tmp_path, _document(outline, _annotation(id=51, segmentation=[])))
    assert not animals.has_masks
    target = _targets(animals)["b.png"]
    assert target["areas"].tolist() == [12, 70.5]
    assert "masks" not in target


# Outlines


def _random_mask() -> np.ndarray:
    return (np.random.RandomState(3).rand(HEIGHT, WIDTH) < 0.4).astype(np.uint8)


def _counts(mask_HW: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first of zeros, counted one pixel after another."""
    counts, last = [0], 0
    for value in mask_HW.T.reshape(-1).tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def _drawn(polygons: list[list[float]]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own use of numpy
        return reference.decode(reference.merge(reference.frPyObjects(polygons, HEIGHT, WIDTH)))


@pytest.mark.parametrize(
    ("segmentation", "expected_HW"),
    [
        (TRIANGLE, _drawn(TRIANGLE)),
        ([*TRIANGLE, [10, 8, 23.3, 8.1, 23, 15, 11, 14]], _drawn([*TRIANGLE, [10, 8, 23.3, 8.1, 23, 15, 11, 14]])),
        ([[-5.5, -3, 40, 6, -2, 20.9]], _drawn([[-5.5, -3, 40, 6, -2, 20.9]])),
        ({"size": [HEIGHT, WIDTH], "counts": _counts(_random_mask())}, _random_mask()),
        (
            {
                "size": [HEIGHT, WIDTH],
                "counts": reference.encode(np.asfortranarray(_random_mask()))["counts"].decode(),
            },
            _random_mask(),
        ),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, np.zeros((HEIGHT, WIDTH))),
        ({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}, np.ones((HEIGHT, WIDTH))),
    ],
    ids=["polygon", "polygons", "polygon beyond the image", "counts", "compressed counts", "nothing", "everything"],
)
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_an_outline_is_drawn_as_by_cocos_own_tools(tmp_path, segmentation, expected_HW, iscrowd):
    target = _targets(_read(tmp_path, _document(_annotation(segmentation=segmentation, iscrowd=iscrowd))))["b.png"]
    assert np.array_equal(target["masks"][0].numpy(), expected_HW)
    assert target["crowd"].tolist() == [bool(iscrowd)]


def test_random_polygons_and_compressed_masks_are_drawn_as_by_cocos_own_tools(tmp_path):
    random = np.random.RandomState(0)
    annotations, expected = [], []
    for number in range(200):
        polygons = [random.uniform(-4, 28, 2 * random.randint(3, 9)).round(2).tolist() for _ in range(1 + number % 3)]
        annotations.append(_annotation(id=2 * number, segmentation=polygons))
        expected.append(_drawn(polygons))
        mask_HW = (random.rand(HEIGHT, WIDTH) < random.rand() ** 3).astype(np.uint8)
        compressed = reference.encode(np.asfortranarray(mask_HW))["counts"].decode()
        outline = {"size": [HEIGHT, WIDTH], "counts": compressed}
        annotations.append(_annotation(id=2 * number + 1, segmentation=outline))
        expected.append(mask_HW)
    masks_NHW = _targets(_read(tmp_path, _document(*annotations)))["b.png"]["masks"]
    assert np.array_equal(masks_NHW.numpy(), np.stack(expected))


def test_long_runs_are_uncompressed_as_they_were_compressed(tmp_path):
    """Runs beyond 2**15 take four letters and more."""
    width, height = 1000, 700
    mask_HW = np.zeros((height, width), dtype=np.uint8)
    mask_HW[:, 300:310] = 1
    mask_HW[5, 900] = 1
    counts = reference.encode(np.asfortranarray(mask_HW))["counts"].decode()
    image = {"id": 7, "file_name": "large.png", "width": width, "height": height}
    outline = {"size": [height, width], "counts": counts}
    _write(tmp_path)
    Image.new("RGB", (width, height)).save(tmp_path / "animals/train2017/large.png")
    target = _targets(
        _read(tmp_path, _document(_annotation(segmentation=outline), images=[image, *DOCUMENT["images"][1:]]))
    )
    assert np.array_equal(target["large.png"]["masks"][0].numpy(), mask_HW)


def test_there_are_masks_if_every_object_has_an_outline_crowds_aside(tmp_path):
    crowd = _annotation(id=51, iscrowd=1, segmentation=[], bbox=[2.5, 3, 4, 5.5])
    animals = _read(tmp_path, _document(_annotation(), crowd))
    assert animals.has_masks
    filled_HW = _targets(animals)["b.png"]["masks"][1]
    assert filled_HW[3:9, 2:7].all()
    assert filled_HW.sum() == 6 * 5


def test_one_object_without_an_outline_leaves_the_boxes_alone(tmp_path):
    bare = {key: value for key, value in _annotation().items() if key != "segmentation"}
    animals = _read(tmp_path, _document(_annotation(id=51), bare))
    assert not animals.has_masks
    assert "masks" not in animals.split("train")[1][1]


# Boxes without area

EMPTY = [3, 4, 1.03, 0.0]


def test_a_box_without_area_is_refused_by_its_annotations_id(tmp_path):
    with pytest.raises(DatasetCorrupt, match=r"instances_train2017\.json: annotation 50: box .* has no area") as caught:
        _read(tmp_path, _document(_annotation(bbox=EMPTY)))
    assert "empty_boxes" in caught.value.reason().hint


def test_a_box_without_area_is_dropped_if_asked(tmp_path):
    animals = _read(tmp_path, _document(_annotation(bbox=EMPTY), _annotation(id=51)), empty_boxes="drop")
    assert _targets(animals)["b.png"]["boxes"].tolist() == [[3.5, 2, 15.5, 13]]


def test_a_crowd_without_area_is_passed_over(tmp_path):
    animals = _read(tmp_path, _document(_annotation(bbox=EMPTY, iscrowd=1), _annotation(id=51)))
    assert _targets(animals)["b.png"]["crowd"].tolist() == [False]


# Layouts and splits


@pytest.mark.parametrize(
    ("images", "file"),
    [
        ("{}2017", "annotations/instances_{}2017.json"),
        ("{}2014", "annotations/instances_{}2014.json"),
        ("{}", "annotations/instances_{}.json"),
        ("{}", "annotations/{}.json"),
        ("{}", "{}/_annotations.coco.json"),
        ("images/{}2017", "annotations/instances_{}2017.json"),
        ("images", "annotations/{}.json"),
    ],
)
def test_every_usual_layout_is_read(tmp_path, images, file):
    for part in ("train", "val", "test"):
        document = _document()
        if images == "images":
            for image in document["images"]:
                image["file_name"] = f"{part}_{image['file_name']}"
        prefix = f"{part}_" if images == "images" else ""
        _write(tmp_path, document, images=images.format(part), file=file.format(part), prefix=prefix)
    animals = Coco(tmp_path, folder="animals")
    for part in ("train", "val", "test"):
        split = animals.split(part)
        assert (len(split), split[0][0].shape) == (3, (3, HEIGHT, WIDTH))
        assert split.source(0).startswith(images.format(part))


def test_valid_is_val(tmp_path):
    for part in ("train", "valid"):
        _write(tmp_path, images=part, file=f"{part}/_annotations.coco.json")
    assert Coco(tmp_path, folder="animals").split("test").source(0) == "valid/a.png"


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (["train", "val", "test"], [3, 3, 3]),
        (["train", "val"], [2, 1, 3]),
        (["train", "test"], [2, 1, 3]),
        (["train"], [1, 1, 1]),
    ],
    ids=["all three", "no test", "no val", "train alone"],
)
def test_what_is_missing_is_cut_from_train_the_same_for_ever(tmp_path, parts, sizes):
    for part in parts:
        _write(tmp_path, images=part, file=f"annotations/{part}.json")
    animals = Coco(tmp_path, folder="animals")
    splits = {name: animals.split(name) for name in ("train", "val", "test")}
    sources = [[split.source(index) for index in range(len(split))] for split in splits.values()]
    assert [len(each) for each in sources] == sizes
    assert len({each for part in sources for each in part}) == sum(sizes)
    again = Coco(tmp_path, folder="animals")
    assert [again.split("train").source(index) for index in range(sizes[0])] == sources[0]


def test_two_files_of_one_part_are_refused(tmp_path):
    _write(tmp_path)
    _write(tmp_path, images="train", file="annotations/train.json")
    with pytest.raises(DatasetCorrupt, match=r"both .*train\.json and .*instances_train2017\.json are there"):
        Coco(tmp_path, folder="animals")


def test_a_file_without_its_images_is_named(tmp_path):
    (_write(tmp_path) / "train2017").rename(tmp_path / "animals/elsewhere")
    with pytest.raises(DatasetMissing, match=r"train2017, with the images of .*instances_train2017\.json"):
        Coco(tmp_path, folder="animals")


def test_no_file_of_train_is_named(tmp_path):
    _write(tmp_path, images="val", file="annotations/val.json")
    with pytest.raises(DatasetMissing, match="animals has no instances file of train") as caught:
        Coco(tmp_path, folder="animals")
    assert "annotations/instances_train2017.json" in caught.value.reason().hint


def test_a_split_goes_to_a_loader_worker_small_and_whole(tmp_path):
    split = _read(tmp_path).split("train")
    again = pickle.loads(pickle.dumps(split))
    for key, value in split[1][1].items():
        assert torch.equal(again[1][1][key], value)


# Images


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _half_blue(width: int, height: int) -> Image.Image:
    """Its left half is blue, as stored."""
    image = Image.new("RGB", (width, height), (0, 200, 0))
    image.paste((0, 0, 200), (0, 0, width // 2, height))
    return image


@pytest.mark.parametrize(
    ("stored", "told", "shape", "blue"),
    [
        ((32, 16), (32, 16), (3, 16, 32), "left"),
        ((32, 16), (16, 32), (3, 32, 16), "top"),
        ((32, 32), (32, 32), (3, 32, 32), "left"),
    ],
    ids=["as stored", "as seen", "square"],
)
def test_an_image_is_turned_only_where_its_listed_size_says_so(tmp_path, stored, told, shape, blue):
    image = {"id": 7, "file_name": "turned.jpg", "width": told[0], "height": told[1]}
    place = _write(tmp_path)
    _half_blue(*stored).save(place / "train2017/turned.jpg", exif=_exif(6), quality=95)
    split = _read(tmp_path, _document(_annotation(bbox=[1, 1, 5, 5]), images=[image, *DOCUMENT["images"][1:]])).split(
        "train"
    )
    image_3HW = next(split[index][0] for index in range(3) if split.source(index).endswith("turned.jpg"))
    assert image_3HW.shape == shape
    y, x = (shape[1] // 2, 4) if blue == "left" else (4, shape[2] // 2)
    assert image_3HW[:, y, x].argmax() == 2
    assert image_3HW[:, -4, -4].argmax() == 1


def test_an_image_of_another_size_than_listed_is_named_with_both(tmp_path):
    place = _write(tmp_path)
    animals = _read(tmp_path)
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(place / "train2017/b.png")
    with pytest.raises(DatasetCorrupt, match=r"train2017/b\.png has 25x16 px where .*2017\.json says 24x16"):
        animals.split("train")[1]


@pytest.mark.parametrize(
    ("name", "image", "colour"),
    [
        ("cmyk.jpg", Image.new("RGB", (WIDTH, HEIGHT), (220, 30, 30)).convert("CMYK"), (220, 30, 30)),
        ("grey.jpg", Image.new("L", (WIDTH, HEIGHT), 90), (90, 90, 90)),
        ("alpha.png", Image.new("RGBA", (WIDTH, HEIGHT), (30, 30, 210, 10)), (30, 30, 210)),
        ("16_bits.png", Image.fromarray(np.full((HEIGHT, WIDTH), 0xABCD, dtype=np.uint16)), (0xAB, 0xAB, 0xAB)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, name, image, colour):
    place = _write(tmp_path)
    image.save(place / "train2017" / name)
    listed = {"id": 7, "file_name": name, "width": WIDTH, "height": HEIGHT}
    split = _read(tmp_path, _document(images=[*DOCUMENT["images"][1:], listed])).split("train")
    image_3HW = split[1][0]
    assert (image_3HW.dtype, image_3HW.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert (image_3HW[:, 5, 5].int() - torch.tensor(colour)).abs().amax() <= 8


def test_an_image_in_a_folder_of_its_own_is_found(tmp_path):
    place = _write(tmp_path)
    (place / "train2017/city").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(place / "train2017/city/b.png")
    listed = {"id": 7, "file_name": "city/b.png", "width": WIDTH, "height": HEIGHT}
    split = _read(tmp_path, _document(images=[*DOCUMENT["images"][1:], listed])).split("train")
    assert split.source(1) == "train2017/city/b.png"
    assert split[1][0].shape == (3, HEIGHT, WIDTH)


# What is refused when the file is read


def _with_image(**changes: Any) -> dict[str, Any]:
    return _document(images=[{**DOCUMENT["images"][0], **changes}, *DOCUMENT["images"][1:]])


def _without(rows: str, key: str) -> dict[str, Any]:
    document = _document()
    del document[rows][0][key]
    return document


def _outline(segmentation: Any) -> dict[str, Any]:
    return _document(_annotation(segmentation=segmentation))


def _runs(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return _outline({"size": list(size), "counts": counts})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "is no JSON"),
        ('{"images": [', "is no JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "holds a list, not an object of images, annotations, categories"),
        ('"text"', "holds a str"),
        ({}, "no list of objects named images"),
        (_document(images=[]), "an empty list of images"),
        (_document(categories=[]), "an empty list of categories"),
        ({**DOCUMENT, "annotations": []}, r"train2017\.json has no annotations"),
        (_document(images={"7": {}}), "no list of objects named images"),
        (_document(annotations=[1]), "no list of objects named annotations"),
        (_document(images=[*DOCUMENT["images"], DOCUMENT["images"][0]]), "image id 7 stands there twice"),
        (_document(categories=[*DOCUMENT["categories"], {"id": 3, "name": "x"}]), "category id 3 stands there twice"),
        (_document(_annotation(), _annotation()), "annotation id 50 stands there twice"),
        (_document(categories=[{"id": 3, "name": ""}]), "category 3 has the name ''"),
        (_document(categories=[{"id": 3, "name": "\ud800"}]), "category 3 has the name"),
        (_document(categories=[{"id": "3", "name": "dog"}]), "a category has the id '3'; ids are whole numbers"),
        (_with_image(id=7.0), r"an image has the id 7\.0"),
        (_with_image(id=2**64), "an image has the id 18446744073709551616"),
        (_with_image(id=True), "an image has the id True"),
        (_without("images", "id"), "an image has the id None"),
        (_without("images", "width"), "image 7 is None wide and 16 high"),
        (_with_image(height=0), "image 7 is 24 wide and 0 high"),
        (_with_image(width=10**9), "image 7 is 1000000000 wide"),
        (_with_image(width="24"), "width and height are whole numbers"),
        (_with_image(file_name=5), "image 7 has no file_name"),
        (_with_image(file_name="../b.png"), r"'\.\./b\.png' must be a path below .*train2017, without '\.\.'"),
        (_with_image(file_name="c/../../b.png"), "must be a path below"),
        (_with_image(file_name="/etc/passwd"), "'/etc/passwd' must be a path below"),
        (_with_image(file_name=""), "'' must be a path below"),
        (_with_image(file_name="."), "'.' must be a path below"),
        (
            json.dumps(DOCUMENT).replace('"id": 40', f'"id": {"[" * 500}{"]" * 500}'),
            r"an annotation has the id \[+\.\.\.",
        ),
        (_document(_annotation(id=None)), "an annotation has the id None"),
        (_document(_annotation(image_id=99)), "annotation 50: image_id 99 is none of images"),
        (_document(_annotation(image_id=True)), "annotation 50: image_id True is none of images"),
        (_document(_annotation(category_id=1)), "annotation 50: category_id 1 is none of categories"),
        (_document(_annotation(category_id=[3])), r"annotation 50: category_id \[3\] is none of categories"),
        (_document(_annotation(iscrowd="no")), "annotation 50: iscrowd is 'no'; it is 0 or 1"),
        (_document(_annotation(bbox=None)), "annotation 50: bbox None is not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, 3])), r"annotation 50: bbox \[1, 2, 3\] is not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, 3, "4"])), "not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, 3, True])), "not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, float("nan"), 4])), "bbox .*nan.* is not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, float("inf"), 4])), "not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, 3, 10**400])), "not four finite numbers"),
        (_document(_annotation(bbox=[1, 2, 0, 4])), "annotation 50: box 1,2 to 1,6 has no area"),
        (_document(_annotation(bbox=[9, 2, -3, 4])), "annotation 50: box 9,2 to 6,6 has no area"),
        (
            _document(_annotation(bbox=[30, 2, 3, 4])),
            "annotation 50: box 30,2 to 33,6 lies outside of its image of 24x16",
        ),
        (_document(_annotation(bbox=[-9, 2, 9, 4])), "lies outside of its image"),
        (_document(_annotation(area=-1)), "annotation 50: area -1 is no finite number from 0 on"),
        (_document(_annotation(area=float("nan"))), "annotation 50: area nan"),
        (_document(_annotation(area="big")), "annotation 50: area 'big'"),
        (_outline("m0n0"), "annotation 50: segmentation must be a list of polygons or an object"),
        (_outline([1, 2, 3, 4, 5, 6]), "annotation 50: segmentation must be a list of polygons or an object"),
        (_outline([[1, 2, 3, 4]]), "annotation 50: a polygon has 4 numbers"),
        (_outline([*TRIANGLE, [1, 2, 3, 4, 5, 6, 7]]), "annotation 50: a polygon has 7 numbers"),
        (_outline([*TRIANGLE, []]), "annotation 50: a polygon has 0 numbers"),
        (_outline([[1, 2, 3, 4, 5, "6"]]), "annotation 50: a polygon has a coordinate that is not a number"),
        (_outline([[1, 2, 3, 4, 5, True]]), "a coordinate that is not a number"),
        (_outline([[1, 2, 3, 4, 5, None]]), "a coordinate that is not a number"),
        (_outline([[1, 2, 3, 4, 5, float("nan")]]), "annotation 50: a polygon has a coordinate beyond"),
        (_outline([[1, 2, 3, 4, 5, float("-inf")]]), "a coordinate beyond"),
        (_outline([[1, 2, 3, 4, 5, 10**400]]), "a coordinate without end"),
        (_outline([[1, 2, 3, 4, 5, 1e9]]), "a coordinate beyond twice the image's longer side, 24 px"),
        (_runs([5, 5]), "annotation 50: run lengths sum to 10; the image has 384 pixels"),
        (_runs([400, -16]), "annotation 50: a run length is -16; none may be negative"),
        (_runs([384.0]), "counts of run lengths must be whole numbers or a string"),
        (_runs([True, 383]), "counts of run lengths must be whole numbers or a string"),
        (_runs(None), "counts of run lengths must be whole numbers or a string"),
        (_runs([384], (WIDTH, HEIGHT)), r"run lengths of size \[24, 16\]; height and width are 16, 24"),
        (_runs([384], ()), r"run lengths of size \[\]"),
        (_runs(""), "counts '' are no compressed run lengths"),
        (_runs("µ"), "are no compressed run lengths"),
        (_runs("0 0"), "are no compressed run lengths"),
        (_runs("a"), "are no compressed run lengths"),
        (_runs("o" * 20 + "0"), "a number does not end"),
        (_runs("O"), "a run length is -1; none may be negative"),
        (_runs("11"), "run lengths sum to 2; the image has 384 pixels"),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read_and_named(tmp_path, document, says):
    with pytest.raises(DatasetCorrupt, match=says) as caught:
        _read(tmp_path, document)
    assert str(tmp_path / "animals") in caught.value.message
    assert caught.value.reason().blame == "data"
    assert len(caught.value.message) < 400 + len(str(tmp_path)) * 2


@pytest.mark.parametrize("name", ["gone.png", "city/gone.png", "a\0b.png", "x" * 5000, "\udc99.png"])
def test_a_missing_image_is_named_with_the_file_that_lists_it(tmp_path, name):
    with pytest.raises(DatasetMissing, match=r"instances_train2017\.json: .* is not in .*train2017"):
        _read(tmp_path, _with_image(file_name=name))


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (_write(tmp_path) / "annotations/instances_train2017.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DatasetCorrupt, match=r"instances_train2017\.json is not UTF-8"):
        Coco(tmp_path, folder="animals")


def test_an_integer_of_more_digits_than_python_reads_is_named(tmp_path):
    with pytest.raises(DatasetCorrupt, match="is no JSON"):
        _read(tmp_path, '{"images": ' + "9" * 5000 + "}")


def test_val_may_lack_categories_of_train(tmp_path):
    _write(tmp_path)
    few = _document(DOCUMENT["annotations"][1], categories=DOCUMENT["categories"][:1])
    _write(tmp_path, few, images="val2017", file="annotations/instances_val2017.json")
    animals = Coco(tmp_path, folder="animals")
    assert animals.classes == ("dog", "cat")
    assert animals.split("test")[0][1]["labels"].tolist() == [1]


@pytest.mark.parametrize("named", ["cow", "cat"])
def test_categories_of_val_are_those_of_train(tmp_path, named):
    _write(tmp_path)
    changed = _document(categories=[{"id": 3, "name": "dog"}, {"id": 4, "name": named}, {"id": 17, "name": "cat"}])
    _write(tmp_path, changed, images="val2017", file="annotations/instances_val2017.json")
    with pytest.raises(DatasetCorrupt, match=rf"val2017\.json: category 4 is '{named}'; in train it is None"):
        Coco(tmp_path, folder="animals")


@pytest.mark.parametrize("link", ["train2017", "train2017/b.png", "annotations/instances_train2017.json"])
def test_a_link_out_of_the_data_root_is_refused_wherever_it_is(tmp_path, link):
    place = _write(tmp_path / "root")
    outside = tmp_path / "outside"
    (place / link).rename(outside)
    (place / link).symlink_to(outside)
    with pytest.raises(DatasetCorrupt, match="out of the data root"):
        Coco(tmp_path / "root", folder="animals")


def test_a_folder_in_the_place_of_an_image_is_named(tmp_path):
    place = _write(tmp_path)
    (place / "train2017/b.png").unlink()
    (place / "train2017/b.png").mkdir()
    with pytest.raises(DatasetCorrupt, match=r"train2017/b\.png is not a file"):
        Coco(tmp_path, folder="animals")


def test_a_damaged_image_is_named_when_it_is_asked_for(tmp_path):
    animals = _read(tmp_path)
    (tmp_path / "animals/train2017/b.png").write_bytes(b"\x89PNG")
    with pytest.raises(DatasetCorrupt, match=r"train2017/b\.png cannot be read as an image"):
        animals.split("train")[1]


def test_an_image_that_went_away_is_named(tmp_path):
    animals = _read(tmp_path)
    (tmp_path / "animals/train2017/b.png").unlink()
    with pytest.raises(DatasetMissing, match=r"train2017/b\.png is not there any more"):
        animals.split("train")[1]


def test_a_folder_out_of_the_data_root_is_refused(tmp_path):
    _write(tmp_path)
    with pytest.raises(OptionInvalid, match="must be a path below the data root"):
        Coco(tmp_path / "animals", folder="../animals")


def test_its_options_are_checked(tmp_path):
    with pytest.raises(OptionInvalid, match="empty_boxes"):
        registry.check_options(Coco, {"folder": "animals", "empty_boxes": "keep"}, where="dataset coco")
