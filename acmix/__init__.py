"""Vision models with ACmix layers: build them, swap them in, train them, watch them. Needs no service."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acmix import authors, mixers
    from acmix.model import build
    from acmix.training.run import run

__version__ = "0.1.0"
__all__ = ["authors", "build", "mixers", "run"]

# no module may be named like a function here: importing it would put the module in the function's place
_HOMES = {"build": "acmix.model", "run": "acmix.training.run"}


def __getattr__(name: str) -> Any:
    """Import on first use: `import acmix` alone stays under 0.1 s, torch takes 3."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in {"authors", "mixers"}:
        return import_module(f"acmix.{name}")
    raise AttributeError(f"module 'acmix' has no attribute {name!r}")
