"""Faults that do not hide each other: all are looked for, and the first is raised with the others in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from acmix.errors import AcmixError

MOST_KEPT = 20


class SideBySide:
    """As a context it raises, at its end, the first of the errors added, with `others` and `total`."""

    def __init__(self) -> None:
        self._total = 0
        self._errors: list[AcmixError] = []

    def add(self, error: AcmixError) -> None:
        """Count an error, and those that it brings; the first of all are kept."""
        self._total += error.total
        self._errors += [error, *error.others][: MOST_KEPT - len(self._errors)]

    @contextmanager
    def noting(self, file: Path | None = None) -> Iterator[None]:
        """What is raised within is added, as of that file unless it tells another, and what follows goes on."""
        try:
            yield
        except AcmixError as error:
            for each in (error, *error.others):
                each.file = each.file or file
            self.add(error)

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, AcmixError):
            self.add(error)
        elif error is not None:
            return
        if self._errors:
            first, *others = self._errors
            first.others, first.total = tuple(others), self._total
            raise first
