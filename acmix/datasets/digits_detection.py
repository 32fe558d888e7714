"""Handwritten digits to be found in scenes composed of real scans and photographs; nothing is downloaded."""

from pathlib import Path

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._digit_scenes import CLASSES, cut_outs
from acmix.datasets._scenes import MEAN, STD, BoxScenes, Count, ScenePx


class DigitsDetection(Dataset):
    """Composed scenes: scikit-learn's real scans of digits, up to four, painted on crops of its two photographs.

    Boxes and masks are those of what is seen of each digit. 10 classes; `train_scenes` to train on, 100 val and 200
    test unless told otherwise, made of the scans of the data set `digits` of the same split, at any `image_px`, by a
    seed that never changes.
    """

    name = "digits_detection"
    task = "detection"
    num_classes = len(CLASSES)
    default_image_px = 128
    in_memory = True
    default_augment = "none"
    has_masks = True

    classes = CLASSES
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

    def split(self, name: SplitName) -> BoxScenes:
        return BoxScenes("digits", name, cut_outs(name), self._counts[name], self.image_px)
