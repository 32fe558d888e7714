"""How many requests each tenant makes: a bucket of tokens that fills up by the minute."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_WAIT_SECONDS = 60  # of a tenant that may make none at all


@dataclass
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Counts within this process: several of them let a tenant through as often each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, tenant: str, a_minute: int) -> int:
        """Count a request: 0 where it may pass, else in how many whole seconds the next one may.

        As many as a minute's may come at once; after that, one every 60 / `a_minute` seconds.
        """
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(tenant, _Bucket(a_minute, now))
            bucket.tokens = min(a_minute, bucket.tokens + (now - bucket.at) * a_minute / 60)
            bucket.at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return 0
            return math.ceil((1 - bucket.tokens) * 60 / a_minute) if a_minute else LONGEST_WAIT_SECONDS
