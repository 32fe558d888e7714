"""Folders of images and masks, for segmentation."""

from acmix.inspection.formats._contract import Format


class MaskFolder(Format):
    """Images, and a PNG of each in whose pixels are classes."""

    name = "mask_folder"
    task = "segmentation"
    layout = frozenset({"train", "val", "test", "images", "masks", "labels", "annotations"})
    expected = (
        "train/images/<name>.jpg with train/masks/<name>.png (or images/train and masks/train), and val and test\n"
        "alike if there are such splits; classes.txt with a name a line if classes have names"
    )
