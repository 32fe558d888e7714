"""Every sample of a data set read as training reads it: counted by class, measured, and held against all others."""

# Shapes: H W image

import hashlib
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from acmix.datasets._contract import Dataset, Split, SplitName
from acmix.datasets._images import FORMATS
from acmix.errors import AcmixError
from acmix.inspection.faults import Faults, fault_of
from acmix.inspection.targets import labels_of

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MOST_DUPLICATES_TOLD = 20


@dataclass
class SplitFindings:
    """How many samples a split has, and how many of each class."""

    samples: int
    labels: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Duplicate:
    """Two samples of different splits whose pixels are the same."""

    files: tuple[str, str]
    splits: tuple[str, str]
    same: str  # "bytes" of the files, or "pixels" alone


@dataclass
class Findings:
    """What every sample together says; widths and heights in pixels, as training sees them."""

    classes: Sequence[str]
    has_masks: bool
    splits: dict[SplitName, SplitFindings]
    faults: Faults = field(default_factory=Faults)
    widths: "array[int]" = field(default_factory=lambda: array("I"))
    heights: "array[int]" = field(default_factory=lambda: array("I"))
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    duplicates: list[Duplicate] = field(default_factory=list)
    duplicates_total: int = 0
    duplicates_within_a_split: int = 0


def look_at(dataset: Dataset, root: Path, tell: Callable[[int, int | None], None]) -> Findings:
    """Read every sample; `tell` is called with how many are done, of how many.

    One that cannot be read is a fault of its file, and the others are read all the same.
    """
    torch.set_num_threads(1)  # each thread takes address space, and there may be as many as cores
    look = _Look(dataset, root)
    total = sum(map(len, look.splits.values()))
    for name, split in look.splits.items():
        for index in range(len(split)):
            look.at(name, index)
            tell(look.done, total)
    return look.findings


class _Look:
    """The samples seen so far."""

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.root = root
        self.splits: dict[SplitName, Split] = {name: dataset.split(name) for name in SPLITS}
        counted = {name: SplitFindings(len(split)) for name, split in self.splits.items()}
        self.findings = Findings(tuple(dataset.classes), dataset.has_masks, counted)
        self.done = 0
        self._first: dict[bytes, int] = {}  # the first sample of these pixels, by its number: there may be millions

    def at(self, name: SplitName, index: int) -> None:
        number, self.done = self.done, self.done + 1
        source = self.splits[name].source(index)
        try:
            image_3HW, target = self.splits[name][index]
        except AcmixError as error:
            self.findings.faults.add(fault_of(error, self.root, source))
            return
        self._measure(image_3HW, self.root / source)
        self.findings.splits[name].labels.update(labels_of(target))
        first = self._first.setdefault(_pixels_hash(image_3HW), number)
        if first != number:
            self._note_duplicate(*self._place(first), name, source)

    def _measure(self, image_3HW: Tensor, path: Path) -> None:
        _, height, width = image_3HW.shape
        self.findings.widths.append(width)
        self.findings.heights.append(height)
        if path.is_file():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata does not spoil an image
                with Image.open(path, formats=FORMATS) as image:  # its header alone
                    self.findings.modes[image.mode] += 1
                    self.findings.formats[str(image.format)] += 1

    def _place(self, number: int) -> tuple[SplitName, str]:
        """Split and source of the sample of that number."""
        for name, split in self.splits.items():
            if number < len(split):
                return name, split.source(number)
            number -= len(split)
        raise AssertionError("numbers are those of samples that were seen")

    def _note_duplicate(self, first_split: SplitName, first: str, split: SplitName, source: str) -> None:
        if first_split == split:
            self.findings.duplicates_within_a_split += 1
            return
        self.findings.duplicates_total += 1
        if len(self.findings.duplicates) < MOST_DUPLICATES_TOLD:
            same = "bytes" if _file_hash(self.root / first) == _file_hash(self.root / source) else "pixels"
            self.findings.duplicates.append(Duplicate((first, source), (first_split, split), same))


def _pixels_hash(image_3HW: Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(image_3HW.shape)).encode(), digest_size=16)
    digest.update(image_3HW.contiguous().numpy().data)
    return digest.digest()


def _file_hash(path: Path) -> str:
    """Of a sample that has no file of its own, its name."""
    if not path.is_file():
        return str(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
