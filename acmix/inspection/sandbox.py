"""What a process that reads strangers' files may take of the machine, set by itself and for good."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_MEMORY_BYTES = 4 * 2**30
CPU_SECONDS = 24 * 3600
OPEN_FILES = 256
STATM = Path("/proc/self/statm")


def confine(*, memory_bytes: int, file_bytes: int) -> None:
    """Bound memory, the size of a file, processor time and open files; leave no core dump and no readable file.

    Memory is address space beyond what the program itself has mapped by now, or maps within `growing_program`.
    """
    resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CPU, CPU_SECONDS)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    os.umask(0o077)


@contextmanager
def growing_program() -> Iterator[None]:
    """Within it what is imported does not count: the bound on memory rises by what that maps, 3 GB for torch."""
    bound, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    try:
        yield
    finally:
        if bound != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (bound + _mapped_bytes() - before, hard))


def _lower(limit: int, value: int) -> None:
    """Set both limits; one that the process was started under and that is lower stays."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _mapped_bytes() -> int:
    """The address space in use, where the system tells."""
    return int(STATM.read_text().split()[0]) * resource.getpagesize() if STATM.exists() else 0
