"""Names of timm's models, and which of them have weights that are no pickle.

To ask timm is to load it and torchvision, which takes seconds, and every worker posts the names when it starts. So they
are listed in a file for one version of timm; with another installed, timm is asked. `python -m
acmix.backbones._timm_names` writes the file.
"""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).with_name("timm_names.json")


class Names(NamedTuple):
    """Without tags of pretrained weights, in timm's order."""

    variants: list[str]
    without_weights: frozenset[str]


@cache
def names() -> Names:
    """Those of the installed timm."""
    listed = json.loads(_FILE.read_text())
    if listed["timm"] != version("timm"):
        return asked()
    return Names(listed["variants"], frozenset(listed["without_weights"]))


def asked() -> Names:
    """The same from timm itself."""
    import timm

    variants: list[str] = timm.list_models()
    return Names(variants, frozenset(name for name in variants if not _has_weights(timm.get_pretrained_cfg(name))))


def _has_weights(config: Any) -> bool:
    return bool(config and config.hf_hub_id)


if __name__ == "__main__":
    found = asked()
    content = {
        "timm": version("timm"),
        "variants": found.variants,
        "without_weights": sorted(found.without_weights),
    }
    _FILE.write_text(json.dumps(content, indent=0) + "\n")
