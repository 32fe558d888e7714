"""Batches of a split: in an order and with random numbers that only seed, epoch and index decide."""

# Shapes: B batch, H W image

import hashlib
import math
import multiprocessing
import os
from collections.abc import Iterator
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


def training_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    limit_batches: int | None = None,
    loader_workers: int = 0,
    pin_memory: bool = False,
    mixing: Mixing | None = None,
) -> Iterator[Batch]:
    """The epoch's batches from `start_batch` on, as the transform makes them.

    Of classification images, float32 (B, 3, H, W), and labels, int64 (B,); with `mixing`, labels are the share of
    every class, float32 (B, C).

    The same whatever `loader_workers` and wherever a run resumed; the random state of the caller is neither used
    nor changed. Loader workers end with the iterator. What a worker raises of our errors is raised here as it was.
    """
    batches = batches_an_epoch(len(split), batch_size, limit_batches)
    order = torch.randperm(len(split), generator=_generator(seed, epoch, "order"))
    order = order[start_batch * batch_size : batches * batch_size]
    image_seeds = torch.randint(SEEDS, (len(split),), generator=_generator(seed, epoch, "augment"))
    batch_list = _Batches(split, transform, order, image_seeds, batch_size, mixing)
    return _load(batch_list, loader_workers, pin_memory=pin_memory)


def evaluation_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    loader_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """All samples, in the split's order; shapes as in training_batches."""
    order = torch.arange(len(split))
    image_seeds = torch.zeros_like(order)
    return _load(_Batches(split, transform, order, image_seeds, batch_size), loader_workers, pin_memory=pin_memory)


def batches_an_epoch(samples: int, batch_size: int, limit_batches: int | None = None) -> int:
    """How many batches training_batches gives: a last one of a single sample is dropped, batch norm cannot train on it.

    It stays where it is the only one, or where every batch is of one.
    """
    batches = math.ceil(samples / batch_size)
    if batches > 1 and batch_size > 1 and samples % batch_size == 1:
        batches -= 1
    return batches if limit_batches is None else min(batches, limit_batches)


class _Batches(torch.utils.data.Dataset[Batch | AcmixError]):
    """Batches by number, as the loader wants them; what loader workers run."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        order: Tensor,
        image_seeds: Tensor,
        batch_size: int,
        mixing: Mixing | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.order = order  # indices of the split
        self.image_seeds = image_seeds  # by index of the split
        self.batch_size = batch_size
        self.mixing = mixing

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, number: int) -> Batch | AcmixError:
        """The batch, or the error in its place: the loader would rewrite one that is raised."""
        indices = self.order[number * self.batch_size : (number + 1) * self.batch_size].tolist()
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
