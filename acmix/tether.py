"""A child that dies with its parent, however the parent ends.

As a command, `python -m acmix.tether PARENT_PID -- COMMAND...` ties itself to the parent and becomes the command.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1


def to_parent(parent_pid: int) -> None:
    """Have this process killed when its parent ends; leave at once if the parent already has.

    On Linux the kernel does it, when the *thread* that started us ends, and the setting survives exec.
    Elsewhere a thread watches the parent's id, which does not survive exec.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def to_process(pid: int) -> None:
    """Have this process end when another of this user ends that need not be its parent: a thread looks every second."""
    threading.Thread(target=_follow, args=(pid,), daemon=True).start()


def _follow(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(0.5)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main(argv: list[str]) -> None:
    parent_pid, separator, *command = argv
    if separator != "--" or not command:
        sys.exit("usage: python -m acmix.tether PARENT_PID -- COMMAND...")
    to_parent(int(parent_pid))
    os.execvp(command[0], command)  # noqa: S606  # becoming the command is the point


if __name__ == "__main__":
    main(sys.argv[1:])
