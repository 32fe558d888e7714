"""Every pixel of composed scenes of handwritten digits; nothing is downloaded."""

from pathlib import Path

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._digit_scenes import CLASSES, cut_outs
from acmix.datasets._scenes import MEAN, STD, Count, LabelScenes, ScenePx


class DigitsSegmentation(Dataset):
    """Composed scenes: scikit-learn's real scans of digits, up to four, painted on crops of its two photographs.

    11 classes, the background and the digits. The scenes are those of `digits_detection`: `train_scenes` to train on,
    100 val and 200 test unless told otherwise, at any `image_px`, by a seed that never changes.
    """

    name = "digits_segmentation"
    task = "segmentation"
    num_classes = 1 + len(CLASSES)
    default_image_px = 128
    in_memory = True
    default_augment = "none"

    classes = ("background", *CLASSES)
    mean = MEAN
    std = STD

    def __init__(
        self,
        root: Path,  # noqa: ARG002  # the contract's; these files come with scikit-learn
        *,
        image_px: ScenePx = 128,
        train_scenes: Count = 1000,
        val_scenes: Count = 100,
        test_scenes: Count = 200,
    ) -> None:
        self.image_px = image_px
        self._counts = {"train": train_scenes, "val": val_scenes, "test": test_scenes}

    def split(self, name: SplitName) -> LabelScenes:
        return LabelScenes("digits", name, cut_outs(name), self._counts[name], self.image_px)
