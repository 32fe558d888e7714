"""RetinaNet, torchvision's, on any feature pyramid.

Source: "Focal Loss for Dense Object Detection", Lin et al., ICCV 2017.
"""

from torch import nn
from torchvision.models import detection

from acmix.backbones._pyramid import FeaturePyramid
from acmix.heads._neck import Resize, anchors, neck_of_anchors

_ANCHORS_OF_STRIDE = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))


class RetinaNet(detection.RetinaNet):  # type: ignore[misc]  # torchvision ships no types
    """Boxes from anchors of every position of the maps; classes are 0 to `num_classes` - 1."""

    def __init__(
        self, body: FeaturePyramid, num_classes: int, image_px: int, *, channels: int, anchor_scale: float
    ) -> None:
        neck = neck_of_anchors(body, channels)
        generator = anchors(neck.strides, _ANCHORS_OF_STRIDE, anchor_scale)
        super().__init__(neck, num_classes, anchor_generator=generator, detections_per_img=100)
        self.transform = Resize(image_px)

    @property
    def trunk(self) -> nn.Module:
        trunk: nn.Module = self.backbone
        return trunk
