"""What detection and segmentation of digits have in common: the scans, by split, as cut-outs of scenes."""

from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._scans import digit_scans
from acmix.datasets._scenes import Count, CutOuts, ScenePx, Scenes
from acmix.datasets._split import cut
from acmix.datasets.digits import TEST_SAMPLES, VAL_SAMPLES

CLASSES = tuple("0123456789")
OPAQUE_INK = 10  # of a scan, of the 16 where it is darkest: from there on it hides what is behind it


class DigitScenes(Dataset):
    """A data set of scenes of digits; which kind of samples they make is the task's."""

    default_image_px = 128
    in_memory = True
    default_augment = "none"
    mean = (0.279, 0.269, 0.246)  # at 128 px
    std = (0.218, 0.202, 0.214)

    scenes: ClassVar[type[Scenes]]

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

    def split(self, name: SplitName) -> Scenes:
        return self.scenes("digits", name, cut_outs(name), self._counts[name], self.image_px)


@cache
def cut_outs(split: SplitName) -> CutOuts:
    """The scans of the split of that name of the data set `digits`: none is in the scenes of two splits."""
    scans_S88, labels_S = digit_scans()
    indices = dict(zip(("test", "val", "train"), cut(labels_S.tolist(), [TEST_SAMPLES, VAL_SAMPLES]), strict=True))
    chosen = indices[split].numpy()
    opacities = (255 * scans_S88[chosen] / OPAQUE_INK).clip(0, 255).astype(np.uint8)
    return CutOuts(opacities, np.full_like(opacities, 255), labels_S[chosen])
