"""Scenes in ADE20K's layout, for segmentation."""

from acmix.inspection.formats._contract import Format


class Ade20k(Format):
    """Images and PNGs of one name in folders of training and validation."""

    name = "ade20k"
    task = "segmentation"
    layout = frozenset({"images", "annotations"})
    expected = (
        "images/training/<name>.jpg with annotations/training/<name>.png, and the same of validation;\n"
        "0 in a mask is of no class, 1 to 150 are the classes"
    )
