"""Files that carry code: each would leave a mark where it is loaded by what it is meant for."""

import io
import json
import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import yaml
from safetensors.torch import save as as_safetensors

Loader = Callable[[Path], object]


@dataclass(frozen=True)
class Payload:
    """A file's bytes. `load` is what runs them, where something is to be had that does."""

    name: str
    content: bytes
    load: Loader | None = None


class Call:
    """Pickled, a call that its reader makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.made


def payloads(mark: Path) -> list[Payload]:
    """All of them; each makes the file `mark`."""
    code = f"open({str(mark)!r}, 'w').close()"
    return [*_pickles(mark, code), *_of_torch(code), *_of_numpy(code), *_texts(mark, code), *_others(mark, code)]


def _pickles(mark: Path, code: str) -> list[Payload]:
    import os

    touch = Call(os.system, f"touch {mark}")
    protocols = [Payload(f"pickle of protocol {each}", pickle.dumps(touch, each), _unpickle) for each in range(6)]
    by_hand = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    return [
        *protocols,
        Payload("pickle by hand", by_hand, _unpickle),
        Payload("pickle of exec", pickle.dumps(Call(exec, code)), _unpickle),
        Payload("pickle of Path.touch", pickle.dumps({"model": [Call(Path.touch, mark)]}), _unpickle),
        Payload("pickle that is no more after it", by_hand[:-1] + b"0N.", _unpickle),
        Payload("joblib", _written(lambda file: joblib.dump(Call(exec, code), file)), joblib.load),
    ]


def _of_torch(code: str) -> list[Payload]:
    evil = Call(exec, code)
    weights = {"model": {"layer1.0.conv3.weight": torch.ones(4, 4), "evil": evil}}
    old = _written(lambda file: torch.save(evil, file, _use_new_zipfile_serialization=False))
    return [
        Payload("pt", _written(lambda file: torch.save(evil, file)), _load_all),
        Payload("pth of weights and more", _written(lambda file: torch.save(weights, file)), _load_all),
        Payload("pth of the old form", old, _load_all),
        Payload("pt2", _archive({"archive/archive_format": b"pt2", "archive/data/weights/a.pt": pickle.dumps(evil)})),
        Payload("torch package", _archive({"p/.data/version": b"6", "p/evil.py": code.encode()})),
    ]


def _of_numpy(code: str) -> list[Payload]:
    objects = np.array([Call(exec, code)], dtype=object)
    loaded: Loader = lambda file: np.load(file, allow_pickle=True)  # noqa: E731  # as short as it is
    return [
        Payload("npy of objects", _written(lambda file: np.save(file, objects, allow_pickle=True)), loaded),
        Payload("npz of objects", _written(lambda file: np.savez(file, a=objects)), lambda file: loaded(file)["a"]),  # type: ignore[index]
    ]


def _texts(mark: Path, code: str) -> list[Payload]:
    tagged = f"!!python/object/apply:os.system ['touch {mark}']"
    names = {
        "backbone": {"name": f"__import__('os').system('touch {mark}')", "options": {"__reduce__": code}},
        "dataset": {"name": "../../evil", "options": {"folder": f"$(touch {mark})"}},
        "swaps": [{"layers": f"{{{{{code}}}}}", "mixer": {"name": "os.system"}}],
        "py/object": "os.system",
        "__class__": "os.system",
    }
    return [
        Payload("yaml with a tag", tagged.encode(), lambda file: yaml.unsafe_load(file.read_text())),
        Payload("json of names that are code", json.dumps(names).encode()),
        Payload("json in a yaml tag", json.dumps({"spec": tagged}).encode()),
        Payload("python", code.encode(), lambda file: exec(file.read_text())),
        Payload("a formula", code.replace("open", "__builtins__.open").encode()),
        Payload("shell", f"#!/bin/sh\ntouch {mark}\n".encode()),
        Payload("svg", f'<svg onload="{code}"><script>{code}</script></svg>'.encode()),
        Payload("eps", f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {mark}) (r) file\n".encode()),
    ]


def _others(mark: Path, code: str) -> list[Payload]:
    metadata = {"acmix": json.dumps({"spec": {"backbone": {"name": code}}, "classes": [code], "images": {"px": code}})}
    header = json.dumps(
        {"__metadata__": {"format": "pickle"}, code: {"dtype": code, "shape": [1], "data_offsets": [0, 4]}}
    )
    compiled = compile(code, "evil", "exec")
    return [
        Payload("safetensors that tells code", as_safetensors({"conv1.weight": torch.ones(2, 2)}, metadata)),
        Payload("safetensors of a type that is code", struct.pack("<Q", len(header)) + header.encode() + bytes(4)),
        Payload("safetensors with a pickle in it", as_safetensors({"a": _as_bytes(pickle.dumps(Call(exec, code)))})),
        Payload("marshal", marshal.dumps(compiled), lambda file: exec(marshal.loads(file.read_bytes()))),
        Payload("egg", _archive({"__main__.py": code.encode(), "sitecustomize.py": code.encode()})),
    ]


def _unpickle(file: Path) -> object:
    return pickle.loads(file.read_bytes())


def _load_all(file: Path) -> object:
    return torch.load(file, weights_only=False)


def _written(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _as_bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
