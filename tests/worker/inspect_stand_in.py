"""In the place of `python -m acmix inspect`: the archive's text says what is to become of it.

Its words, separated by spaces: `ready`, `reject`, `die`, `leave`, `babble`, `other`, or `wait FILE`, until that is
there, before one of them. What it unpacks is that text, as content/text.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from acmix import tether


def main() -> int:
    arguments = _arguments()
    tether.to_parent(arguments.tether)
    text = _text(arguments)
    (arguments.into / "environment").write_text(json.dumps(sorted(os.environ)))
    words = text.split()
    if words[0] == "wait":
        _tell({"progress": {"phase": "checking", "done": os.getpid(), "of": None}})
        while not Path(words[1]).exists():
            time.sleep(0.01)
        words = words[2:]
    if words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] == "leave":
        return 3
    if words[0] == "babble":
        sys.stdout.write("no report\n")
        return 0
    _tell(_report(words[0], text, arguments))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--format", required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--sha256")
    parser.add_argument("--unpack-only", action="store_true")
    parser.add_argument("--tether", type=int, required=True)
    return parser.parse_args()


def _text(arguments: argparse.Namespace) -> str:
    if arguments.folder:
        return (arguments.folder / "text").read_text()
    text: str = arguments.archive.read_text()
    (arguments.into / "content").mkdir()
    (arguments.into / "content" / "text").write_text(text)
    return text


def _report(word: str, text: str, arguments: argparse.Namespace) -> dict[str, Any]:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if arguments.unpack_only:
        return {"status": "unpacked", "root": ".", "sha256": "0" * 64 if word == "other" else sha256}
    if word == "reject":
        fault = {"file": "a\ud800\0.png", "code": "dataset_corrupt", "message": "no image"}
        return {"status": "rejected", "faults": [fault], "faults_total": 1, "expected": "images", "found": "none"}
    (arguments.into / "samples.png").write_bytes(b"a picture")
    return {
        "status": "ready",
        "sha256": sha256,
        "size_bytes": len(text),
        "files": 1,
        "classes": ["cat", "dog"],
        "num_classes": 2,
        "splits": {"train": {"samples": 1}},
        "statistics": {"told": [arguments.task, arguments.format, arguments.options, arguments.sha256]},
        "warnings": [],
        "root": ".",
        "options": {"folder": "."},
    }


def _tell(said: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
