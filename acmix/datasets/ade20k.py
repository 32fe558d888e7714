"""ADE20K as its scene parsing benchmark publishes it.

Source: Zhou et al. 2017, "Scene Parsing through ADE20K Dataset"; ADEChallengeData2016.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._files import folder_below, read_text
from acmix.datasets._pairs import PairSplit, class_of_values, completed, pairs_of_parts
from acmix.errors import DatasetCorrupt, DatasetMissing

NAMES = "objectInfo150.txt"
PARTS = {"train": "training", "val": "validation"}


class Ade20k(Dataset):
    """ADE20K's scenes, every pixel of them in one of 150 classes or of none.

    `folder` is a path below the data root with images/training, images/validation and annotations of the same form, as
    in ADEChallengeData2016. The published validation serves as test, and val is cut from training, a tenth by a seed
    that never changes. 0 in a mask is ignored, k is class k - 1. objectInfo150.txt names the classes; without it they
    are numbered from 1 on. Training crops images to `image_px`.
    """

    name = "ade20k"
    task = "segmentation"
    num_classes = 150
    default_image_px = 512
    in_memory = False
    default_augment = "scale_crop"

    mean = (0.485, 0.456, 0.406)  # ImageNet's, as is the custom
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)],
        image_px: Annotated[int, Field(ge=8, le=2048)] = 512,
    ) -> None:
        self.image_px = image_px
        self.place = place = folder_below(root, folder)
        for kind in ("images", "annotations"):
            for part in PARTS.values():
                if not (place / kind / part).is_dir():
                    raise DatasetMissing(f"{place / kind / part} is not a folder", hint="unpack ADEChallengeData2016")
        self.classes = _names(root, place / NAMES)
        folders = {part: (f"images/{own}", f"annotations/{own}") for part, own in PARTS.items()}
        found = pairs_of_parts(root, place, folders)
        self._splits = completed(found, place)
        self._classes_V = class_of_values(self.num_classes, first=1, ignored={0})

    def split(self, name: SplitName) -> PairSplit:
        return PairSplit(self.place, self._splits[name], self._classes_V)


def _names(root: Path, path: Path) -> tuple[str, ...]:
    """Rows of a table with tabs, of which the first column is the class's number and the last its name."""
    numbers = [str(number) for number in range(1, Ade20k.num_classes + 1)]
    if not path.exists():
        return tuple(numbers)
    rows = [line.rstrip().split("\t") for line in read_text(root, path).splitlines() if line.strip()]
    if [row[0].strip() for row in rows[1:]] != numbers:
        raise DatasetCorrupt(f"{path} must have a row for each class from 1 to {Ade20k.num_classes} below its header")
    return tuple(row[-1].strip() for row in rows[1:])
