"""Checkpoints on disk: written whole or not at all, verified when read, and no pickle anywhere.

A checkpoint is a folder `step-000000120` of four files:
    model.safetensors   the weights that are evaluated; its metadata `acmix` carries spec, epoch and step
    state.safetensors   every other tensor an exact resume needs (optimizer, EMA, random generators, ...)
    state.json          everything else: position, best so far, schedule, scaler
    manifest.json       size and sha256 of the other three; written last, so that its presence means "whole"
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from acmix import manifest
from acmix.errors import DiskFull
from acmix.tasks._contract import is_better
from acmix.weights import ABOUT

MODEL, STATE, RECORD = "model.safetensors", "state.safetensors", "state.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
RESERVE_BYTES = 2**30  # of the disk are left to others


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and what its manifest says."""

    folder: Path
    epoch: int
    step: int
    kind: str
    metrics: dict[str, float]
    size_bytes: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint event carries; `sha256` and `size_bytes` are the model file's."""
        return {
            "folder": self.folder.name,
            "epoch": self.epoch,
            "step": self.step,
            "kind": self.kind,
            "metrics": self.metrics,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
        }


def save(
    parent: Path,
    *,
    epoch: int,
    step: int,
    kind: str,
    metrics: Mapping[str, float],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Saved:
    """Write a checkpoint below `parent`: a temporary folder, every file synced, one rename, the parent synced.

    Args:
        weights: the model file's tensors.
        state: a tree of dicts, lists, numbers, strings and tensors; `load_state` gives it back as it was.
        about: JSON values kept in the model file's metadata. Under one key, since safetensors writes several in an
            order of chance, and equal runs must leave equal files.

    Raises:
        DiskFull: less than a gigabyte would be left, once it is here and copied to a store on the same disk; or the
            disk was full. Nothing is left behind.
    """
    parent.mkdir(parents=True, exist_ok=True)
    final, temporary = path_of(parent, step), parent / f".writing-{step:09d}-{os.getpid()}"
    try:
        with _removed_on_error(temporary):
            temporary.mkdir()
            tensors: dict[str, Tensor] = {}
            record = {"epoch": epoch, "step": step, "kind": kind, "metrics": dict(metrics)}
            record["state"] = _pack(state, "", tensors)
            _check_room(parent, (*weights.values(), *tensors.values()))
            save_file(
                {name: tensor.contiguous() for name, tensor in weights.items()},
                temporary / MODEL,
                {ABOUT: json.dumps(about)},
            )
            save_file(tensors, temporary / STATE)
            (temporary / RECORD).write_text(json.dumps(record))
            files = manifest.write(temporary, (MODEL, STATE, RECORD))
            _put_in_place(temporary, final)
    except (OSError, SafetensorError) as error:
        if _is_full(error):
            raise DiskFull(f"no room for a checkpoint in {parent}", hint="free some space and resume") from error
        raise
    return _saved(final, record, files)


def verified(folder: Path) -> Saved:
    """The checkpoint in a folder, every byte of it checked; CheckpointIncompatible says what is wrong with it."""
    files = manifest.check(folder)
    record = json.loads((folder / RECORD).read_text())
    return _saved(folder, record, files)


def listed(parent: Path) -> list[Path]:
    """Folders of checkpoints below `parent`, newest step first; whether they are whole is for `verified` to say."""
    return sorted(parent.glob("step-*"), key=lambda folder: (folder.stem, not folder.suffix), reverse=True)


def path_of(parent: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return parent / f"step-{step:09d}"


def set_aside(folder: Path) -> None:
    """Take a checkpoint that cannot be read out of the list, and leave its files to whoever may mend them."""
    _rename_over(folder, folder.with_name(f".unreadable-{folder.name}"))


def load_weights(saved: Saved) -> dict[str, Tensor]:
    return load_file(saved.folder / MODEL)


def load_state(saved: Saved) -> dict[str, Any]:
    """The tree that `save` was given."""
    record = json.loads((saved.folder / RECORD).read_text())
    tree = _unpack(record["state"], load_file(saved.folder / STATE))
    assert isinstance(tree, dict)
    return tree


def retain(parent: Path, metric: str, *, keep_best: int, keep_latest: int) -> None:
    """Remove checkpoints that are neither among the newest nor among the best by `metric`, and unfinished ones."""
    records = {folder: json.loads((folder / RECORD).read_text()) for folder in listed(parent)}
    kept = set(list(records)[:keep_latest])
    ranked = [folder for folder in reversed(records) if metric in records[folder]["metrics"]]
    for _ in range(min(keep_best, len(ranked))):
        best = ranked[0]
        for folder in ranked[1:]:
            if is_better(metric, records[folder]["metrics"][metric], records[best]["metrics"][metric]):
                best = folder
        kept.add(best)
        ranked.remove(best)
    for folder in records.keys() - kept:
        _rename_over(folder, folder.with_name(f".removing-{folder.name}"))  # whoever copies it finds all of it or none
    for folder in [*parent.glob(".writing-*"), *parent.glob(".removing-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Where the step was saved before, that one stays listed until the new one is in its place."""
    former = final.with_suffix(".former")
    if final.exists():
        _rename_over(final, former)
    temporary.rename(final)
    manifest.sync(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def _rename_over(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _check_room(parent: Path, tensors: Iterable[Tensor]) -> None:
    needed = 2 * sum(tensor.nbytes for tensor in tensors) + RESERVE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        hint = f"free some space and resume: {needed:,} bytes would do"
        raise DiskFull(f"no room for a checkpoint: {free:,} bytes are free where {parent} lies", hint=hint)


def _is_full(error: OSError | SafetensorError) -> bool:
    """safetensors has the number of the system's error in its message alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def _saved(folder: Path, record: Mapping[str, Any], files: Mapping[str, Any]) -> Saved:
    where = {key: record[key] for key in ("epoch", "step", "kind", "metrics")}
    return Saved(folder, **where, size_bytes=files[MODEL]["size_bytes"], sha256=files[MODEL]["sha256"])


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _pack(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON values for a tree; its tensors go to `tensors` under their path. Pairs keep keys that are integers so."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().contiguous().clone()
        return {"tensor": path}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _pack(value, f"{path}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_pack(value, f"{path}/{index}", tensors) for index, value in enumerate(tree)]}
    return tree


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "dict" in tree:
        return {key: _unpack(value, tensors) for key, value in tree["dict"]}
    return [_unpack(value, tensors) for value in tree["list"]]
