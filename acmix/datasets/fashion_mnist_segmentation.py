"""Every pixel of scenes composed of Fashion-MNIST's images and photographs."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from acmix.datasets._contract import Dataset, SplitName
from acmix.datasets._garment_scenes import CLASSES, cut_outs
from acmix.datasets._scenes import Count, LabelScenes, ScenePx


class FashionMnistSegmentation(Dataset):
    """Composed scenes: real photographs of clothing of Fashion-MNIST, up to four, on crops of two photographs.

    11 classes, the background and the kinds of clothing. The scenes are those of `fashion_mnist_detection`, from the
    files of `fashion_mnist`: `train_scenes` to train on, 100 val and 200 test unless told otherwise, at any `image_px`,
    by a seed that never changes.
    """

    name = "fashion_mnist_segmentation"
    task = "segmentation"
    num_classes = 1 + len(CLASSES)
    default_image_px = 128
    in_memory = True
    default_augment = "unscaled_crop"

    classes = ("background", *CLASSES)
    mean = (0.259, 0.251, 0.228)
    std = (0.207, 0.182, 0.194)

    def __init__(
        self,
        root: Path,
        *,
        folder: Annotated[str, Field(min_length=1, max_length=1000)] | None = None,
        image_px: ScenePx = 128,
        train_scenes: Count = 1000,
        val_scenes: Count = 100,
        test_scenes: Count = 200,
    ) -> None:
        self.image_px = image_px
        self._counts = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        self._cut_outs = {name: cut_outs(root, folder, name) for name in ("train", "val", "test")}

    def split(self, name: SplitName) -> LabelScenes:
        return LabelScenes("fashion_mnist", name, self._cut_outs[name], self._counts[name], self.image_px)
