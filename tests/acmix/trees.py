"""Small trees of real scans in every format that a data set can be declared as."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acmix.datasets.digits_detection import DigitsDetection
from acmix.datasets.digits_segmentation import DigitsSegmentation

SIDE = 48


def _scenes(task: str) -> list[tuple[Image.Image, Any]]:
    kind: Any = {"detection": DigitsDetection, "segmentation": DigitsSegmentation}[task]
    split = kind(Path(), image_px=SIDE).split("train")
    return [
        (Image.fromarray(image.permute(1, 2, 0).numpy()), target) for image, target in map(split.__getitem__, range(8))
    ]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _coco(place: Path) -> Path:
    """Gives an image that is listed."""
    images, annotations = [], []
    for number, (image, target) in enumerate(_scenes("detection")):
        _save(image, place / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            sized = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            corners = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
            row = {"id": len(annotations), "image_id": number, "category_id": label, "bbox": sized}
            annotations.append({**row, "segmentation": [corners], "iscrowd": 0})
    names = [{"id": label, "name": str(label)} for label in range(10)]
    (place / "annotations").mkdir()
    document = {"images": images, "annotations": annotations, "categories": names}
    (place / "annotations/train.json").write_text(json.dumps(document))
    return place / "train/3.png"


def _voc(place: Path) -> Path:
    (place / "ImageSets/Main").mkdir(parents=True)
    (place / "Annotations").mkdir()
    for number, (image, target) in enumerate(_scenes("detection")):
        _save(image, place / "JPEGImages" / f"{number}.jpg")
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1:.0f}</xmin><ymin>{top + 1:.0f}</ymin>"
            f"<xmax>{right:.0f}</xmax><ymax>{bottom:.0f}</ymax></bndbox></object>"
            for (left, top, right, bottom), label in zip(
                target["boxes"].tolist(), target["labels"].tolist(), strict=True
            )
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        (place / "Annotations" / f"{number}.xml").write_text(text)
    for split, numbers in (("train", range(6)), ("val", (6, 7))):
        (place / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
    return place / "JPEGImages/3.jpg"


def _ade20k(place: Path) -> Path:
    for number, (image, labels) in enumerate(_scenes("segmentation")):
        part = "training" if number < 6 else "validation"
        _save(image, place / "images" / part / f"{number}.jpg")
        _save(Image.fromarray(labels.numpy()), place / "annotations" / part / f"{number}.png")
    return place / "images/training/3.jpg"


def _mask_folder(place: Path) -> Path:
    for number, (image, labels) in enumerate(_scenes("segmentation")):
        _save(image, place / "train/images" / f"{number}.png")
        _save(Image.fromarray(labels.numpy()), place / "train/masks" / f"{number}.png")
    (place / "classes.txt").write_text("\n".join(DigitsSegmentation.classes))
    return place / "train/images/3.png"


def _classes(place: Path) -> Path:
    random = np.random.RandomState(0)
    for number in range(8):
        pixels = random.randint(0, 256, (20, 20, 3)).astype(np.uint8)
        split = "train" if number < 6 else "val"
        _save(Image.fromarray(pixels), place / split / f"n0{number % 2}" / f"{number}.JPEG")
    return place / "train/n01/3.JPEG"


TREES: dict[str, Callable[[Path], Path]] = {
    "coco": _coco,
    "voc": _voc,
    "ade20k": _ade20k,
    "mask_folder": _mask_folder,
    "imagenet": _classes,
    "image_folder": _classes,
}
