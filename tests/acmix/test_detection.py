"""Detection: judged as COCO's own code judges, trained on what is there, whatever the sizes of the images."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as runs
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from acmix.errors import OptionInvalid
from acmix.model import build
from acmix.spec import FlatChoice
from acmix.tasks._coco import CocoScore
from acmix.tasks.detection import Detection
from tests.acmix.small import evaluated
from tests.acmix.small_scenes import HEADS, detector, scene_batch

CLASSES = ("circle", "square", "star")
COCO_PLACES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}


def _objects(random: np.random.RandomState, count: int, side: int) -> dict[str, Tensor]:
    """Ellipses of all sizes: their boxes, masks and areas."""
    y, x = np.mgrid[:side, :side]
    masks = []
    for _ in range(count):
        radius_y, radius_x = random.uniform(4, side / 2.2, 2)
        centre_y, centre_x = random.uniform(0.2 * side, 0.8 * side, 2)
        masks.append(((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1)
    masks_NHW = torch.from_numpy(np.asarray(masks, np.uint8).reshape(count, side, side))
    boxes = [[each.any(0).nonzero()[0] for each in (mask, mask.T)] for mask in masks]
    corners = [[c.min(), r.min(), c.max() + 1, r.max() + 1] for c, r in boxes]
    return {
        "boxes": torch.tensor(np.asarray(corners, np.float32).reshape(count, 4)),
        "masks": masks_NHW,
        "labels": torch.from_numpy(random.randint(0, len(CLASSES), count)),
        "areas": masks_NHW.sum((1, 2)).float(),
        "crowd": torch.from_numpy(random.rand(count) < 0.15),
    }


def _detections(random: np.random.RandomState, truth: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Some of the truth, shifted; some wrong labels; some of nothing."""
    kept = torch.from_numpy(random.rand(len(truth["labels"])) < 0.8)
    shifts = random.randint(-6, 7, (int(kept.sum()), 2))
    masks = [np.roll(mask, shift, (0, 1)) for mask, shift in zip(truth["masks"][kept].numpy(), shifts, strict=True)]
    boxes = truth["boxes"][kept] + torch.from_numpy(np.tile(shifts[:, ::-1], 2).copy()).float()
    labels = truth["labels"][kept].clone()
    wrong = torch.from_numpy(random.rand(len(labels)) < 0.2)
    labels[wrong] = (labels[wrong] + 1) % len(CLASSES)
    noise = _objects(random, random.randint(0, 3), side)
    shifted = torch.from_numpy(np.asarray(masks, np.uint8).reshape(-1, side, side))
    return {
        "boxes": torch.cat([boxes, noise["boxes"]]),
        "masks": torch.cat([shifted, noise["masks"]]).bool(),
        "labels": torch.cat([labels, noise["labels"]]),
        "scores": torch.from_numpy(random.rand(len(labels) + len(noise["labels"]))).float(),
    }


def _plain(images: list[tuple[dict[str, Tensor], dict[str, Tensor]]], kind: str) -> COCOeval:
    """pycocotools on the same, written down here a second time."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (told, target) in enumerate(images):
        for source, rows in ((target, truth), (told, found)):
            for index in range(len(source["labels"])):
                left, top, right, bottom = source["boxes"][index].tolist()
                row = {
                    "image_id": number,
                    "category_id": int(source["labels"][index]),
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": runs.encode(np.asfortranarray(source["masks"][index].numpy().astype(np.uint8))),
                }
                if source is target:
                    row |= {"id": len(rows) + 1, "area": float(target["areas"][index])}
                    row["iscrowd"] = int(target["crowd"][index])
                else:
                    row["score"] = float(told["scores"][index])
                rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": number, "height": target["masks"].shape[1], "width": target["masks"].shape[2]}
                for number, (_, target) in enumerate(images)
            ],
            "annotations": truth,
            "categories": [{"id": label} for label in range(len(CLASSES))],
        }
        coco.createIndex()
        judged = COCOeval(coco, coco.loadRes(found), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_pycocotools(seed: int):
    random = np.random.RandomState(seed)
    images = []
    for number in range(12):
        side = int(random.choice([40, 130, 300]))
        truth = _objects(random, 0 if number == 3 else random.randint(1, 7), side)
        images.append((_detections(random, truth, side), truth))
    score = CocoScore(CLASSES, masks=True)
    for told, truth in images:
        score.add(len(score.images), told, truth)
    evaluation = score.evaluation()
    for ours, kind in (("box", "bbox"), ("mask", "segm")):
        judged = _plain(images, kind)
        for name, place in COCO_PLACES.items():
            assert evaluation.metrics.get(f"{ours}_{name}", -1) == pytest.approx(judged.stats[place], abs=1e-6)
        for label, row in enumerate(evaluation.per_class):
            precision = judged.eval["precision"][:, :, label, 0, -1]
            assert row[f"{ours}_ap"] == pytest.approx(precision[precision > -1].mean(), abs=1e-6)
            assert row[f"{ours}_ap50"] == pytest.approx(precision[0][precision[0] > -1].mean(), abs=1e-6)
    assert evaluation.samples == 12


def test_sizes_and_classes_that_are_not_there_have_no_figure():
    truth = _objects(np.random.RandomState(0), 1, 40) | {"crowd": torch.tensor([False]), "labels": torch.tensor([1])}
    score = CocoScore(CLASSES, masks=False)
    score.add(0, {**truth, "scores": torch.ones(1)}, truth)
    evaluation = score.evaluation()
    assert evaluation.metrics["box_ap"] == 1
    assert "box_ap_large" not in evaluation.metrics
    assert [row["box_ap"] for row in evaluation.per_class] == [None, 1, None]


def test_nothing_found_is_a_precision_of_0():
    truth = _objects(np.random.RandomState(0), 2, 40) | {"crowd": torch.zeros(2, dtype=torch.bool)}
    nothing = {name: each[:0] for name, each in truth.items()} | {"scores": torch.zeros(0)}
    score = CocoScore(CLASSES, masks=True)
    score.add(0, nothing, truth)
    assert score.evaluation().metrics["mask_ap"] == 0


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_of_sizes_crowds_and_empty_images_is_learned(head: str):
    task, model = detector(head)
    images, targets = scene_batch(sides=((64, 64), (48, 96), (70, 50)))
    targets[1] = {name: each[:0] for name, each in targets[1].items()}
    targets[2]["crowd"][:] = True
    loss, figures = task.step(model.train(), (images, targets))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.allclose(loss, sum(value for name, value in figures.items() if name != "loss"))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("head", HEADS)
def test_what_is_found_lies_in_the_pixels_of_the_image(head: str):
    """Images are resized to the data set's short side on the way; what is found is told where it is in the image."""
    task, model = detector(head, image_px=64)
    images, targets = scene_batch(sides=((32, 48), (128, 96)))
    with torch.no_grad():
        found = model.eval()(images)
    for image, each, target in zip(images, found, targets, strict=True):
        height, width = image.shape[-2:]
        assert (each["boxes"] >= 0).all()
        assert (each["boxes"][:, [0, 2]] <= width).all()
        assert (each["boxes"][:, [1, 3]] <= height).all()
        if task.has_masks:
            assert each["masks"].shape[1:] == (1, height, width)
            assert target["masks"].shape[1:] == (height, width)
    assert evaluated(task, model, [(images, targets)]).samples == 2


def test_a_crowd_is_not_trained_on():
    task, model = detector("retinanet")
    images, targets = scene_batch(sides=((64, 64), (64, 64)))
    crowded = [{name: torch.cat([each, each]) for name, each in target.items()} for target in targets]
    for target, count in ((each, len(each["labels"]) // 2) for each in crowded):
        target["crowd"][count:] = True
        target["labels"][count:] = (target["labels"][count:] + 1) % 10
    assert torch.equal(task.step(model, (images, targets))[0], task.step(model, (images, crowded))[0])


def test_frozen_norms_stay_as_they_are():
    task, model = detector("retinanet", frozen_norm=True)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in model.backbone.body.modules())
    norms = [each for each in model.modules() if isinstance(each, FrozenBatchNorm2d)]
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in norms]
    loss, _ = task.step(model.train(), scene_batch())
    loss.backward()
    assert norms
    for norm, was in zip(norms, before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in norm.state_dict().items())


def test_a_frozen_norm_computes_what_the_norm_does_when_judging():
    from acmix.heads.detectors import freeze_norms

    images = torch.rand(2, 3, 64, 64)
    body = build({"name": "resnet26", "options": {"width": 0.0625}}, num_classes=None, image_px=64)
    body(images)  # moves the running averages
    with torch.no_grad():
        expected = body.eval()(images)
        for ours, theirs in zip(freeze_norms(body)(images), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_head_of_masks_says_so_of_a_data_set_without():
    class Boxes:
        name, task, has_masks = "boxes_only", "detection", False

    task = Detection(CLASSES, 0.0, head="mask_rcnn")
    with pytest.raises(OptionInvalid, match="boxes_only has none here; retinanet would do"):
        task.transforms(Boxes(), FlatChoice(name="none"))  # type: ignore[arg-type]  # enough of one


def test_a_cascade_stage_that_moves_nothing_leaves_the_boxes():
    from acmix.heads.cascade_mask_rcnn import refined

    _, model = detector("cascade_mask_rcnn")
    boxes = [torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 60.0]]), torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    for stage in model.roi_heads.stages:
        still = refined(stage, torch.zeros(3, 4 * 11), boxes, [(64, 64), (64, 64)])
        assert all(torch.allclose(moved, box, atol=1e-4) for moved, box in zip(still, boxes, strict=True))
        outside = refined(stage, torch.full((3, 4 * 11), 2.0), boxes, [(64, 64), (64, 64)])
        assert all(((each >= 0) & (each <= 64)).all() for each in outside)


def test_a_cascade_raises_the_overlap_from_stage_to_stage():
    _, model = detector("cascade_mask_rcnn")
    stages = model.roi_heads.stages
    assert [stage.proposal_matcher.high_threshold for stage in stages] == [0.5, 0.6, 0.7]
    _, figures = detector("cascade_mask_rcnn")[0].step(model.train(), scene_batch())
    parts = {"loss_objectness", "loss_rpn_box_reg"}
    parts |= {f"loss_{name}_{stage}" for name in ("classifier", "box_reg", "mask") for stage in (1, 2, 3)}
    assert figures.keys() == {"loss"} | parts


def test_the_coarsest_maps_are_learned_in_float32_whatever_the_precision():
    """torch writes only a part of the gradient of a strided bfloat16 convolution of a single position."""
    from acmix.heads._neck import CoarserMaps

    torch.manual_seed(0)
    coarser = CoarserMaps(8, 16)
    fused, maps = torch.randn(2, 16, 2, 2), torch.randn(2, 8, 2, 2)
    gradients = []
    for enabled in (False, True):
        coarser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made, names = coarser([fused], [maps], ["0"])
        sum(each.square().sum() for each in made).backward()
        gradients.append([each.grad.clone() for each in coarser.parameters()])
    assert names == ["0", "p6", "p7"]
    assert [each.shape[-1] for each in made] == [2, 1, 1]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
