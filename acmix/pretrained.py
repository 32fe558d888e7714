"""timm's pretrained weights for the backbones that have a counterpart there: found on this machine, else on the hub.

Source: timm's models and the Hugging Face hub, where their safetensors files lie. Nothing else is downloaded, and no
pickle is read.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from acmix import registry
from acmix.backbones._timm_names import names as timm_names
from acmix.errors import CheckpointIncompatible, OptionInvalid, WeightsMissing

FILE = "model.safetensors"
FAMILY = "timm/"
PROBE_SECONDS = 5.0


def timm_weights(backbone: str, data_root: Path) -> dict[str, Tensor]:
    """timm's weights for a backbone of ours, under our names.

    Raises:
        OptionInvalid: timm has none for it.
        WeightsMissing: the file is neither on this machine nor to be had from the hub; the message names it.
        CheckpointIncompatible: the file is not the one it should be.
    """
    import timm

    name = counterpart(backbone)
    if name is None:
        entries = registry.entries("backbones").items()
        have = ", ".join(each for each, entry in entries if hasattr(entry, "timm_counterpart"))
        raise OptionInvalid(f"timm has no weights for {backbone}; it has for: {have}, most of {FAMILY}...")
    config = timm.models.get_pretrained_cfg(name)
    assert config is not None
    file = _file(str(config.hf_hub_id), data_root)
    try:
        with torch.random.fork_rng(devices=[]):  # what it draws before loading must not move the run's own numbers
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointIncompatible(f"{file} does not hold timm's weights of {name}: {error}"[:1000]) from error
    ours = getattr(_class_of(backbone), "name_of_timm", str)
    return {ours(key): tensor for key, tensor in model.state_dict().items()}


def counterpart(backbone: str) -> str | None:
    """timm's model whose weights are this backbone's too, if there is one."""
    name = backbone.removeprefix(FAMILY)
    if name != backbone:
        return name if has_weights(name) else None
    declared: str | None = getattr(_class_of(backbone), "timm_counterpart", None)
    return declared


def has_weights(name: str) -> bool:
    """Whether timm has weights of a model of its own that are no pickle."""
    known = timm_names()
    return name in known.variants and name not in known.without_weights


def _class_of(backbone: str) -> Any:
    """None for a name of timm's own, whose parameters are called as there."""
    return None if backbone.startswith(FAMILY) else registry.get("backbones", backbone)


def _file(repository: str, data_root: Path) -> Path:
    """The file below `data_root`, in the hub's cache, or from the hub."""
    from huggingface_hub import try_to_load_from_cache

    placed = data_root / "weights" / f"{repository}.safetensors"
    if placed.is_file():
        return placed
    cached = try_to_load_from_cache(repository, FILE)
    return Path(cached) if isinstance(cached, str) else _downloaded(repository, placed)


def _downloaded(repository: str, placed: Path) -> Path:
    """Its downloader tries for half a minute where there is no network; one short question is asked before."""
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url

    try:
        get_session().head(hf_hub_url(repository, FILE), timeout=PROBE_SECONDS)
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:  # of the hub's client, which is another in each of its major versions
        raise WeightsMissing(
            f"timm's weights are the file {FILE} of {repository} on the Hugging Face hub, "
            f"which did not give it: {type(error).__name__}: {error}"[:800],
            hint=f"put that file at {placed} and it is taken from there, without a network",
        ) from None
