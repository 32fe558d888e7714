"""An evaluation shared out among ranks is that of one, to the last bit, however the batches went."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acmix.tasks._contract import Batch, Task
from acmix.tasks.classification import Classification
from acmix.tasks.detection import Detection
from acmix.tasks.segmentation import Segmentation
from tests.acmix.small import evaluated

CLASSES = ("cat", "dog", "owl")
PX = 24


class Says(nn.Module):
    """What a model would say of each image is in the image's own numbers."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self.say = say

    def forward(self, images: Any) -> Any:
        return self.say(images)


def classification(rng: torch.Generator) -> tuple[Task, nn.Module, list[Batch]]:
    sizes = (5, 5, 5, 5, 5, 2)
    batches = [(torch.randn(size, 3, generator=rng), torch.randint(3, (size,), generator=rng)) for size in sizes]
    return Classification(CLASSES, 0.0), nn.Identity(), batches


def segmentation(rng: torch.Generator) -> tuple[Task, nn.Module, list[Batch]]:
    def batch(size: int) -> Batch:
        logits, labels = torch.randn(size, 3, 4, 6, generator=rng), torch.randint(3, (size, 4, 6), generator=rng)
        return logits, labels.byte()

    return Segmentation(CLASSES, 0.0), Says(lambda images: [images]), [batch(size) for size in (3, 3, 3, 3, 1)]


def detection(rng: torch.Generator, head: str = "mask_rcnn") -> tuple[Task, nn.Module, list[Batch]]:
    """Scores of few different values: the order of equals tells in COCO's figures."""
    found: list[dict[str, Tensor]] = []

    def boxes(count: int) -> Tensor:
        corners = torch.randint(PX - 8, (count, 2), generator=rng)
        return torch.cat([corners, corners + torch.randint(3, 8, (count, 2), generator=rng)], dim=1).float()

    def masks(of: Tensor) -> Tensor:
        drawn = torch.zeros(len(of), PX, PX, dtype=torch.bool)
        for mask_HW, (left, top, right, bottom) in zip(drawn, of.int().tolist(), strict=True):
            mask_HW[top:bottom, left:right] = True
        return drawn

    def target() -> dict[str, Tensor]:
        there = boxes(int(torch.randint(1, 4, (), generator=rng)))
        labels = torch.randint(3, (len(there),), generator=rng)
        named = torch.cat([there, boxes(2)])
        guessed = torch.cat([labels, torch.randint(3, (2,), generator=rng)]) + 1
        scores = torch.randint(1, 4, (len(named),), generator=rng) / 4
        found.append({"boxes": named, "labels": guessed, "scores": scores, "masks": masks(named)[:, None].float()})
        areas = (there[:, 2] - there[:, 0]) * (there[:, 3] - there[:, 1])
        crowd = torch.zeros(len(there), dtype=torch.bool)
        return {"boxes": there, "labels": labels, "areas": areas, "crowd": crowd, "masks": masks(there)}

    targets = [target() for _ in range(17)]
    images = [torch.tensor(float(number)) for number in range(17)]
    batches = [(images[start : start + 3], targets[start : start + 3]) for start in range(0, 17, 3)]
    return Detection(CLASSES, 0.0, head=head), Says(lambda shown: [found[int(each)] for each in shown]), batches


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranks", [2, 3, 9])
@pytest.mark.parametrize("make", [classification, segmentation, detection])
def test_ranks_that_share_a_split_out_tell_what_one_would(make: Any, ranks: int, seed: int) -> None:
    task, model, batches = make(torch.Generator().manual_seed(seed))
    alone = evaluated(task, model, batches)
    tallies = [task.tally() for _ in range(ranks)]
    for number, (first, batch) in enumerate(_with_first(batches)):
        tallies[number % ranks].add(model, batch, first)
    told = [json.loads(json.dumps(tally.told())) for tally in tallies]
    for rank, tally in enumerate(tallies):
        others = [each for number, each in enumerate(told) if number != rank]
        random.Random(seed).shuffle(others)
        for each in others:
            tally.take(each)
        assert tally.evaluation() == alone
    assert alone.samples == sum(len(images) for images, _ in batches)
    assert alone.examples


def _with_first(batches: Sequence[Batch]) -> list[tuple[int, Batch]]:
    firsts = [sum(len(images) for images, _ in batches[:number]) for number in range(len(batches))]
    return list(zip(firsts, batches, strict=True))
