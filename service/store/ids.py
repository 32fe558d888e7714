"""Ids that sort by time: a prefix and a ULID, 48 bits of milliseconds and 80 random ones."""

import secrets
import time
from threading import Lock

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
LENGTH = 26

_lock = Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Such as job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC; in one process each is greater than all before."""
    value = _next_value()
    digits = (ALPHABET[value >> 5 * place & 31] for place in reversed(range(LENGTH)))
    return f"{prefix}_{''.join(digits)}"


def _next_value() -> int:
    global _last  # noqa: PLW0603  # the one thing to remember: the last value given out
    with _lock:
        fresh = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
        # Within a millisecond, or after the clock was set back, go up by a random step: a forked twin takes another.
        _last = fresh if fresh >> 80 > _last >> 80 else _last + 1 + secrets.randbits(64)
        return _last
