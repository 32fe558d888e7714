"""Segmentation: judged by counting pixels, on whole images and by sliding, without pixels that are to be ignored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.datasets._contract import IGNORED
from acmix.datasets.digits_segmentation import DigitsSegmentation
from acmix.model import build
from acmix.tasks.segmentation import Segmentation, slid
from acmix.training.dense_augment import ImageAlone, scale_crop
from acmix.training.scenes import SegmentationTransform
from tests.acmix.small import evaluated
from tests.acmix.small_scenes import RESNET

CLASSES = ("ground", "road", "sky", "never")


class Pointwise(nn.Module):
    """Logits that depend on their own pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Conv2d(3, len(CLASSES), 1)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        return [self.weights(images_B3HW)]


SMALL_SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def _segmenter(head: str, *, backbone: Any = RESNET, **options: Any) -> tuple[Segmentation, nn.Module]:
    torch.manual_seed(0)
    task = Segmentation(DigitsSegmentation.classes, 0.0, head=head, channels=16, **options)
    return task, task.model(build(backbone, num_classes=None, image_px=64), 64)


def _batch(count: int = 2, image_px: int = 64) -> tuple[Tensor, Tensor]:
    dataset = DigitsSegmentation(Path(), image_px=image_px)
    split = dataset.split("train")
    transform = SegmentationTransform((), dataset.mean, dataset.std, stacked=True)
    return transform.collate([split[index] for index in range(count)], [0] * count)


def _random_batches(sides: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Images and label maps of three of the four classes, a tenth of the pixels ignored."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, *side, generator=generator) for side in sides]
    labels = [torch.randint(0, 3, side, generator=generator).to(torch.uint8) for side in sides]
    for each in labels:
        each[torch.rand(each.shape, generator=generator) < 0.1] = IGNORED
    return images, labels


@pytest.mark.parametrize("sides", [[(9, 7), (9, 7)], [(9, 7), (12, 20), (5, 5)]], ids=["alike", "of all sizes"])
def test_the_figures_are_a_plain_count_of_pixels(sides: list[tuple[int, int]]):
    torch.manual_seed(3)
    model, task = Pointwise().eval(), Segmentation(CLASSES, 0.1)
    images, labels = _random_batches(sides)
    with torch.no_grad():
        evaluation = evaluated(task, model, [(images, labels)])
        logits = [model(image[None])[0][0] for image in images]
    hits, true, named, right, counted, losses = np.zeros(4), np.zeros(4), np.zeros(4), 0, 0, 0.0
    for logits_OHW, labels_HW in zip(logits, labels, strict=True):
        for y, x in np.ndindex(*labels_HW.shape):
            label, said = int(labels_HW[y, x]), int(logits_OHW[:, y, x].argmax())
            if label == IGNORED:
                continue
            hits[label] += label == said
            true[label] += 1
            named[said] += 1
            right, counted = right + (label == said), counted + 1
            losses -= float(F.log_softmax(logits_OHW[:, y, x].double(), dim=0)[label])
    either = true + named - hits
    there = either > 0
    assert evaluation.metrics["miou"] == pytest.approx((hits[there] / either[there]).mean(), abs=1e-6)
    assert evaluation.metrics["macc"] == pytest.approx((hits[true > 0] / true[true > 0]).mean(), abs=1e-6)
    assert evaluation.metrics["aacc"] == pytest.approx(right / counted, abs=1e-6)
    assert evaluation.metrics["loss"] == pytest.approx(losses / counted, abs=1e-5)
    assert np.asarray(evaluation.confusion_matrix).sum(1).tolist() == true.tolist()
    assert evaluation.per_class[3]["accuracy"] is None
    assert evaluation.samples == len(sides)


def test_sliding_sees_what_the_whole_image_shows():
    """Of a model that looks at single pixels, windows that overlap in any way give the same."""
    model = Pointwise().eval()
    images_B3HW = torch.randn(2, 3, 50, 33)
    for window_px in (8, 20, 33, 64):
        assert torch.allclose(slid(model, images_B3HW, window_px), model(images_B3HW)[0], atol=1e-6)


def test_sliding_covers_every_pixel_with_windows_of_the_training_crop():
    task, model = _segmenter("semantic_fpn", evaluation="slide")
    seen: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, images: seen.append(images[0].shape[-2:]))
    model.eval()
    images, labels = _batch(1, image_px=100)
    with torch.no_grad():
        assert evaluated(task, model, [(images, labels)]).samples == 1
    assert set(seen) == {(64, 64)}
    assert len(seen) == 4


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_step_trains_every_weight(head: str, auxiliary: bool):
    task, model = _segmenter(head, auxiliary=auxiliary)
    loss, figures = task.step(model.train(), _batch())
    loss.backward()
    assert ("loss_auxiliary" in figures) == auxiliary
    assert 0 <= figures["accuracy"] <= 1
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("backbone", ["resnet26", "timm/swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_images_of_odd_sides_are_labelled_pixel_by_pixel(head: str, backbone: str):
    options = RESNET["options"] if backbone == RESNET["name"] else SMALL_SWIN
    _, model = _segmenter(head, backbone={"name": backbone, "options": options})
    assert model.eval()(torch.randn(1, 3, 45, 67))[0].shape == (1, 11, 45, 67)


def test_pixels_to_be_ignored_teach_nothing():
    task, model = _segmenter("semantic_fpn")
    model.eval()
    images, labels = _batch()
    labels[0] = IGNORED
    both, _ = task.step(model, (images, labels))
    alone, _ = task.step(model, (images[1:], labels[1:]))
    assert torch.allclose(both, alone, rtol=1e-4)
    nothing, figures = task.step(model, (images, torch.full_like(labels, IGNORED)))
    assert nothing == 0
    assert figures["accuracy"] == 0


def test_the_accuracy_of_a_step_is_that_of_the_largest_logit():
    task, model = _segmenter("semantic_fpn")
    model.eval()
    images, labels = _batch()
    with torch.no_grad():
        _, figures = task.step(model, (images, labels))
        named = model(images)[0].argmax(dim=1)
    assert figures["accuracy"] == pytest.approx(float((named == labels).float().mean()), abs=1e-6)


def test_crops_change_image_and_labels_alike_and_by_the_seed_alone():
    """An image that shows its own labels still does so after a random scale, crop and mirroring."""
    dataset = DigitsSegmentation(Path(), image_px=64)
    labels_HW = dataset.split("train")[0][1]
    image_3HW = (labels_HW * 20).expand(3, -1, -1).contiguous()
    dataset.in_memory = False
    steps = scale_crop(dataset, min_scale=0.5, max_scale=2.0)
    transform = SegmentationTransform(steps, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), stacked=True)
    samples = [(image_3HW, labels_HW)] * 6
    images, labels = transform.collate(samples, list(range(6)))
    assert images.shape == (6, 3, 64, 64)
    for image, map_HW in zip(images, labels, strict=True):
        inside = map_HW != IGNORED
        shown = (image[0] / 20).round()
        assert (shown[inside] == map_HW[inside]).float().mean() > 0.9  # the rest lies on edges, which bilinear mixes
    again, _ = transform.collate(samples[:2], [4, 5])
    assert torch.equal(again, images[4:])
    assert not torch.equal(images[0], images[1])


def test_judged_images_are_resized_and_their_labels_are_not():
    step = ImageAlone(lambda image: image[..., ::2, ::2])
    transform = SegmentationTransform((step,), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images, labels = transform.collate([(torch.zeros(3, 8, 6, dtype=torch.uint8), torch.zeros(8, 6))], [0])
    assert (images[0].shape, labels[0].shape) == ((3, 4, 3), (8, 6))
