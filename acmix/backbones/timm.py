"""Any model of the library timm by its name, plain until layers are swapped; with timm's own parameter names.

Slots are the 3x3 convolutions of one group that do not see pixels, and the window attentions (see _timm_windows.py).
In place of a convolution that is not padded, or is as in TensorFlow, ACmix gives a map of the same size; with a stride
its places are up to a position off.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from acmix.backbones._timm_names import names
from acmix.errors import OptionInvalid, ShapeMismatch

_PIXEL_CHANNELS = 3
_OF_SIZE = {"img_size", "strict_img_size"}
_REFUSED = re.compile(r"(?:unexpected|multiple values for) keyword argument(?:\(s\): \[| )'(\w+)'")
_MISFITS = (
    AssertionError,
    LookupError,
    StopIteration,
    TypeError,
    ValueError,
)  # what timm raises at sizes it cannot have

Rate = Annotated[float | None, Field(ge=0, lt=1)]
Heads = Annotated[int, Field(ge=1, le=256)]
PerStage = Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=1, max_length=8)]
_SMALL_SWIN: Mapping[str, Any] = {
    "embed_dim": 12,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "patch_size": 1,
    "window_size": 4,
}


class Timm:
    """Any model of the library timm by its name, such as timm/resnet18; an option left null is as the name has it.

    Not every model takes every option; OptionInvalid names one that this model does not take.
    """

    name = "timm"
    slot_pattern = None
    smallest: ClassVar[Mapping[str, Any]] = {}
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "test_resnet": {},
        "test_efficientnet": {},
        "swin_tiny_patch4_window7_224": _SMALL_SWIN,
        "swinv2_tiny_window8_256": _SMALL_SWIN,
    }

    @staticmethod
    def variants() -> Sequence[str]:
        """Every name that timm knows, without tags of pretrained weights."""
        return names().variants

    def __new__(  # type: ignore[misc]  # it makes timm's own model: a model around it would change all names
        cls,
        variant: str,
        num_classes: int | None,
        image_px: int,
        *,
        drop_rate: Annotated[Rate, Field(description="dropout before the classifier")] = None,
        drop_path: Annotated[Rate, Field(description="rate of stochastic depth in the last block")] = None,
        patch_size: Annotated[int | None, Field(ge=1, le=64, description="side of a patch in pixels")] = None,
        window_size: Annotated[int | None, Field(ge=1, le=64, description="side of an attention's window")] = None,
        embed_dim: Annotated[int | None, Field(ge=1, le=4096, description="channels of a patch")] = None,
        depths: Annotated[PerStage | None, Field(description="blocks of each stage")] = None,
        num_heads: Annotated[Heads | PerStage | None, Field(description="heads, or those of each stage")] = None,
    ) -> nn.Module:
        from acmix.backbones._timm_windows import offer_windows

        options = {
            "drop_rate": drop_rate,
            "drop_path": drop_path,
            "patch_size": patch_size,
            "window_size": window_size,
            "embed_dim": embed_dim,
            "depths": depths,
            "num_heads": num_heads,
        }
        given = {name: value for name, value in options.items() if value is not None}
        model = _created(variant, num_classes, image_px, given)
        tell_padding(model)
        model.unswappable = tuple(_seeing_pixels(model))  # type: ignore[assignment]  # read by acmix.swap
        offer_windows(model)
        if num_classes is None:
            from acmix.backbones._timm_pyramid import TimmPyramid

            return TimmPyramid(variant, model)
        return model


def _created(variant: str, num_classes: int | None, image_px: int, options: Mapping[str, Any]) -> nn.Module:
    """timm's model; the image's side is told to those that are built for one, and that they vary if they do."""
    import timm

    arguments = {"drop_path_rate" if name == "drop_path" else name: value for name, value in options.items()}
    pretrained_cfg = timm.get_pretrained_cfg(variant)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        arguments["img_size"] = image_px
        if num_classes is None:
            arguments["strict_img_size"] = False
    try:
        return _tried(variant, num_classes or 0, arguments)
    except _MISFITS as error:
        reason = str(error) or type(error).__name__
        raise ShapeMismatch(f"timm/{variant} cannot be built so: {reason}") from error


def _tried(variant: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's model with all the arguments, or without those on the image's side that it does not take."""
    import timm

    try:
        model: nn.Module = timm.create_model(variant, pretrained=False, num_classes=num_classes, **arguments)
    except TypeError as error:
        refused = _REFUSED.search(str(error))
        if refused is None or refused[1] not in arguments:
            raise
        if refused[1] not in _OF_SIZE:
            raise OptionInvalid(_not_taken(variant, refused[1], arguments)) from None
        return _tried(variant, num_classes, {name: each for name, each in arguments.items() if name != refused[1]})
    return model


def _not_taken(variant: str, argument: str, arguments: Mapping[str, Any]) -> str:
    name = "drop_path" if argument == "drop_path_rate" else argument
    return f"{name}={arguments[argument]} is no option of timm/{variant}; null, which is the default, does"


def tell_padding(model: nn.Module) -> None:
    """Mark, for ACmixConv2d, the convolutions that look at their input to see how it is to be padded."""
    from timm.layers.conv2d_same import Conv2dSame, Conv2dSameExport
    from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame

    for layer in model.modules():
        if isinstance(layer, Conv2dSame | Conv2dSameExport | ScaledStdConv2dSame | StdConv2dSame):
            layer.pads_itself = True  # type: ignore[assignment]  # a plain attribute


def _seeing_pixels(model: nn.Module) -> Iterable[str]:
    """The convolutions that read the image: what timm says, and whatever else has as many channels."""
    first = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    yield from (first,) if isinstance(first, str) else first
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == _PIXEL_CHANNELS:
            yield name
