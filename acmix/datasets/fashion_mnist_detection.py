"""Clothing to be found in scenes composed of Fashion-MNIST's images and photographs."""

from acmix.datasets._garment_scenes import CLASSES, GarmentScenes
from acmix.datasets._scenes import BoxScenes


class FashionMnistDetection(GarmentScenes):
    """Composed scenes: real photographs of clothing of Fashion-MNIST, up to four, on crops of two photographs.

    Boxes and masks are those of what is seen of each garment. 10 classes; `train_scenes` to train on, 100 val and 200
    test unless told otherwise, made of the images of the data set `fashion_mnist` of the same split (its files, its
    `folder`), at any `image_px`, by a seed that never changes.
    """

    name = "fashion_mnist_detection"
    task = "detection"
    num_classes = len(CLASSES)
    classes = CLASSES
    scenes = BoxScenes
    default_augment = "flip_resize"
    has_masks = True
