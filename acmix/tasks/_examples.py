"""The samples of which a model is most confidently wrong."""

import heapq
from collections.abc import Iterable
from typing import Any

MOST_EXAMPLES = 16

_Kept = tuple[float, int, int, dict[str, Any]]  # the less confident, later samples, what was told later come first


class Examples:
    """Keeps the most confident of all that it is told, whatever their number and in whatever order samples come."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._told = 0

    def add(self, index: int, confidence: float, **more: Any) -> None:
        """Of the sample of that index of its split, what was said of it with that confidence, 0 to 1, and is wrong."""
        self._told += 1
        self._keep((confidence, -index, -self._told, {"index": index, "confidence": confidence, **more}))

    def most_confident_first(self) -> list[dict[str, Any]]:
        """Of equals the one of the first sample, and of a sample's the one told first."""
        return [example for *_, example in sorted(self._kept, reverse=True, key=lambda each: each[:3])]

    def told(self) -> list[Any]:
        """Those that it keeps, as JSON values."""
        return list(self._kept)

    def take(self, told: Iterable[Any]) -> None:
        """Those that were kept of other samples."""
        for each in told:
            self._keep(tuple(each))

    def _keep(self, one: "_Kept") -> None:
        heapq.heappush(self._kept, one)
        if len(self._kept) > MOST_EXAMPLES:
            heapq.heappop(self._kept)
