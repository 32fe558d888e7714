"""Objects in COCO's layout, for detection."""

from acmix.inspection.formats._contract import Format

_PARTS = ("train", "train2014", "train2017", "val", "val2014", "val2017", "valid", "test", "test2014", "test2017")


class Coco(Format):
    """Folders of images, and one JSON file of instances for each."""

    name = "coco"
    task = "detection"
    layout = frozenset({"annotations", "images", *_PARTS})
    expected = (
        "train/<image> and annotations/train.json or annotations/instances_train.json (also with 2017 behind train),\n"
        "or train/_annotations.coco.json among the images; val and test alike if there are such splits"
    )
