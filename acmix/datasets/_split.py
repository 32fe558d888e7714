"""Splits: those that lie in memory, and how a missing one is cut from train."""

# Shapes: S samples, C channels, H W image

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acmix.datasets._contract import SplitName
from acmix.errors import DatasetCorrupt

CUT_FRACTION = 0.1
CUT_SEED = 0
_CUT: tuple[SplitName, ...] = ("test", "val")
_REST: SplitName = "train"


class TensorSplit:
    """A split in memory: uint8 images (S, C, H, W) and labels (S,); one channel is repeated into three."""

    def __init__(self, images_SCHW: Tensor, labels_S: Tensor) -> None:
        self.images_SCHW = images_SCHW
        self.labels = labels_S.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images_SCHW[index].expand(3, -1, -1), self.labels[index]

    def source(self, index: int) -> str:
        return f"number {index}"


def tenth(samples: int) -> int:
    """How many of the samples a split takes that is cut from them: a tenth, at least one."""
    return max(1, round(samples * CUT_FRACTION))


def cut(labels: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """Indices, rising, of one split for each of `sizes`, then those of the rest; the same for ever.

    Every split holds every class by its share.
    """
    ends = [0, *accumulate(sizes), len(labels)]
    order = torch.from_numpy(_mixed_order(np.asarray(labels, dtype=np.int64)))
    return [order[start:end].sort().values for start, end in pairwise(ends)]


def complete(labels: Mapping[str, Sequence[int]], place: str) -> dict[SplitName, tuple[str, list[int]]]:
    """All three splits, each as the part that it lies in and its indices there, from the parts' labels by index.

    Without test, val serves as test; what is then missing is cut from train. `place` is train's name in the error.
    """
    as_it_is = {part: (part, list(range(len(samples)))) for part, samples in labels.items()}
    splits: dict[SplitName, tuple[str, list[int]]] = {}
    if "test" in labels or "val" in labels:
        splits["test"] = as_it_is["test" if "test" in labels else "val"]
    if "test" in labels and "val" in labels:
        splits["val"] = as_it_is["val"]
    missing: list[SplitName] = [name for name in _CUT if name not in splits]
    samples = len(labels["train"])
    if samples <= len(missing):
        raise DatasetCorrupt(f"{place} has {samples} images; too few to cut {' and '.join(missing)} from it")
    parts = cut(labels["train"], [tenth(samples)] * len(missing))
    for name, indices in zip([*missing, _REST], parts, strict=True):
        splits[name] = "train", indices.tolist()
    return splits


def _mixed_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices in a random order each stretch of which holds every class by its share.

    A sample's place is (its rank in its class + 1/2) / size of the class, with ranks and ties drawn at random.
    """
    # RandomState: the one generator whose stream numpy promises never to change.
    shuffled = np.random.RandomState(CUT_SEED).permutation(len(labels))
    label = labels[shuffled]
    size = np.bincount(label)
    by_class = np.argsort(label, kind="stable")
    rank = np.empty_like(label)
    rank[by_class] = np.arange(len(label)) - np.repeat(np.cumsum(size) - size, size)
    order: NDArray[np.int64] = shuffled[np.argsort((rank + 0.5) / size[label], kind="stable")]
    return order
