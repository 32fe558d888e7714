"""Batches depend on spec, seed and epoch; not on loader workers, not on where a run resumed, not on the caller."""

import multiprocessing
import os
import random
from itertools import chain, islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acmix.datasets._split import TensorSplit
from acmix.datasets.digits import Digits
from acmix.datasets.image_folder import ImageFolder
from acmix.errors import DatasetCorrupt
from acmix.spec import FlatChoice
from acmix.training.augment import ImageTransform, evaluation_transform, training_transform
from acmix.training.data import Division, evaluation_batches, training_batches
from acmix.training.mixing import Mixing

PLAIN = ImageTransform((), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(Path())


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageFolder:
    """50 images of noise to train on."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.RandomState(0)
    for split, images in (("train", 25), ("val", 3), ("test", 3)):
        for name in ("a", "b"):
            place = root / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(images):
                Image.fromarray(rng.randint(0, 256, (20, 24, 3), dtype=np.uint8)).save(place / f"{number:02}.png")
    return ImageFolder(root, folder="photos", image_px=16)


def _numbered(samples: int) -> TensorSplit:
    """Images whose label is their index."""
    return TensorSplit(torch.zeros(samples, 1, 4, 4, dtype=torch.uint8), torch.arange(samples))


def _training(dataset, *, augment: str = "default", **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    transform = training_transform(dataset, FlatChoice(name=augment))
    split, batch_size = dataset.split("train"), options.pop("batch_size", 8)
    division = Division(len(split), batch_size, limit_batches=6)
    return list(training_batches(split, transform, division, **{"seed": 3, "epoch": 1, **options}))


def _equal(some, others) -> bool:
    return len(some) == len(others) and all(
        torch.equal(images, other_images) and torch.equal(labels, other_labels)
        for (images, labels), (other_images, other_labels) in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("dataset", ["digits", "photos"])
@pytest.mark.parametrize("augment", ["default", "randaugment"])
def test_loader_workers_do_not_change_the_batches(dataset, augment, request):
    data = request.getfixturevalue(dataset)
    assert _equal(_training(data, augment=augment), _training(data, augment=augment, loader_workers=2))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_batches_depend_on_neither_workers_nor_resume_nor_caller(photos, mixup, cutmix):
    mixing = Mixing(mixup, cutmix, num_classes=2)
    whole = _training(photos, mixing=mixing)
    torch.manual_seed(17)
    assert _equal(whole, _training(photos, mixing=mixing, loader_workers=2))
    assert _equal(whole[4:], _training(photos, mixing=mixing, start_batch=4))
    assert not _equal(whole, _training(photos, mixing=mixing, epoch=2))


def test_mixed_images_carry_their_share_of_every_class():
    """Images that are 0 or 1 throughout: the mean of a mixed one is the share of the second class in it."""
    images = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    for mixing in (Mixing(0.8, 0.0, 2), Mixing(0.0, 1.0, 2)):
        shares_seen = set()
        for seed in range(20):
            mixed, shares = mixing(images, labels, seed)
            torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(shares.sum(1), torch.ones(6))
            shares_seen.update(shares.flatten().tolist())
        assert len(shares_seen) > 20


def test_both_kinds_of_mixing_take_turns():
    """Mixup leaves values between 0 and 1 in images of 0 and 1; CutMix leaves none."""
    images = torch.tensor([0.0, 1.0]).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    between = [
        bool(((mixed > 0) & (mixed < 1)).any())
        for mixed, _ in (Mixing(1.0, 1.0, 2)(images, torch.tensor([0, 1]), seed) for seed in range(40))
    ]
    assert 8 < sum(between) < 32


@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("start_batch", [0, 1, 5, 6])
def test_a_run_that_resumes_in_mid_epoch_sees_the_batches_that_were_left(photos, start_batch, loader_workers):
    resumed = _training(photos, start_batch=start_batch, loader_workers=loader_workers)
    assert _equal(resumed, _training(photos)[start_batch:])


def test_what_was_done_before_is_not_loaded_again(tmp_path, photos):
    """The images of the first batches may be gone."""
    read = []

    class Watched:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index):
            read.append(index)
            return torch.zeros(3, 4, 4, dtype=torch.uint8), index

    batches = training_batches(Watched(), PLAIN, Division(40, 10), start_batch=3, seed=0, epoch=0)
    left = [labels.tolist() for _, labels in batches]
    assert [read] == left
    assert len(read) == 10


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(photos):
    def order_and_first_image(**options):
        split = _numbered(50)
        batches = training_batches(split, PLAIN, Division(50, 8), **options)
        labels = [label for _, batch in batches for label in batch.tolist()]
        assert sorted(labels) == list(range(50))
        transform = training_transform(photos, FlatChoice(name="default"))
        batches = training_batches(photos.split("train"), transform, Division(50, 50), **options)
        images_B3HW, _ = next(iter(batches))
        return tuple(labels), images_B3HW[labels.index(0)].numpy().tobytes()

    seen = [order_and_first_image(seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({order for order, _ in seen}) == 4
    assert len({image for _, image in seen}) == 4
    assert seen[1] == order_and_first_image(seed=0, epoch=1)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_the_random_state_of_the_caller_is_neither_used_nor_changed(photos, loader_workers):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    transform = training_transform(photos, FlatChoice(name="randaugment"))
    arguments = {"seed": 0, "epoch": 0, "loader_workers": loader_workers}
    first, before = [], state()
    for batch in training_batches(photos.split("train"), transform, Division(50, 8), **arguments):
        first.append(batch)
        assert state() == before
    list(evaluation_batches(photos.split("val"), transform, batch_size=4, loader_workers=loader_workers))
    assert state() == before
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert _equal(first, list(training_batches(photos.split("train"), transform, Division(50, 8), **arguments)))


def test_batches_are_float_images_and_integer_labels(digits):
    for images_B3HW, labels_B in _training(digits):
        assert (images_B3HW.dtype, images_B3HW.shape) == (torch.float32, (8, 3, 8, 8))
        assert (labels_B.dtype, labels_B.shape) == (torch.int64, (8,))


@pytest.mark.parametrize(
    ("samples", "batch_size", "limit", "sizes"),
    [
        (10, 4, None, [4, 4, 2]),
        (9, 4, None, [4, 4]),
        (8, 4, None, [4, 4]),
        (1, 4, None, [1]),
        (3, 1, None, [1, 1, 1]),
        (10, 4, 2, [4, 4]),
        (9, 4, 5, [4, 4]),
        (4, 9, None, [4]),
    ],
)
def test_a_last_batch_of_one_sample_is_dropped_where_there_are_others(samples, batch_size, limit, sizes):
    division = Division(samples, batch_size, limit_batches=limit)
    batches = training_batches(_numbered(samples), PLAIN, division, seed=0, epoch=0)
    assert [len(labels) for _, labels in batches] == sizes
    assert [division.size_of(batch) for batch in range(division.batches)] == sizes


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
def test_ranks_share_out_the_batches_of_one_with_as_large_a_batch(samples, batch_size, ranks):
    together, alone = Division(samples, batch_size, ranks), Division(samples, batch_size * ranks)
    assert alone.batches - 1 <= together.batches <= alone.batches
    for batch in range(together.batches):
        spans = [together.span_of(batch, rank) for rank in range(ranks)]
        sizes = [end - start for start, end in spans]
        assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
        assert (spans[0][0], spans[-1][1]) == alone.span_of(batch, 0)
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == together.size_of(batch)
        if together.batches > 1:
            assert min(sizes) >= min(2, batch_size)


def test_every_rank_loads_its_share_of_the_order_of_all(photos):
    transform = training_transform(photos, FlatChoice(name="default"))
    split, arguments = photos.split("train"), {"seed": 3, "epoch": 1, "start_batch": 1}
    alone = list(training_batches(split, transform, Division(50, 24), **arguments))
    shares = [list(training_batches(split, transform, Division(50, 8, 3), rank=rank, **arguments)) for rank in range(3)]
    together = [tuple(map(torch.cat, zip(*of_a_batch, strict=True))) for of_a_batch in zip(*shares, strict=True)]
    assert _equal(alone[: len(together)], together)
    assert len(together) == 1  # of the 2 that are left none has enough for three


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_evaluation_takes_every_sample_in_order(loader_workers):
    batches = list(evaluation_batches(_numbered(9), PLAIN, batch_size=4, loader_workers=loader_workers))
    told = [(first, labels.tolist()) for first, (_, labels) in batches]
    assert told == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (8, [8])]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_take_the_batches_of_an_evaluation_in_turn(ranks):
    batches = [
        [
            (first, labels.tolist())
            for first, (_, labels) in evaluation_batches(_numbered(9), PLAIN, batch_size=4, rank=rank, ranks=ranks)
        ]
        for rank in range(ranks)
    ]
    assert sorted(chain(*batches)) == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (8, [8])]
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_evaluation_changes_nothing(digits):
    split = digits.split("val")
    _, (images_B3HW, _) = next(iter(evaluation_batches(split, evaluation_transform(digits), batch_size=180)))
    expected = torch.stack([evaluation_transform(digits)(split[index][0]) for index in range(180)])
    assert torch.equal(images_B3HW, expected)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_an_unreadable_image_is_named_as_the_data_set_named_it(tmp_path, loader_workers):
    for name in ("a", "b"):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos/train" / name / f"{number}.png")
    photos = ImageFolder(tmp_path, folder="photos", image_px=8)
    spoilt, _ = photos.split("train").files[5]
    Path(spoilt).write_text("a text")
    with pytest.raises(DatasetCorrupt) as alone:
        photos.split("train")[5]
    with pytest.raises(DatasetCorrupt) as caught:
        _training(photos, batch_size=4, loader_workers=loader_workers)
    assert spoilt in caught.value.message
    assert (caught.value.message, caught.value.hint) == (alone.value.message, alone.value.hint)
    assert caught.value.reason() == alone.value.reason()
    assert multiprocessing.active_children() == []


def test_loader_workers_end_with_the_iterator_also_when_it_is_closed_early(photos):
    transform = training_transform(photos, FlatChoice(name="default"))
    batches = training_batches(photos.split("train"), transform, Division(50, 4), seed=0, epoch=0, loader_workers=2)
    next(batches)
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_running() for worker in workers)


def test_loader_workers_end_with_an_epoch(photos):
    _training(photos, loader_workers=2)
    assert multiprocessing.active_children() == []


class _Parents(TensorSplit):
    """The label is the process that started the one that loads."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0], os.getppid()


def test_a_process_that_holds_a_gpu_is_not_forked(monkeypatch):
    """The GPU is faked; the processes are real."""
    split = _Parents(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4))

    def parents() -> set[int]:
        batches = evaluation_batches(split, PLAIN, batch_size=2, loader_workers=1)
        return {int(labels[0]) for _, (_, labels) in batches}

    assert parents() == {os.getpid()}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert os.getpid() not in parents()


def test_pinned_memory_may_be_asked_for_on_a_machine_without_a_gpu():
    batches = list(evaluation_batches(_numbered(4), PLAIN, batch_size=2, pin_memory=True))
    assert [images.is_pinned() for _, (images, _) in batches] == [torch.cuda.is_available()] * 2


def test_closing_before_the_first_batch_starts_no_workers(photos):
    batches = training_batches(photos.split("train"), PLAIN, Division(50, 4), seed=0, epoch=0, loader_workers=2)
    assert list(islice(batches, 0)) == []
    batches.close()
    assert multiprocessing.active_children() == []
