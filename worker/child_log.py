"""What children print beside their answers: it goes where this process logs, and in the form of its log."""

import logging
import subprocess
import threading
from collections.abc import Iterable

from service import logs

MAX_CHARACTERS = 4000


def stderr() -> int | None:
    """What a child is to print to: where we do, or a pipe."""
    return subprocess.PIPE if logs.is_json() else None


def follow(process: "subprocess.Popen[bytes]", name: str) -> None:
    """Log what it prints to its end, if that is a pipe."""
    if process.stderr:
        threading.Thread(target=pass_on, args=(process.stderr, name), daemon=True).start()


def pass_on(lines: Iterable[bytes], name: str) -> None:
    """Log lines that a child printed."""
    logger = logging.getLogger(f"acmix.{name}")
    for line in lines:
        logger.info("%s", line.decode(errors="replace").rstrip("\n")[:MAX_CHARACTERS])
