"""The classification task against a slow loop."""

import pytest
import torch
from torch import nn

from acmix.tasks._contract import is_better
from acmix.tasks.classification import Classification
from tests.acmix.small import evaluated


def _batches(seed: int = 0, classes: int = 7, sizes: tuple[int, ...] = (5, 5, 3)) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, classes, generator=generator), torch.randint(0, classes, (size,), generator=generator))
        for size in sizes
    ]


def test_metrics_equal_a_slow_count_to_the_last_sample() -> None:
    task = Classification([f"c{i}" for i in range(7)], 0.1)
    found = evaluated(task, nn.Identity(), _batches())
    logits = torch.cat([images for images, _ in _batches()]).tolist()
    labels = torch.cat([labels for _, labels in _batches()]).tolist()
    hits = top5 = 0
    matrix = [[0] * 7 for _ in range(7)]
    for row, label in zip(logits, labels, strict=True):
        ranked = sorted(range(7), key=lambda index: -row[index])
        hits += ranked[0] == label
        top5 += label in ranked[:5]
        matrix[label][ranked[0]] += 1
    assert found.samples == 13
    assert found.metrics["accuracy"] == hits / 13
    assert found.metrics["top5_accuracy"] == top5 / 13
    assert found.confusion_matrix == matrix
    for index, entry in enumerate(found.per_class):
        true, named = sum(matrix[index]), sum(row[index] for row in matrix)
        assert entry["samples"] == true
        assert entry["recall"] == pytest.approx(matrix[index][index] / true) if true else entry["recall"] is None
        assert (
            entry["precision"] == pytest.approx(matrix[index][index] / named) if named else entry["precision"] is None
        )


def test_the_evaluated_loss_knows_no_label_smoothing() -> None:
    smooth, plain = (
        evaluated(Classification(["a"] * 7, smoothing), nn.Identity(), _batches()) for smoothing in (0.5, 0.0)
    )
    assert smooth.metrics == plain.metrics
    trained = [Classification(["a"] * 7, smoothing).step(nn.Identity(), _batches()[0])[0] for smoothing in (0.5, 0.0)]
    assert trained[0] != trained[1]


def test_labels_may_be_shares_of_classes() -> None:
    logits, labels = _batches()[0]
    task = Classification(["a"] * 7, 0.1)
    loss, shown = task.step(nn.Identity(), (logits, labels))
    shares_loss, shares_shown = task.step(nn.Identity(), (logits, nn.functional.one_hot(labels, 7).float()))
    torch.testing.assert_close(shares_loss, loss)
    assert shares_shown["accuracy"] == shown["accuracy"]
    mixed = 0.3 * nn.functional.one_hot(labels, 7) + 0.7 * nn.functional.one_hot((labels + 1) % 7, 7)
    expected = 0.3 * loss + 0.7 * task.step(nn.Identity(), (logits, (labels + 1) % 7))[0]
    torch.testing.assert_close(task.step(nn.Identity(), (logits, mixed))[0], expected)


def test_two_classes_have_a_top5_of_one() -> None:
    assert evaluated(Classification(["a", "b"], 0), nn.Identity(), _batches(classes=2)).metrics["top5_accuracy"] == 1


def test_of_equals_the_later_is_better_and_losses_fall() -> None:
    assert is_better("accuracy", 0.5, None)
    assert is_better("accuracy", 0.5, 0.5)
    assert not is_better("accuracy", 0.4, 0.5)
    assert is_better("loss", 0.4, 0.5)
    assert not is_better("loss", 0.6, 0.5)
