"""Labelled images in ImageNet's layout, for classification."""

from acmix.inspection.formats._contract import Format


class ImageNet(Format):
    """Folders of images by class; val may be flat, with a list of its classes."""

    name = "imagenet"
    task = "classification"
    layout = frozenset({"train", "val", "test"})
    expected = (
        "train/<class>/<image>, and val/<class>/<image>, or val/<image> with LOC_val_solution.csv or\n"
        "val_annotations.txt; LOC_synset_mapping.txt or words.txt if classes have names"
    )
