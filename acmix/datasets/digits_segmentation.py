"""Every pixel of composed scenes of handwritten digits; nothing is downloaded."""

from acmix.datasets._digit_scenes import CLASSES, DigitScenes
from acmix.datasets._scenes import LabelScenes


class DigitsSegmentation(DigitScenes):
    """Composed scenes: scikit-learn's real scans of digits, up to four, painted on crops of its two photographs.

    11 classes, the background and the digits. The scenes are those of `digits_detection`: `train_scenes` to train on,
    100 val and 200 test unless told otherwise, at any `image_px`, by a seed that never changes.
    """

    name = "digits_segmentation"
    task = "segmentation"
    num_classes = 1 + len(CLASSES)
    classes = ("background", *CLASSES)
    scenes = LabelScenes
