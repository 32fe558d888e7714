"""What a compressed stream holds, piece by piece: never more at once than a piece, never past what is asked for."""

import zlib
from collections.abc import Iterator

from zstandard import ZstdDecompressor, ZstdError

from acmix.errors import ArchiveRefused

PIECE_BYTES = 256 * 1024
GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say: with gzip's header, length and checksum

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # after a byte of 0x50 to 0x5f: a frame for whatever its writer likes
ZSTD_BLOCK_BYTES = 128 * 1024  # the format's most, packed and unpacked
RAW, RLE, COMPRESSED = 0, 1, 2


class Stream:
    """Bytes that come in chunks of any size, read in pieces of the size that is wanted."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._used = 0  # of the chunk
        self.position = 0

    def take(self, size_bytes: int) -> bytes:
        """So many bytes, or what is left of them at the end."""
        pieces = []
        while size_bytes > 0 and (piece := self._piece(size_bytes)):
            pieces.append(piece)
            size_bytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def exactly(self, size_bytes: int) -> bytes:
        """So many bytes; ArchiveRefused where the stream ends before."""
        taken = self.take(size_bytes)
        if len(taken) < size_bytes:
            raise _cut_off()
        return taken

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """So many bytes, piece by piece."""
        while size_bytes > 0:
            piece = self._piece(min(size_bytes, PIECE_BYTES))
            if not piece:
                raise _cut_off()
            size_bytes -= len(piece)
            yield piece

    def skip(self, size_bytes: int) -> None:
        for _ in self.pieces(size_bytes):
            pass

    def _piece(self, most_bytes: int) -> bytes:
        """At least one byte, except at the end."""
        while self._used == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._chunk, self._used = chunk, 0
        piece = self._chunk[self._used : self._used + most_bytes]
        self._used += len(piece)
        self.position += len(piece)
        return piece


def gzip_content(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What the gzip members hold, one after another; each must be whole and nothing may follow the last."""
    inflating = zlib.decompressobj(GZIP)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if inflating.eof:
                    inflating = zlib.decompressobj(GZIP)
                if piece := inflating.decompress(rest, PIECE_BYTES):
                    yield piece
                rest = inflating.unused_data if inflating.eof else inflating.unconsumed_tail
        while not inflating.eof:  # what is in and not yet out
            if not (piece := inflating.decompress(b"", PIECE_BYTES)):
                raise _cut_off()
            yield piece
    except zlib.error as error:
        raise ArchiveRefused(f"the archive's gzip data are damaged ({said(error)}); pack it again") from None


def zstd_content(chunks: Iterator[bytes], window_bytes: int) -> Iterator[bytes]:
    """What the zstd frames hold, one after another; each must be whole and nothing may follow the last.

    Frames are taken apart here and given to the decompressor block by block, so that no more than a block, 128 KiB,
    comes out at once, and a frame that is cut off cannot pass for a whole one.
    """
    source = Stream(chunks)
    decompressor = ZstdDecompressor(max_window_size=window_bytes)
    try:
        while magic := source.take(len(ZSTD_MAGIC)):
            if magic[1:] == SKIPPABLE_MAGIC and magic[0] >> 4 == 5:
                source.skip(int.from_bytes(source.exactly(4), "little"))
            elif magic == ZSTD_MAGIC:
                yield from _frame(source, decompressor, window_bytes)
            else:
                raise ArchiveRefused("the archive's zstd data are followed by something else; pack it again")
    except ZstdError as error:
        raise ArchiveRefused(f"the archive's zstd data are damaged ({said(error)}); pack it again") from None


def said(error: zlib.error | ZstdError) -> str:
    """What a decompressor says is wrong, without its number and the function's name."""
    return str(error).rpartition(": ")[2]


def _frame(source: Stream, decompressor: ZstdDecompressor, window_bytes: int) -> Iterator[bytes]:
    header, has_checksum = _frame_header(source, window_bytes)
    frame = decompressor.decompressobj()
    frame.decompress(ZSTD_MAGIC + header)
    is_last = False
    while not is_last:
        block, is_last = _block(source)
        if piece := frame.decompress(block):
            yield piece
    if has_checksum and (piece := frame.decompress(source.exactly(4))):
        yield piece
    if not frame.eof:
        raise _cut_off()


def _frame_header(source: Stream, window_bytes: int) -> tuple[bytes, bool]:
    """The header after the magic, and whether a checksum ends the frame; a large window or a dictionary is refused."""
    descriptor = source.exactly(1)
    flags = descriptor[0]
    is_single, has_checksum = bool(flags & 0x20), bool(flags & 0x04)
    window = b"" if is_single else source.exactly(1)
    dictionary = source.exactly((0, 1, 2, 4)[flags & 3])
    size = source.exactly((int(is_single), 2, 4, 8)[flags >> 6])
    asked_bytes = int.from_bytes(size, "little") if is_single else _window_bytes(window[0])
    if asked_bytes > window_bytes:
        raise ArchiveRefused(
            f"the archive's zstd data ask for a window of {asked_bytes} bytes, {window_bytes} are the most; "
            "pack it without --long or --ultra"
        )
    if any(dictionary):
        raise ArchiveRefused("the archive's zstd data need a dictionary; pack it without one")
    return descriptor + window + dictionary + size, has_checksum


def _window_bytes(descriptor: int) -> int:
    """Source: RFC 8878, section 3.1.1.1.2."""
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def _block(source: Stream) -> tuple[bytes, bool]:
    """A block with its header, and whether it is the frame's last."""
    header = source.exactly(3)
    fields = int.from_bytes(header, "little")
    kind, size_bytes = fields >> 1 & 3, fields >> 3
    if kind not in {RAW, RLE, COMPRESSED} or size_bytes > ZSTD_BLOCK_BYTES:
        raise ArchiveRefused("the archive's zstd data are damaged (a block of no kind or size there is); pack it again")
    return header + source.exactly(1 if kind == RLE else size_bytes), bool(fields & 1)


def _cut_off() -> ArchiveRefused:
    return ArchiveRefused("the archive is cut off before its end; upload all of it")
