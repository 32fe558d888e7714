"""Every pixel of scenes composed of Fashion-MNIST's images and photographs."""

from acmix.datasets._garment_scenes import CLASSES, GarmentScenes
from acmix.datasets._scenes import LabelScenes


class FashionMnistSegmentation(GarmentScenes):
    """Composed scenes: real photographs of clothing of Fashion-MNIST, up to four, on crops of two photographs.

    11 classes, the background and the kinds of clothing. The scenes are those of `fashion_mnist_detection`, from the
    files of `fashion_mnist`: `train_scenes` to train on, 100 val and 200 test unless told otherwise, at any `image_px`,
    by a seed that never changes.
    """

    name = "fashion_mnist_segmentation"
    task = "segmentation"
    num_classes = 1 + len(CLASSES)
    classes = ("background", *CLASSES)
    scenes = LabelScenes
    default_augment = "unscaled_crop"
