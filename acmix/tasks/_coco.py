"""COCO's average precisions, computed by faster-coco-eval on what a model found and what is there.

Source: https://cocodataset.org/#detection-eval
"""

# Shapes: N objects of an image, H W image; T overlaps, R recalls, K classes, A sizes, M numbers of detections

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from torch import Tensor

from acmix.tasks._contract import Evaluation

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
_PLACES = (0, 1, 2, 3, 4, 5, 8)  # of the figures among COCO's twelve
_SIZES = ((0, 32**2), (32**2, 96**2), (96**2, float("inf")))  # square pixels of small, medium and large
_AP50 = 0  # of the overlaps
_ALL_SIZES, _MOST_FOUND = 0, -1


class CocoScore:
    """Collects images in any order; figures that nothing speaks for, such as of sizes that are not there, are
    left out."""

    def __init__(self, classes: Sequence[str], *, masks: bool) -> None:
        self.classes = list(classes)
        self.kinds = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def add(self, image: int, found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        """An image by its index: what was found, with `scores`, and its target (acmix.datasets._contract.Split)."""
        sides = dict(zip(("height", "width"), target["masks"].shape[1:], strict=True)) if "mask" in self.kinds else {}
        self.images.append({"id": image, **sides})
        truth, found = _on_host(target), _on_host(found)
        for number, each in enumerate(_objects(image, truth, masks="mask" in self.kinds)):
            sized = {"area": float(truth["areas"][number]), "iscrowd": int(truth["crowd"][number])}
            self.truth.append({**each, **sized})
        for number, each in enumerate(_objects(image, found, masks="mask" in self.kinds)):
            self.found.append({**each, "score": float(found["scores"][number])})

    def told(self) -> dict[str, Any]:
        """All images added, as JSON values."""
        return {"images": self.images, "truth": self.truth, "found": self.found}

    def take(self, told: Mapping[str, Any]) -> None:
        """Images that another told of."""
        self.images += told["images"]
        self.truth += told["truth"]
        self.found += told["found"]

    def evaluation(self, examples: Sequence[Mapping[str, Any]] = ()) -> Evaluation:
        """Over all images added; `examples` are told along with it."""
        self._put_in_order()
        metrics: dict[str, float] = {}
        per_class: list[dict[str, Any]] = [
            {"class": name, "objects": sum(each["category_id"] == label for each in self.truth)}
            for label, name in enumerate(self.classes)
        ]
        for kind, coco_kind in self.kinds.items():
            judged = self._judged(coco_kind)
            figures = self._of_nothing_found() if judged is None else [judged.stats[place] for place in _PLACES]
            told = zip(FIGURES, figures, strict=True)
            metrics |= {f"{kind}_{name}": float(figure) for name, figure in told if figure >= 0}
            for label, row in enumerate(per_class):
                row.update(_of_class(kind, judged, label, objects=row["objects"]))
        return Evaluation(metrics, per_class, None, len(self.images), examples)

    def _put_in_order(self) -> None:
        """By image: the order of equals tells in COCO's figures."""
        self.images.sort(key=lambda each: each["id"])
        for objects in (self.truth, self.found):
            objects.sort(key=lambda each: each["image_id"])
        for number, each in enumerate(self.truth, start=1):
            each["id"] = number

    def _of_nothing_found(self) -> list[float]:
        """0 for all that is there to be found, as COCO has it, and -1 for sizes that are not."""
        areas = [each["area"] for each in self.truth if not each["iscrowd"]]
        sizes = [any(least <= area <= most for area in areas) for least, most in _SIZES]
        whole = bool(areas)
        return [float(there) - 1 for there in (whole, whole, whole, *sizes, whole)]

    def _judged(self, coco_kind: str) -> Any:
        """COCO's evaluation; None where nothing was found or nothing is there: it takes neither."""
        from faster_coco_eval import COCO, COCOeval_faster

        if not self.found or not self.truth:
            return None
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes)]
        with redirect_stdout(StringIO()):
            truth = COCO({"images": self.images, "annotations": self.truth, "categories": categories})
            judged = COCOeval_faster(truth, truth.loadRes(self.found), coco_kind, print_function=_silent)
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        return judged


def _silent(*_: Any) -> None:
    return None


def _of_class(kind: str, judged: Any, label: int, *, objects: int) -> dict[str, float | None]:
    """Average precision of one class; null where no object is of it."""
    if judged is None or not objects:
        nothing = 0.0 if objects else None
        return {f"{kind}_ap": nothing, f"{kind}_ap50": nothing}
    precision_TR = judged.eval["precision"][:, :, label, _ALL_SIZES, _MOST_FOUND]
    return {f"{kind}_ap": _mean(precision_TR), f"{kind}_ap50": _mean(precision_TR[_AP50])}


def _mean(precision: Any) -> float | None:
    told = precision[precision > -1]
    return float(told.mean()) if told.size else None


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As arrays; numpy has no bfloat16."""
    on_host = {name: each.detach().cpu() for name, each in tensors.items()}
    return {name: (each.float() if each.is_floating_point() else each).numpy() for name, each in on_host.items()}


def _objects(image: int, told: Mapping[str, Any], *, masks: bool) -> list[dict[str, Any]]:
    """What COCO calls annotations: boxes by corner and size, masks in runs."""
    boxes = told["boxes"].astype(np.float64)
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    objects = [
        {"image_id": image, "category_id": int(label), "bbox": box}
        for label, box in zip(told["labels"], corner_and_size.tolist(), strict=True)
    ]
    if masks:
        from faster_coco_eval.core import mask as runs

        for each, mask_HW in zip(objects, told["masks"], strict=True):
            encoded = runs.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
            each["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}  # JSON takes no bytes
    return objects
