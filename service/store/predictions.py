"""Predictions that are asked for, and those that were made."""

from datetime import timedelta
from typing import Any, ClassVar

from sqlalchemy import select

from service.store import tables
from service.store.requests import Requests
from service.store.rows import Asked


class Predictions(Requests):
    """A request names a checkpoint and an image by its hash; `image` holds that until it is answered, `drawn` a PNG."""

    table = tables.predictions
    answer_kept = timedelta(minutes=10)
    most_kept = 64
    failure_code = "prediction_failed"
    failing = "nothing could be predicted"
    dropped: ClassVar[dict[str, Any]] = {"image": None}

    def image(self, asked: Asked) -> bytes | None:
        """The bytes that came; None once it is answered."""
        return self._bytes(asked, "image")

    def drawn(self, asked: Asked) -> bytes | None:
        """The picture of an answer, where one was asked for."""
        return self._bytes(asked, "drawn")

    def _bytes(self, asked: Asked, column: str) -> bytes | None:
        with self._reading.connect() as connection:
            wanted = select(self.table.c[column]).where(self.table.c.id == asked.id)
            found: bytes | None = connection.execute(wanted).scalar_one_or_none()
        return found
