"""The forms in which data sets come, by task: what an uploaded one can be declared as."""

from collections.abc import Mapping, Sequence

FORMATS: Mapping[str, Sequence[str]] = {
    "classification": ("image_folder", "imagenet"),
    "detection": ("coco", "voc"),
    "segmentation": ("ade20k", "mask_folder"),
}
