"""The detectors by name, and batch norms that stay as they are."""

from typing import Any

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d


def detector(
    head: str,
    backbone: Any,
    num_classes: int,
    image_px: int,
    *,
    channels: int,
    proposals: int,
    regions: int,
    anchor_scale: float,
    box_convolutions: bool,
) -> nn.Module:
    """The detector of that name on a feature pyramid."""
    from acmix.heads.cascade_mask_rcnn import CascadeMaskRCNN
    from acmix.heads.mask_rcnn import MaskRCNN
    from acmix.heads.retinanet import RetinaNet

    if head == "retinanet":
        return RetinaNet(backbone, num_classes, image_px, channels=channels, anchor_scale=anchor_scale)
    of_regions: dict[str, Any] = {
        "channels": channels,
        "proposals": proposals,
        "regions": regions,
        "anchor_scale": anchor_scale,
    }
    if head == "mask_rcnn":
        return MaskRCNN(backbone, num_classes, image_px, **of_regions)
    return CascadeMaskRCNN(backbone, num_classes, image_px, **of_regions, four_convolutions=box_convolutions)


def freeze_norms(module: nn.Module) -> nn.Module:
    """The module with every batch norm of it replaced, in place, by a frozen one of the same numbers."""
    if isinstance(module, nn.BatchNorm2d):
        return _frozen(module)
    for name, child in module.named_children():
        frozen = freeze_norms(child)
        if frozen is not child:
            setattr(module, name, frozen)
    return module


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    """Affine even where the norm was not: torchvision's always is."""
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    given = {name: value for name, value in norm.state_dict().items() if name in frozen.state_dict()}
    frozen.load_state_dict(given, strict=False)
    placed: nn.Module = frozen.to(next(iter(given.values())).device)
    return placed
