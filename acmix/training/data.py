"""Batches of a split: in an order and with random numbers that only seed, epoch and index decide."""

# Shapes: B batch, H W image

import hashlib
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.utils.data
from torch import Tensor

from acmix import tether
from acmix.datasets._contract import Split
from acmix.errors import AcmixError
from acmix.tasks._contract import Batch, Transform
from acmix.training.augment import SEEDS
from acmix.training.mixing import Mixing


@dataclass(frozen=True)
class Division:
    """How an epoch's samples are shared out: into batches, and each batch evenly among the ranks that train together.

    `batch_size` is of one rank, so that a whole batch has `batch_size * ranks` samples.
    """

    samples: int
    batch_size: int
    ranks: int = 1
    limit_batches: int | None = None

    @property
    def whole(self) -> int:
        """Samples of a whole batch."""
        return self.batch_size * self.ranks

    @property
    def batches(self) -> int:
        """Batches of an epoch. A last one that leaves a rank a single sample is dropped: batch norm cannot train on it.

        It stays where it is the only one, or where every rank has but one of each.
        """
        batches = math.ceil(self.samples / self.whole)
        least = self.ranks * min(2, self.batch_size)
        if batches > 1 and 0 < self.samples % self.whole < least:
            batches -= 1
        return batches if self.limit_batches is None else min(batches, self.limit_batches)

    def size_of(self, batch: int) -> int:
        """Samples of a batch, counted from 0, of all ranks together."""
        return min(self.whole, self.samples - batch * self.whole)

    def span_of(self, batch: int, rank: int) -> tuple[int, int]:
        """Where in the epoch's order a rank's samples of a batch begin and end."""
        each, more = divmod(self.size_of(batch), self.ranks)
        start = batch * self.whole + rank * each + min(rank, more)
        return start, start + each + (rank < more)


def training_batches(
    split: Split,
    transform: Transform,
    division: Division,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    start_batch: int = 0,
    loader_workers: int = 0,
    pin_memory: bool = False,
    mixing: Mixing | None = None,
) -> Iterator[Batch]:
    """A rank's share of the epoch's batches from `start_batch` on, as the transform makes them.

    Of classification images, float32 (B, 3, H, W), and labels, int64 (B,); with `mixing`, labels are the share of
    every class, float32 (B, C).

    The same whatever `loader_workers` and wherever a run resumed, and, but for mixing, all ranks together as one alone
    with as large a batch; the random state of the caller is neither used nor changed. Loader workers end with the
    iterator. What a worker raises of our errors is raised here as it was.
    """
    order = torch.randperm(len(split), generator=_generator(seed, epoch, "order"))
    image_seeds = torch.randint(SEEDS, (len(split),), generator=_generator(seed, epoch, "augment"))
    spans = [division.span_of(batch, rank) for batch in range(start_batch, division.batches)]
    return _load(_Batches(split, transform, order, spans, image_seeds, mixing), loader_workers, pin_memory=pin_memory)


def evaluation_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    loader_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[int, Batch]]:
    """All samples in the split's order, in batches that ranks take in turn, each with the index of its first sample.

    A batch is the same whoever takes it. Shapes are as in training_batches.
    """
    starts = range(rank * batch_size, len(split), ranks * batch_size)
    order = torch.arange(len(split))
    spans = [(start, min(start + batch_size, len(split))) for start in starts]
    batches = _Batches(split, transform, order, spans, torch.zeros_like(order))
    return zip(starts, _load(batches, loader_workers, pin_memory=pin_memory), strict=True)


class _Batches(torch.utils.data.Dataset[Batch | AcmixError]):
    """Batches by number, as the loader wants them; what loader workers run."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        order: Tensor,
        spans: Sequence[tuple[int, int]],
        image_seeds: Tensor,
        mixing: Mixing | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.order = order  # indices of the split
        self.spans = spans  # of each batch, where in the order it begins and ends
        self.image_seeds = image_seeds  # by index of the split
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Batch | AcmixError:
        """The batch, or the error in its place: the loader would rewrite one that is raised."""
        start, end = self.spans[number]
        indices = self.order[start:end].tolist()
        try:
            seeds = self.image_seeds[indices].tolist()
            batch = self.transform.collate([self.split[index] for index in indices], seeds)
            return self.mixing(*batch, seeds[0]) if self.mixing else batch
        except AcmixError as error:
            return error


def _load(batches: _Batches, loader_workers: int, *, pin_memory: bool) -> Iterator[Batch]:
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=loader_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),  # the loader warns where nothing can be pinned for
        worker_init_fn=partial(_tie, os.getpid()),
        multiprocessing_context=_context() if loader_workers else None,
        generator=torch.Generator(),  # else it would draw from the caller's
    )
    items = iter(loader)
    try:
        for item in items:
            if isinstance(item, AcmixError):
                raise item
            yield item
    finally:
        del items  # ends the workers, also while a traceback holds this frame


def _context() -> BaseContext:
    """The platform's way to start a process, but never a fork of one that holds a GPU."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return multiprocessing.get_context()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by every worker of every epoch
    return context


def _tie(run_pid: int, _worker: int) -> None:
    """The loader's own watch is on the parent, which is the fork server where there is one, and that lives on."""
    tether.to_process(run_pid)


def _unchanged(item: Any) -> Any:
    return item


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{purpose} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
