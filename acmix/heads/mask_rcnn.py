"""Mask R-CNN, torchvision's, on any feature pyramid.

Source: "Mask R-CNN", He et al., ICCV 2017.
"""

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from acmix.backbones._pyramid import LEVELS, FeaturePyramid
from acmix.heads._neck import Resize, anchors, neck_of_boxes

BOX_SIDE, MASK_SIDE = 7, 14  # of what is pooled from a region
MASK_CONVOLUTIONS = 4
HIDDEN_OF_CHANNELS = 4  # 1,024 of 256
_ANCHORS_OF_STRIDE = (8,)


class MaskRCNN(detection.MaskRCNN):  # type: ignore[misc]  # torchvision ships no types
    """Boxes and masks of proposed regions; classes are 1 to `num_classes`, 0 is none."""

    def __init__(
        self,
        body: FeaturePyramid,
        num_classes: int,
        image_px: int,
        *,
        channels: int,
        proposals: int,
        regions: int,
        anchor_scale: float,
    ) -> None:
        """`proposals` an image are kept of the first stage, and `regions` of them trained on."""
        neck = neck_of_boxes(body, channels)
        hidden = HIDDEN_OF_CHANNELS * channels
        super().__init__(
            neck,
            rpn_anchor_generator=anchors(neck.strides, _ANCHORS_OF_STRIDE, anchor_scale),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            rpn_batch_size_per_image=min(256, regions),
            box_roi_pool=pooled(BOX_SIDE),
            box_head=TwoMLPHead(channels * BOX_SIDE**2, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
            box_batch_size_per_image=regions,
            mask_roi_pool=pooled(MASK_SIDE),
            mask_head=MaskRCNNHeads(channels, [channels] * MASK_CONVOLUTIONS, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
        )
        self.transform = Resize(image_px)

    @property
    def trunk(self) -> nn.Module:
        trunk: nn.Module = self.backbone
        return trunk


def pooled(side: int) -> MultiScaleRoIAlign:
    """Regions of the backbone's maps, each from the map that suits its size, brought to that side."""
    return MultiScaleRoIAlign([str(level) for level in range(LEVELS)], side, sampling_ratio=2)
