"""RetinaNet, torchvision's, on any feature pyramid.

Source: "Focal Loss for Dense Object Detection", Lin et al., ICCV 2017.
"""

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator

from acmix.backbones._pyramid import FeaturePyramid
from acmix.heads._neck import Resize, anchor_sizes, neck_of_anchors

_ANCHORS_OF_STRIDE = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
_ASPECTS = (0.5, 1.0, 2.0)


class RetinaNet(detection.RetinaNet):  # type: ignore[misc]  # torchvision ships no types
    """Boxes from anchors of every position of the maps; classes are 0 to `num_classes` - 1."""

    def __init__(self, body: FeaturePyramid, num_classes: int, image_px: int, *, channels: int) -> None:
        neck = neck_of_anchors(body, channels)
        sizes = anchor_sizes(neck.strides, _ANCHORS_OF_STRIDE)
        anchors = AnchorGenerator(sizes, (_ASPECTS,) * len(sizes))
        super().__init__(neck, num_classes, anchor_generator=anchors, detections_per_img=100)
        self.transform = Resize(image_px)

    @property
    def trunk(self) -> nn.Module:
        trunk: nn.Module = self.backbone
        return trunk
