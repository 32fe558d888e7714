"""timm's models as feature pyramids: timm's own feature extraction around a whole model, whose names stay."""

from typing import Any

from torch import Tensor, nn

from acmix.backbones._pyramid import halving_strides
from acmix.errors import ShapeMismatch

FINEST_STRIDE = 4


class TimmPyramid(nn.Module):
    """The deepest map of each of the strides 4, 8, 16 and 32 of a model of timm's (acmix.backbones._pyramid)."""

    def __init__(self, variant: str, model: nn.Module) -> None:
        """ShapeMismatch where the model has no such maps, as plain vision transformers have none."""
        from timm.models._features import FeatureGetterNet, FeatureHookNet

        super().__init__()
        self.feature_strides = halving_strides(FINEST_STRIDE)
        indices = _indices(variant, model, self.feature_strides)
        features: Any
        if hasattr(model, "forward_intermediates"):
            features = FeatureGetterNet(model, out_indices=indices)
        else:
            features = FeatureHookNet(model, out_indices=indices, no_rewrite=True)
        self.features: nn.Module = features
        self.feature_channels: list[int] = features.feature_info.channels()

    @property
    def trunk(self) -> nn.Module:
        """The model itself, in which layers have the names that they have in a classifier."""
        model: nn.Module = next(self.features.children())
        return model

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """The maps, (B, C, H, W) each, finest first."""
        return list(self.features(images_B3HW))


def _indices(variant: str, model: nn.Module, strides: list[int]) -> tuple[int, ...]:
    """Of the maps with these strides among those that timm knows of the model."""
    known: Any = getattr(model, "feature_info", None) or []
    found = [int(each["reduction"]) for each in getattr(known, "info", known)]
    if not set(strides) <= set(found):
        has = ", ".join(map(str, dict.fromkeys(found))) or "none"
        wanted = ", ".join(map(str, strides))
        raise ShapeMismatch(
            f"timm/{variant} is no feature pyramid: its maps have the strides {has}; {wanted} are needed",
            hint="a ResNet, a ConvNeXt, a Swin or another model with stages",
        )
    return tuple(max(index for index, each in enumerate(found) if each == stride) for stride in strides)
