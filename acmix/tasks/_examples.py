"""The samples of which a model is most confidently wrong."""

import heapq
from typing import Any

MOST_EXAMPLES = 16


class Examples:
    """Keeps the most confident of all that it is told, whatever their number."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, dict[str, Any]]] = []
        self._told = 0

    def add(self, index: int, confidence: float, **more: Any) -> None:
        """Of the sample of that index of its split, what was said of it with that confidence, 0 to 1, and is wrong."""
        self._told += 1
        example = {"index": index, "confidence": confidence, **more}
        heapq.heappush(self._kept, (confidence, -self._told, example))
        if len(self._kept) > MOST_EXAMPLES:
            heapq.heappop(self._kept)

    def most_confident_first(self) -> list[dict[str, Any]]:
        """Of equals the one told first."""
        return [example for _, _, example in sorted(self._kept, reverse=True, key=lambda each: each[:2])]
