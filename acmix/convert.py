"""The authors' checkpoints made ours: a safetensors file under our names, with the spec of its model in the metadata.

Source: the files that their training scripts write with torch.save; read with weights_only, which runs no code of a
file. What a model is made of is read off its keys and shapes.
"""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acmix import authors, manifest, registry
from acmix.backbones.resnet import ResNet
from acmix.errors import CheckpointIncompatible
from acmix.model import build
from acmix.weights import ABOUT

IMAGE_PX = 224  # what their models are trained at
KERNEL_ATT = 7  # theirs; no tensor's shape depends on it, so that a file cannot tell
SWINS: dict[str, dict[str, Any]] = {
    name: {"depths": depths, "heads": [3, 6, 12, 24], "embed_dim": 96, "window": 7}
    for name, depths in {"swin_tiny": [2, 2, 6, 2], "swin_small": [2, 2, 18, 2]}.items()
}
Weights = Mapping[str, Tensor]
Layers = Mapping[str, dict[str, Any]]  # options of the mixer by the name of the layer it replaces


@dataclass(frozen=True)
class Found:
    """What a file holds, as a spec names it."""

    backbone: dict[str, Any]
    swaps: list[dict[str, Any]]
    num_classes: int
    image_px: int = IMAGE_PX

    def about(self) -> dict[str, Any]:
        """For the metadata of the file that is written."""
        sizes = {"num_classes": self.num_classes, "image_px": self.image_px}
        return {"spec": {"backbone": self.backbone, "swaps": self.swaps}, **sizes}


def convert(source: Path, target: Path, *, backbone: str | None = None) -> Found:
    """Write the authors' checkpoint `source` to the safetensors file `target`, whole or not at all.

    Args:
        backbone: what it must hold; without, whatever it holds is taken.

    Raises:
        CheckpointIncompatible: it is neither a ResNet nor a Swin of theirs, or not the one that it must be.
    """
    weights = _read(source)
    found = recognised(weights)
    if backbone not in (None, found.backbone["name"]):
        raise CheckpointIncompatible(f"{source.name} holds {json.dumps(found.backbone)}, not a {backbone}")
    _save(_model(found, weights), found, target)
    return found


def recognised(weights: Weights) -> Found:
    """The backbone and swaps that such keys and shapes belong to; CheckpointIncompatible where they are of neither."""
    kinds = {"layer1.0.conv3.weight": _resnet, "layers.0.blocks.0.attn.relative_position_bias_table": _swin}
    kind = next((kinds[key] for key in kinds if key in weights), None)
    if kind is None:
        shown = ", ".join(name[:60] for name in list(weights)[:3])
        raise CheckpointIncompatible(
            f"this is neither a ResNet of bottlenecks nor a Swin as the authors save them; it has {shown}, ..."
        )
    try:
        return kind(weights)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointIncompatible(f"this looks like a model of the authors' and lacks a part: {error}") from None


def _read(source: Path) -> Weights:
    """The tensors in a file of torch.save, out of what training scripts nest them in."""
    # settings that their scripts leave beside the weights: read as dicts of plain values
    settings: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), (OrderedDict, "argparse.Namespace")]
    try:
        with torch.serialization.safe_globals(settings):
            saved = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        raise CheckpointIncompatible(
            f"{source} cannot be read as a checkpoint of torch.save: {_line(reason)}"
        ) from None
    found = authors.unwrapped(saved) if isinstance(saved, Mapping) else {}
    weights = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights:
        raise CheckpointIncompatible(f"{source} holds no weights by name, nor below 'model' or 'state_dict'")
    return weights


def _line(text: str) -> str:
    """The first line with anything on it, cut to what a sentence holds."""
    return next(iter(text.strip().splitlines()), "no reason given")[:200]


def _resnet(weights: Weights) -> Found:
    depths = [_count(weights, f"layer{stage}") for stage in (1, 2, 3, 4)]
    slots = [f"layer{stage}.{block}.conv2" for stage, depth in enumerate(depths, 1) for block in range(depth)]
    layers = {slot: _conv_options(weights, slot) for slot in slots if f"{slot}.rate1" in weights}
    stem_channels, *_, stem_side = weights["conv1.weight"].shape
    options: dict[str, Any] = {} if stem_side == 7 else {"stem": "small"}
    options |= {} if stem_channels == 64 else {"width": stem_channels / 64}
    name = next((each for each, known in _named_depths().items() if known == depths), "resnet")
    options |= {"depths": depths} if name == "resnet" else {}
    return Found({"name": name, "options": options}, _swaps(layers, slots), len(weights["fc.weight"]))


def _conv_options(weights: Weights, slot: str) -> dict[str, Any]:
    channels, head_channels = len(weights[f"{slot}.conv1.weight"]), len(weights[f"{slot}.conv_p.weight"])
    return {"heads": channels // head_channels, "kernel_att": KERNEL_ATT, "kernel_conv": _kernel_conv(weights, slot)}


def _named_depths() -> dict[str, list[int]]:
    """The depths of the ResNets that have them by their name."""
    entries = registry.entries("backbones").items()
    return {
        name: list(entry.slot_pattern.depths)
        for name, entry in entries
        if issubclass(entry, ResNet) and entry.slot_pattern.depths_option is None
    }


def _swin(weights: Weights) -> Found:
    stages = _count(weights, "layers")
    depths = [_count(weights, f"layers.{stage}.blocks") for stage in range(stages)]
    slots = [f"layers.{stage}.blocks.{block}.attn" for stage, depth in enumerate(depths) for block in range(depth)]
    layers = {slot: {"kernel_conv": _kernel_conv(weights, slot)} for slot in slots if f"{slot}.rate1" in weights}
    tables = [weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
    windows = [(isqrt(len(table)) + 1) // 2 for table in tables]  # a row for each of (2 * window - 1)^2 offsets
    channels, _, _, patch_px = weights["patch_embed.proj.weight"].shape
    options = {
        "depths": depths,
        "heads": [table.shape[1] for table in tables],
        "embed_dim": channels,
        "window": max(windows),
    }
    options |= {} if patch_px == 4 else {"patch_px": patch_px}
    name = next((each for each, known in SWINS.items() if known == options), None)
    backbone = {"name": name, "options": {}} if name else {"name": "swin", "options": options}
    return Found(backbone, _swaps(layers, slots), len(weights["head.weight"]), _image_px(windows, patch_px))


def _image_px(windows: Sequence[int], patch_px: int) -> int:
    """Of images whose map is no larger than the window in the stages that have a smaller one; else of all images."""
    stage = next((stage for stage, window in enumerate(windows) if window < max(windows)), None)
    return IMAGE_PX if stage is None else patch_px * windows[stage] * 2**stage


def _kernel_conv(weights: Weights, slot: str) -> int:
    return weights[f"{slot}.dep_conv.weight"].shape[-1]


def _count(weights: Weights, parent: str) -> int:
    """How many children `parent` has, numbered from 0."""
    numbers = {int(match[1]) for name in weights if (match := re.match(rf"{re.escape(parent)}\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"the parts of {parent} are {sorted(numbers)[:10]}")
    return len(numbers)


def _swaps(layers: Layers, slots: Sequence[str]) -> list[dict[str, Any]]:
    """The swaps that make such layers, one for each choice of options; `*` where one takes all."""
    chosen: dict[str, list[str]] = {}
    for layer, options in layers.items():
        chosen.setdefault(json.dumps(options), []).append(layer)
    return [
        {
            "layers": "*" if len(claimed) == len(slots) else claimed,
            "mixer": {"name": "acmix", "options": json.loads(options)},
        }
        for options, claimed in chosen.items()
    ]


def _model(found: Found, weights: Weights) -> nn.Module:
    """The model with these weights, each in its place and of its shape, in their precision."""
    model = build(found.backbone, found.swaps, num_classes=found.num_classes, image_px=found.image_px)
    model.to(next(weight.dtype for weight in weights.values() if weight.is_floating_point()))
    authors.load(model, weights)
    return model


def _save(model: nn.Module, found: Found, target: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with _put_in_place(target) as temporary:
        save_file(tensors, temporary, {ABOUT: json.dumps(found.about())})
        manifest.sync(temporary)


@contextmanager
def _put_in_place(target: Path) -> Iterator[Path]:
    """A path to write to; its file takes the target's place once it is whole, and goes if that fails."""
    temporary = target.with_name(f".writing-{target.name}-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(target)
        manifest.sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
