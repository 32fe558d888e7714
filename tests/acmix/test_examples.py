"""What a model is most confidently wrong of: the right samples, the most confident first, no more than are told."""

import pytest
import torch
from torch import nn

from acmix.datasets._contract import IGNORED
from acmix.tasks._examples import MOST_EXAMPLES, Examples
from acmix.tasks.classification import Classification
from acmix.tasks.detection import Detection
from acmix.tasks.segmentation import Segmentation
from tests.acmix.small import evaluated

CLASSES = ("cat", "dog")


class Told(nn.Module):
    """Says of every batch what it was told to."""

    def __init__(self, *answers: object) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, _images: object) -> object:
        return self.answers.pop(0)


def test_the_most_confident_are_kept_and_of_equals_the_first():
    examples = Examples()
    for index in range(40):
        examples.add(index, (index % 20) / 20, told=index)
    kept = examples.most_confident_first()
    assert len(kept) == MOST_EXAMPLES
    assert [each["index"] for each in kept[:4]] == [19, 39, 18, 38]
    assert kept[0] == {"index": 19, "confidence": 0.95, "told": 19}


def test_wrong_labels_are_told_with_what_was_named():
    sure, unsure, right = [0.0, 5.0], [0.0, 1.0], [3.0, 0.0]
    batches = [(torch.zeros(2, 3, 1, 1), torch.tensor([0, 0])), (torch.zeros(1, 3, 1, 1), torch.tensor([0]))]
    model = Told(torch.tensor([unsure, right]), torch.tensor([sure]))
    found = evaluated(Classification(CLASSES, 0.0), model, batches).examples
    assert [each["index"] for each in found] == [2, 0]
    assert found[0]["confidence"] == pytest.approx(1 / (1 + 2.718281828**-5), abs=1e-6)
    assert (found[0]["named"], found[0]["true"]) == ("dog", "cat")


def test_boxes_that_meet_no_object_of_their_class_are_told():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    found = {"boxes": boxes, "labels": torch.tensor([0, 1, 0]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    nothing = {"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.6])}
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        "labels": torch.tensor([0]),
        "areas": torch.tensor([100.0]),
        "crowd": torch.tensor([False]),
    }
    empty = {name: each[:0] for name, each in target.items()}
    model = Told([found], [nothing])
    batches = [([torch.zeros(3, 32, 32)], [target]), ([torch.zeros(3, 32, 32)], [empty])]
    told = evaluated(Detection(CLASSES, 0.0), model, batches).examples
    assert [(each["index"], each["named"], round(each["confidence"], 3)) for each in told] == [
        (0, "dog", 0.8),
        (0, "cat", 0.7),
        (1, "dog", 0.6),
    ]
    assert told[1]["box"] == [20.0, 20.0, 30.0, 30.0]
    assert told[0]["overlap"] == 0


def test_images_are_told_by_the_confidence_of_their_wrong_pixels():
    logits = torch.zeros(2, 2, 1, 4)
    logits[0, 1] = 1.0  # says dog, a little sure
    logits[1, 1] = 4.0  # says dog, surer
    labels = torch.tensor([[[0, 0, 0, 1]], [[0, 1, 1, IGNORED]]], dtype=torch.uint8)
    model = Told([logits])
    told = evaluated(Segmentation(CLASSES, 0.0), model, [(torch.zeros(2, 3, 1, 4), labels)]).examples
    assert [each["index"] for each in told] == [1, 0]
    assert [each["wrong_share"] for each in told] == [0.25, 0.75]
    assert told[0]["confidence"] == pytest.approx(1 / (1 + 2.718281828**-4), abs=1e-6)
