"""What every data set offers, whatever its files look like."""

# Shapes: H W image

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

SplitName = Literal["train", "val", "test"]


class Split(Protocol):
    """Images with their labels, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, uint8 (3, H, W) in RGB, and the index of its class; DatasetCorrupt names a file it cannot read."""
        ...


class Dataset(Protocol):
    """A kind of data set: its first docstring paragraph is the catalog's description, its keywords its options.

    In memory, every image is (3, image_px, image_px); otherwise as large as its file, and the transforms fit it.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    num_classes: ClassVar[int | None]  # None where only the files tell
    default_image_px: ClassVar[int]
    in_memory: ClassVar[bool]
    default_augment: ClassVar[str]  # a name in acmix.training.augment

    classes: Sequence[str]
    image_px: int
    mean: tuple[float, float, float]  # of the train split's pixels, scaled to 0..1
    std: tuple[float, float, float]

    def __init__(self, root: Path, **options: Any) -> None: ...

    def split(self, name: SplitName) -> Split: ...
