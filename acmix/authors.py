"""The authors' weights: their names for our parameters, for loading their checkpoints and comparing gradients."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acmix.errors import CheckpointIncompatible
from acmix.mixers import layers_of

NAMES = {
    "alpha": "rate1",
    "beta": "rate2",
    "q_proj": "conv1",
    "k_proj": "conv2",
    "v_proj": "conv3",
    "position_proj": "conv_p",
}  # of an ACmix layer's parts; the others are called as they are here
_NESTS = ("model", "state_dict")  # where their training scripts put the weights
_WRAPPER = "module."  # left by data parallel training
_REMADE = ("attn_mask", "relative_position_index")  # buffers of their Swin; here made when needed


def load(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load weights under the authors' names into one ACmix layer or a whole model.

    Raises:
        CheckpointIncompatible: keys are missing or unexpected, or shapes differ; the module is then unchanged.
    """
    weights = unwrapped(state_dict)
    own = module.state_dict()
    theirs = _their_names(module, own)
    _check(weights, {theirs[key]: value for key, value in own.items()})
    module.load_state_dict({key: weights[theirs[key]] for key in own})


def unwrapped(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights themselves, out of what training scripts wrap them in."""
    nested = next((state_dict[nest] for nest in _NESTS if isinstance(state_dict.get(nest), Mapping)), None)
    if nested is not None:
        return unwrapped(nested)
    if state_dict and all(str(key).startswith(_WRAPPER) for key in state_dict):
        return {key.removeprefix(_WRAPPER): value for key, value in state_dict.items()}
    return state_dict


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradient of every parameter under the authors' names; zeros where there is none."""
    parameters = dict(module.named_parameters())
    theirs = _their_names(module, parameters)
    return {
        theirs[key]: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, parameter in parameters.items()
    }


def _their_names(module: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """The authors' name of each key."""
    layers = layers_of(module)
    return {key: _their_name(key, layers) for key in keys}


def _their_name(key: str, layers: Iterable[str]) -> str:
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        if key.startswith(prefix):
            part, dot, rest = key.removeprefix(prefix).partition(".")
            return f"{prefix}{NAMES.get(part, part)}{dot}{rest}"
    return key


def _check(weights: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    faults = []
    if missing := [key for key in expected if key not in weights]:
        faults.append(f"missing: {_listed(missing)}")
    if unexpected := [key for key in weights if key not in expected and not key.endswith(_REMADE)]:
        faults.append(f"unexpected: {_listed(unexpected)}")
    for key, value in expected.items():
        shape, needed = getattr(weights.get(key, value), "shape", None), value.shape
        if shape != needed:
            found = "no tensor" if shape is None else f"shape {list(shape)}"
            faults.append(f"{key} has {found} where the model has {list(needed)}")
    if faults:
        raise CheckpointIncompatible(f"the checkpoint does not fit the model; {_listed(faults, '; ')}")


def _listed(names: list[str], separator: str = ", ", most: int = 10) -> str:
    rest = len(names) - most
    return separator.join(names[:most]) + (f"{separator}and {rest} more" if rest > 0 else "")
