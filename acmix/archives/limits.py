"""How much an archive may hold, and the tally that holds it to that while it comes out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from acmix.errors import ArchiveRefused

Tell = Callable[[int, int | None], None]  # how much is done, of how much


@dataclass(frozen=True)
class Limits:
    """What is the most of each; the defaults suit data sets of a few million images.

    Bytes are those that come out, a tar's own headers among them. `ratio` is what came out over the archive's size; it
    is not looked at below `ratio_floor_bytes`, for a small file of one colour may well shrink a thousandfold.
    """

    entries: int = 2_000_000  # files, folders and what is passed over
    total_bytes: int = 200 * 10**9
    file_bytes: int = 4 * 10**9
    ratio: int = 200
    ratio_floor_bytes: int = 64 * 10**6
    depth: int = 32  # parts of a name
    part_bytes: int = 255
    path_bytes: int = 1024
    window_bytes: int = 128 * 2**20  # what a zstd frame may ask the reader to remember
    seconds: float = 3600


class Tally:
    """What was read and what came out so far; ArchiveRefused as soon as a limit is passed, whatever headers claim."""

    def __init__(self, limits: Limits, archive_bytes: int, tell: Tell, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.archive_bytes = archive_bytes
        self.entries = 0
        self.read_bytes = 0
        self.given_bytes = 0
        self._tell = tell
        self._clock = clock
        self._ends_at = clock() + limits.seconds

    def reading(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks of the archive as they are, tallied."""
        for chunk in chunks:
            self.read(len(chunk))
            yield chunk

    def giving(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces that come out as they are, tallied."""
        for piece in pieces:
            self.give(len(piece))
            yield piece

    def read(self, size_bytes: int) -> None:
        """So many bytes of the archive were read."""
        self._check_time()
        self.read_bytes += size_bytes
        self._tell(self.read_bytes, self.archive_bytes)

    def entry(self) -> None:
        """One more file or folder was met."""
        self._check_time()
        self.entries += 1
        if self.entries > self.limits.entries:
            raise ArchiveRefused(
                f"the archive holds more than {self.limits.entries} files and folders; split it into several data sets"
            )

    def give(self, size_bytes: int) -> None:
        """So many bytes came out."""
        self.given_bytes += size_bytes
        if self.given_bytes > self.limits.total_bytes:
            raise ArchiveRefused(
                f"the archive unpacks to more than {self.limits.total_bytes} bytes; split it into several data sets"
            )
        self._check_ratio()

    def _check_ratio(self) -> None:
        above_floor = self.given_bytes > self.limits.ratio_floor_bytes
        if above_floor and self.given_bytes > self.limits.ratio * self.archive_bytes:
            raise ArchiveRefused(
                f"the archive unpacks to more than {self.limits.ratio} times its size; pack files that are less empty"
            )

    def _check_time(self) -> None:
        if self._clock() > self._ends_at:
            raise ArchiveRefused(
                f"the archive takes longer than {self.limits.seconds:g} s to unpack; split it into several data sets"
            )
