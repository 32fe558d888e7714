"""Labelled images in folders, one a class, for classification."""

from acmix.inspection.formats._contract import Format


class ImageFolder(Format):
    """train/<class>/<image>, with val and test beside train if there are."""

    name = "image_folder"
    task = "classification"
    layout = frozenset({"train", "val", "test"})
    expected = (
        "train/<class>/<image>, and val/<class>/<image> and test/<class>/<image> if there are such splits;\n"
        "nothing but images (JPEG, PNG, WEBP, BMP, TIFF) in a class; names that begin with a dot are passed over"
    )
