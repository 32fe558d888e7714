"""The forms of ACmix, one a file; each stands in for one kind of layer."""

from torch import nn

from acmix.mixers._layer import ACmixLayer
from acmix.mixers.conv import ACmixConv2d
from acmix.mixers.window import ACmixWindow

__all__ = ["ACmixConv2d", "ACmixLayer", "ACmixWindow", "layers_of"]


def layers_of(model: nn.Module) -> dict[str, ACmixLayer]:
    """Every ACmix layer of a model by its name, in depth order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ACmixLayer)}
