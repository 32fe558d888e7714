"""Vision models with ACmix layers: build them, swap them in, train them, watch them. Needs no service."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acmix import authors, mixers
    from acmix.build import build
    from acmix.run import run

__version__ = "0.1.0"
__all__ = ["authors", "build", "mixers", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import acmix` alone stays under 0.1 s, torch takes 3."""
    if name in {"build", "run"}:
        return getattr(import_module(f"acmix.{name}"), name)
    if name in {"authors", "mixers"}:
        return import_module(f"acmix.{name}")
    raise AttributeError(f"module 'acmix' has no attribute {name!r}")
