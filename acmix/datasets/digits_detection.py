"""Handwritten digits to be found in scenes composed of real scans and photographs; nothing is downloaded."""

from acmix.datasets._digit_scenes import CLASSES, DigitScenes
from acmix.datasets._scenes import BoxScenes


class DigitsDetection(DigitScenes):
    """Composed scenes: scikit-learn's real scans of digits, up to four, painted on crops of its two photographs.

    Boxes and masks are those of what is seen of each digit. 10 classes; `train_scenes` to train on, 100 val and 200
    test unless told otherwise, made of the scans of the data set `digits` of the same split, at any `image_px`, by a
    seed that never changes.
    """

    name = "digits_detection"
    task = "detection"
    num_classes = len(CLASSES)
    classes = CLASSES
    scenes = BoxScenes
    has_masks = True
