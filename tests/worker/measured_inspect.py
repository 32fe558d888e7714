"""`python -m acmix inspect`, and a file beside its --into that says what memory it took at most.

PYTHON_INSPECT_WITHOUT_OUR_RULES puts tarfile in the place of our unpacking: the negative control.
"""

import atexit
import os
import re
import runpy
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MEMORY = "memory-bytes"


def tell_memory(target: Path) -> None:
    """The high-water mark of this program: what its parent had before counts for nothing."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    target.write_text(str(1024 * int(found[1])))


def extract_all(archive: Sequence[Path], into: Path, **_: Any) -> SimpleNamespace:
    with tarfile.open(archive[0]) as opened:
        opened.extractall(into, filter="fully_trusted")
    return SimpleNamespace(passed_over=0)


if __name__ == "__main__":
    into = Path(sys.argv[sys.argv.index("--into") + 1])
    atexit.register(tell_memory, into.with_name(f"{into.name}-{MEMORY}"))
    if os.environ.get("PYTHON_INSPECT_WITHOUT_OUR_RULES"):
        from acmix.inspection import command

        command.unpack = extract_all  # type: ignore[assignment]
    runpy.run_module("acmix", run_name="__main__", alter_sys=True)
