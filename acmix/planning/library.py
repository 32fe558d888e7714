"""Which library makes the plans: another one's are not taken for its own."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import acmix
from acmix import backbones, mixers, tasks

_BENEATH = ("torch", "torchvision", "timm")


def fingerprint() -> str:
    """A hash of what plans come from: this package's files, those that add to its folders, and versions beneath."""
    digest = hashlib.sha256("".join(f"{name} {_version(name)}\n" for name in _BENEATH).encode())
    for folder in dict.fromkeys(Path(path) for part in (acmix, backbones, mixers, tasks) for path in part.__path__):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
