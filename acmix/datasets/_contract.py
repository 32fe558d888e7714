"""What every data set offers, whatever its files look like."""

# Shapes: H W image, N objects of an image

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

SplitName = Literal["train", "val", "test"]
Target = int | Tensor | Mapping[str, Tensor]
IGNORED = 255  # in a label map: of no class, neither trained on nor counted
MOST_LABELS = 255  # a label map is uint8
LONGEST_RATIO = 1333 / 800  # of a resized image's long side over what its short side is resized to, at most


@dataclass(frozen=True)
class ImageFacts:
    """What images a model was trained on, by which any other is made what it reads; fields as of Dataset."""

    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    in_memory: bool


class Split(Protocol):
    """Images with what is to be learned of them, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The image, uint8 (3, H, W) in RGB, and its target; DatasetCorrupt names a file it cannot read.

        The target of classification is the index of the class. Of segmentation it is the label map, uint8 (H, W), of
        classes by index and IGNORED. Of detection it is a dictionary:

            boxes   float32 (N, 4), left, top, right and bottom in pixels of this image, right > left and bottom > top
            labels  int64 (N,), classes by index
            masks   uint8 (N, H, W) of 0 and 1, where the data set `has_masks`
            areas   float32 (N,), of the objects in square pixels, which make them small, medium or large
            crowd   bool (N,), boxes that stand for many objects at once: not trained on, and forgiving when judged

        An image may have no object: N is 0 then.
        """
        ...

    def source(self, index: int) -> str:
        """What a person calls the sample: its file below the data set's folder, or its place in the split."""
        ...


class Dataset(Protocol):
    """A kind of data set: its first docstring paragraph is the catalog's description, its keywords its options.

    In memory, every image is (3, image_px, image_px); otherwise as large as its file, and the transforms fit it: by
    their short side for detection, by crops for the others.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    num_classes: ClassVar[int | None]  # None where only the files tell
    default_image_px: ClassVar[int]
    in_memory: ClassVar[bool]
    default_augment: ClassVar[str]  # a name in acmix.training.augment
    has_masks: bool = False  # of detection: whether every object has a mask

    classes: Sequence[str]
    image_px: int
    mean: tuple[float, float, float]  # of the train split's pixels, scaled to 0..1
    std: tuple[float, float, float]

    def __init__(self, root: Path, **options: Any) -> None: ...

    def split(self, name: SplitName) -> Split: ...
