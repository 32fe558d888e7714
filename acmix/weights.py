"""Weights to start from: what of a file has a place in a model, and the model that starts with it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from acmix import pretrained
from acmix.errors import CheckpointIncompatible, WeightsMissing, nearest
from acmix.events import Event, progress, warning
from acmix.model import build, trunk_of
from acmix.spec import Backbone, Swap
from acmix.swap import swap

ABOUT = "acmix"  # the key of a checkpoint's metadata
MOST_NAMES = 200  # of each kind in an event; the counts are of all


@dataclass(frozen=True)
class Fit:
    """What became of a file's tensors."""

    kept: list[str]  # of the model, now as in the file
    missing: list[str]  # of the model, not in the file: drawn from the seed
    unexpected: list[str]  # of the file, without a place in the model
    reshaped: dict[str, tuple[list[int], list[int]]]  # in both, with the file's shape and the model's: not taken

    def __str__(self) -> str:
        parts = [
            f"{len(self.kept)} of the model's {len(self.kept) + len(self.missing) + len(self.reshaped)} tensors kept"
        ]
        for names, why in (
            (self.missing, "not in the file"),
            (self.unexpected, "of the file without a place"),
            (list(self.reshaped), "of another shape"),
        ):
            if names:
                parts.append(f"{len(names)} {why} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
        return ", ".join(parts)


def of(backbone: Backbone, file: Path | None, *, data_root: Path) -> dict[str, Tensor] | None:
    """The tensors that a spec's backbone starts from; None where it starts from the seed.

    Args:
        file: what an id in `backbone.weights` stands for; it goes before whatever is named there.

    Raises:
        WeightsMissing: the file is not at hand.
        CheckpointIncompatible: it is no safetensors file, or not one of that model.
    """
    if file is not None:
        return read(file)
    if backbone.weights == "timm":
        return pretrained.timm_weights(backbone.name, data_root)
    if backbone.weights is not None:
        raise WeightsMissing(
            f"backbone.weights={backbone.weights} is a file of the service that is not at hand",
            hint="name the file by --weights",
        )
    return None


def read(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file; no other kind of file is opened."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise WeightsMissing(f"{file} is not there") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointIncompatible(f"{file.name} is no safetensors file: {error}") from None


def about(file: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of itself: `spec`, `classes`, `images`, `epoch`, `step`; of others nothing."""
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(ABOUT, "{}")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def start(
    backbone: str | Backbone | Mapping[str, Any],
    swaps: Sequence[Swap | Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    *,
    num_classes: int | None,
    image_px: int,
    around: Callable[[nn.Module], nn.Module] | None = None,
) -> tuple[nn.Module, Fit]:
    """The model of a spec with every tensor of `weights` that has a place in it; see `load`.

    With `around`, which puts a head on the backbone, the weights may be a backbone's or a whole model's, and give what
    they hold of either.
    """
    backbone_alone = build(backbone, num_classes=num_classes, image_px=image_px)
    trunk = trunk_of(backbone_alone)
    fit = load(trunk, _without_prefix(trunk, weights), swaps)
    if around is None:
        return backbone_alone, fit
    model = around(backbone_alone)
    return (model, fit) if model is trunk else (model, _load_head(model, trunk, weights))


def load(model: nn.Module, weights: Mapping[str, Tensor], swaps: Sequence[Swap | Mapping[str, Any]] = ()) -> Fit:
    """Load what fits by name and shape into a plain model, swap, and load what fits the ACmix layers.

    So a layer that is replaced hands on what has a place in its successor, and a file that was saved after the same
    swaps gives all that it holds. What does not fit stays as it was drawn: a classifier of other classes, say.

    Raises:
        CheckpointIncompatible: no weight of the file fits; nothing is changed.
    """
    before = _fit(model, weights)
    _check_fits(model, weights, before)
    _copy(model, weights, before)
    swap(model, swaps)
    after = _fit(model, weights)
    _copy(model, weights, after)
    return after


def _without_prefix(trunk: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights under the names that they have in a backbone, where a file holds it as a part of a whole model."""
    if not any(name in weights for name in trunk.state_dict()):
        for prefix in _prefixes(trunk, weights):
            return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
    return weights


def _prefixes(trunk: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """What stands before a name of the backbone's in a file."""
    first = next(name for name, each in trunk.state_dict().items() if each.ndim >= 2)
    yield from (name.removesuffix(first) for name in weights if name.endswith(f".{first}"))


def _load_head(model: nn.Module, trunk: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Load what fits a whole model by its own names; its backbone has its weights already."""
    ready = {name: each for name, each in weights.items() if name in model.state_dict()}
    _copy(model, ready, _fit(model, ready))
    loaded = {f"{_prefix_of(model, trunk)}{name}": each for name, each in _without_prefix(trunk, weights).items()}
    return _fit(model, {**loaded, **ready})


def _prefix_of(model: nn.Module, trunk: nn.Module) -> str:
    return next(f"{name}." for name, module in model.named_modules() if module is trunk)


def told(fit: Fit, source: str) -> list[Event]:
    """What a run says of the weights that it starts from."""
    names = {"kept": fit.kept, "missing": fit.missing, "unexpected": fit.unexpected, "reshaped": list(fit.reshaped)}
    counts = {kind: len(listed) for kind, listed in names.items()}
    events = [progress("preparing", message=f"weights {source}: {fit}", weights={"source": source, **counts})]
    if fit.missing or fit.unexpected or fit.reshaped:
        left_out = {kind: listed[:MOST_NAMES] for kind, listed in names.items() if kind not in {"kept", "reshaped"}}
        shapes = [
            {"name": name, "file": file, "model": model} for name, (file, model) in [*fit.reshaped.items()][:MOST_NAMES]
        ]
        message = f"weights {source} do not cover the whole model: {fit}"
        events.append(warning("weights_left_out", message, source=source, counts=counts, **left_out, reshaped=shapes))
    return events


def _fit(model: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    own = model.state_dict()
    common = [name for name in own if name in weights]
    kept = [name for name in common if _fits(weights[name], own[name])]
    return Fit(
        kept=kept,
        missing=[name for name in own if name not in weights],
        unexpected=[name for name in weights if name not in own],
        reshaped={
            name: (list(weights[name].shape), list(own[name].shape))
            for name in common
            if not _fits(weights[name], own[name])
        },
    )


def _fits(given: Tensor, own: Tensor) -> bool:
    """A number that counts steps is no weight, whatever its shape."""
    return given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _check_fits(model: nn.Module, weights: Mapping[str, Tensor], fit: Fit) -> None:
    """Counters and scalars fit every model: what counts is that a weight of two dimensions or more does."""
    if any(weights[name].ndim >= 2 for name in fit.kept):
        return
    own = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim >= 2}
    theirs = [name for name, tensor in weights.items() if tensor.ndim >= 2] or list(weights)
    faults = [_fault(name, weights[name], own) for name in theirs[:3]]
    raise CheckpointIncompatible(f"none of the file's {len(weights)} tensors fits the model; " + "; ".join(faults))


def _fault(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> str:
    close = [name] if name in own else nearest(name, list(own), most=1)
    offer = f"nearest in the model: {close[0]} {list(own[close[0]].shape)}" if close else "the model has none like it"
    return f"{name[:100]} is {list(tensor.shape)}, {offer}"


@torch.no_grad()
def _copy(model: nn.Module, weights: Mapping[str, Tensor], fit: Fit) -> None:
    own = model.state_dict()
    for name in fit.kept:
        own[name].copy_(weights[name])
