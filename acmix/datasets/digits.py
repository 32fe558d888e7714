"""Handwritten digits that need no download: small enough to train on a laptop in seconds."""

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._scans import digit_scans
from acmix.datasets._split import TensorSplit, cut

TEST_SAMPLES = 360
VAL_SAMPLES = 180


class Digits(Dataset):
    """1,797 scans of handwritten digits, 8x8 grey, in 10 classes; part of scikit-learn, so nothing is downloaded.

    1,257 train, 180 val and 360 test, each holding every digit by its share, cut by a seed that never changes;
    this cut is ours, scikit-learn has none. A larger `image_px` enlarges the scans bilinearly.
    """

    name = "digits"
    task = "classification"
    num_classes = 10
    default_image_px = 8
    in_memory = True
    default_augment = "none"

    classes = tuple("0123456789")
    mean = (0.3056, 0.3056, 0.3056)
    std = (0.3764, 0.3764, 0.3764)

    def __init__(
        self,
        root: Path,  # noqa: ARG002  # the contract's; these files come with scikit-learn
        *,
        image_px: Annotated[int, Field(ge=8, le=224)] = 8,
    ) -> None:
        self.image_px = image_px
        scans_S88, labels = digit_scans()
        images_S1HW = torch.from_numpy(scans_S88).float().mul(255 / 16).unsqueeze(1)
        images_S1HW = F.interpolate(images_S1HW, size=(image_px, image_px), mode="bilinear")
        self._images_S1HW = images_S1HW.round().to(torch.uint8)
        self._labels_S = torch.from_numpy(labels)
        self._indices = dict(
            zip(("test", "val", "train"), cut(labels.tolist(), [TEST_SAMPLES, VAL_SAMPLES]), strict=True)
        )

    def split(self, name: SplitName) -> TensorSplit:
        indices = self._indices[name]
        return TensorSplit(self._images_S1HW[indices], self._labels_S[indices])
