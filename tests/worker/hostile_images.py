"""Image files that mean harm, or are damaged by a seed: their bytes, and which of them must be refused."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from tests.acmix.photos import noise

ALLOWED = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
OTHERS = ("GIF", "EPS", "ICO", "PPM", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "TGA", "PDF", "AVIF", "QOI", "MSP")
HUGE_PX = 60_000


@dataclass(frozen=True)
class Picture:
    what: str
    suffix: str
    content: bytes
    must_be_refused: bool


def pictures(seed: int) -> list[Picture]:
    drawn = random.Random(seed)
    made = [*_bombs(), *_cut(drawn), *_of_other_formats(), *_chunks(), *_tiffs(), *_metadata(drawn), *_animated()]
    made += [*_no_pictures(drawn), *_flipped(drawn)]
    return made


def saved(image: Image.Image, form: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ihdr(width: int, height: int, bits: int = 8, kind: int = 2, interlaced: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">2I5B", width, height, bits, kind, 0, 0, interlaced)


def tiff(entries: list[tuple[int, int, int, int]], *, next_ifd: int = 0, data: bytes = b"", start: int = 8) -> bytes:
    """A little-endian file of one directory: tag, type, count and value or offset of each entry."""
    rows = b"".join(struct.pack("<2H2L", *(each & 0xFFFFFFFF for each in entry)) for entry in entries)
    return (
        b"II*\0"
        + struct.pack("<L", start)
        + struct.pack("<H", len(entries))
        + rows
        + struct.pack("<L", next_ifd)
        + data
    )


def _bombs() -> Iterator[Picture]:
    """Sizes that are declared, with next to nothing behind them."""
    little = zlib.compress(bytes(1000))
    for width, height in ((HUGE_PX, HUGE_PX), (2**31 - 1, 2**31 - 1), (9500, 9500), (2**31 - 1, 1), (0, 0), (1, 0)):
        for interlaced in (0, 1):
            yield Picture("png bomb", "png", png(ihdr(width, height, interlaced=interlaced), (b"IDAT", little)), True)
    zeros = zlib.compress(bytes(64 * 2**20), 9)
    yield Picture(
        "png of 256 MB of zeros in a map of 9 px", "png", png(ihdr(3, 3), (b"IDAT", zeros), (b"IEND", b"")), False
    )
    yield Picture("png of zeros", "png", png(ihdr(9400, 9400, 8, 0), (b"IDAT", zeros), (b"IEND", b"")), True)
    for width, height in ((HUGE_PX, HUGE_PX), (2**31 - 1, 2**31 - 1), (-HUGE_PX, HUGE_PX), (10_000, -10_000)):
        header = struct.pack("<2sL2HLL2l2H6L", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)
        yield Picture("bmp bomb", "bmp", header + bytes(100), True)
        rows = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
        yield Picture("tiff bomb", "tif", tiff([*rows, (278, 4, 1, height), (279, 4, 1, 100)]), True)
    jpeg = saved(noise(1), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield Picture("jpeg bomb", "jpg", jpeg[:at] + struct.pack(">2H", 65_500, 65_500) + jpeg[at + 4 :], True)
    yield Picture("jpeg of no size", "jpg", jpeg[:at] + bytes(4) + jpeg[at + 4 :], True)
    side = struct.pack("<I", 16_383 | 16_383 << 14)
    lossless = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + side + b"\0"
    yield Picture("webp bomb", "webp", b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP" + lossless, True)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6
    yield Picture("webp bomb", "webp", b"RIFF" + struct.pack("<I", 22) + b"WEBP" + canvas, True)


def _cut(drawn: random.Random) -> Iterator[Picture]:
    for suffix, form in ALLOWED.items():
        whole = saved(noise(3, (60, 50)), form)
        for share in (0.02, 0.1, 0.3, 0.5, 0.7):
            yield Picture("cut off", suffix, whole[: int(len(whole) * share)], True)
        yield Picture("cut off a little", suffix, whole[: -drawn.randint(1, 8)], False)
        yield Picture("with a tail", suffix, whole + drawn.randbytes(5000), False)
        yield Picture("twice", suffix, whole * 2, False)


def _of_other_formats() -> Iterator[Picture]:
    """By names of pictures that are taken."""
    Image.init()
    for form in OTHERS:
        if form in Image.SAVE:
            image = noise(4, (32, 32)).convert("1") if form == "MSP" else noise(4, (32, 32))
            yield Picture(form, "png", saved(image, form), True)
    yield Picture("PSD", "jpg", struct.pack(">4sH6xHLLHH", b"8BPS", 1, 3, 30, 30, 8, 3) + bytes(3000), True)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>'
    yield Picture("SVG", "png", svg, True)
    yield Picture(
        "XML of a billion laughs", "webp", b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><a>&b;</a>', True
    )
    yield Picture(
        "EPS that runs a command", "jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) run\n", True
    )
    yield Picture(
        "ImageMagick's own", "png", b"push graphic-context\nimage over 0,0 0,0 'ephemeral:/etc/passwd'\n", True
    )
    yield Picture("WMF", "bmp", b"\xd7\xcd\xc6\x9a\0\0" + bytes(100), True)
    yield Picture("cursor", "bmp", b"\0\0\2\0\1\0" + bytes(100), True)
    yield Picture("XBM", "png", b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {0x00};", True)
    yield Picture("FITS", "tif", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80), True)
    for suffix in ALLOWED:
        for form in ("JPEG", "PNG"):
            yield Picture(f"{form} of another name", suffix, saved(noise(5), form), False)


def _chunks() -> Iterator[Picture]:
    """PNGs whose other chunks are more than they seem."""
    rows = zlib.compress(b"".join(b"\0" + bytes(36) for _ in range(12)))
    pixels, end = (b"IDAT", rows), (b"IEND", b"")
    megabytes = zlib.compress(bytes(64 * 2**20), 9)
    for name, chunk in {
        "zTXt bomb": (b"zTXt", b"Comment\0\0" + megabytes),
        "iTXt bomb": (b"iTXt", b"Comment\0\1\0\0\0" + megabytes),
        "iCCP bomb": (b"iCCP", b"icc\0\0" + megabytes),
        "text of a megabyte": (b"tEXt", b"Comment\0" + b"x" * 2**20),
        "palette too long": (b"PLTE", bytes(3000)),
        "gamma of nothing": (b"gAMA", b""),
        "size once more": ihdr(HUGE_PX, HUGE_PX),
        "a chunk of no name": (b"\0\0\0\0", b"x"),
        "animation of many frames": (b"acTL", struct.pack(">2I", 2**31 - 1, 0)),
        "EXIF of nothing": (b"eXIf", b""),
    }.items():
        yield Picture(name, "png", png(ihdr(12, 12), chunk, pixels, end), False)
        yield Picture(f"{name}, after the pixels", "png", png(ihdr(12, 12), pixels, chunk, end), False)
    many = PngImagePlugin.PngInfo()
    for number in range(2000):
        many.add_text(f"key{number}", "x" * 1000, zip=True)
    yield Picture("two thousand texts", "png", saved(noise(6), "PNG", pnginfo=many), False)
    yield Picture("a wrong checksum", "png", png(ihdr(12, 12), pixels, end)[:-20] + bytes(4) + png(end)[8:], False)
    yield Picture("a chunk of 4 GB", "png", png(ihdr(12, 12)) + b"\xff\xff\xff\xffIDAT" + rows, False)
    yield Picture("no pixels", "png", png(ihdr(12, 12), end), True)


def _tiffs() -> Iterator[Picture]:
    sizes = [(256, 4, 1, 12), (257, 4, 1, 12), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    strip = [(278, 4, 1, 12), (279, 4, 1, 144)]
    for what, body in {
        "a directory before the start": tiff(sizes, start=0),
        "a directory beyond the end": tiff(sizes, start=2**32 - 1),
        "a directory of itself": tiff([*sizes, (273, 4, 1, 9), *strip], next_ifd=8, data=bytes(200)),
        "strips beyond the end": tiff([*sizes, (273, 4, 1, 10**9), *strip]),
        "strips before the start": tiff([*sizes, (273, 4, 1, -1), *strip]),
        "four billion strips": tiff([*sizes, (273, 4, 2**32 - 1, 8), *strip]),
        "strips of nothing": tiff([*sizes, (273, 4, 1, 8), (278, 4, 1, 0), (279, 4, 1, 0)]),
        "tiles of no size": tiff([*sizes, (322, 4, 1, 0), (323, 4, 1, 0), (324, 4, 1, 8), (325, 4, 1, 9)]),
        "tiles of gigabytes": tiff([*sizes, (322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 8), (325, 4, 1, 9)]),
        "an unknown compression": tiff([*sizes[:3], (259, 3, 1, 65_000), sizes[4], (273, 4, 1, 8), *strip]),
        "LZW of nothing": tiff([*sizes[:3], (259, 3, 1, 5), sizes[4], (273, 4, 1, 8), *strip]),
        "JPEG of nothing": tiff([*sizes[:3], (259, 3, 1, 7), sizes[4], (273, 4, 1, 8), *strip]),
        "a profile beyond the end": tiff([*sizes, (273, 4, 1, 8), *strip, (34675, 7, 2**31, 8)], data=bytes(200)),
        "a thousand entries": tiff([(65_000, 2, 100, 8)] * 1000),
        "a wrong number of bits": tiff([*sizes[:2], (258, 3, 1, 999), *sizes[3:], (273, 4, 1, 8), *strip]),
    }.items():
        yield Picture(what, "tif", body, what not in {"a directory of itself", "a profile beyond the end"})
    yield Picture("BigTIFF of nothing", "tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63), True)
    for mode in ("I", "F"):
        values = np.zeros((12, 12), np.int32 if mode == "I" else np.float32)
        yield Picture(f"pixels of mode {mode}", "tif", saved(Image.fromarray(values), "TIFF"), True)


def _metadata(drawn: random.Random) -> Iterator[Picture]:
    for suffix, form in (("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")):
        for exif in (
            drawn.randbytes(3000),
            b"Exif\0\0" + drawn.randbytes(200),
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9),
        ):
            yield Picture("EXIF of noise", suffix, saved(noise(7), form, exif=exif), False)
        for turn in (0, 3, 6, 9, 2**16 - 1):
            exif = Image.Exif()
            exif[0x0112] = turn
            yield Picture(f"EXIF turned by {turn}", suffix, saved(noise(8), form, exif=exif), False)
        yield Picture("a profile of 4 MB", suffix, saved(noise(9), form, icc_profile=drawn.randbytes(2**22)), False)
    comments = b"".join(b"\xff\xfe" + struct.pack(">H", 65_535) + bytes(65_533) for _ in range(100))
    jpeg = saved(noise(10), "JPEG")
    yield Picture("6 MB of comments", "jpg", jpeg[:2] + comments + jpeg[2:], False)
    scans = saved(noise(11, (64, 64)), "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xda") : -2]
    yield Picture("a thousand scans", "jpg", scans[:-2] + scan * 1000 + scans[-2:], False)


def _animated() -> Iterator[Picture]:
    frames = [noise(seed, (40, 40)) for seed in range(60)]
    for suffix in ("png", "webp", "tif"):
        content = saved(frames[0], ALLOWED[suffix], save_all=True, append_images=frames[1:])
        yield Picture("sixty frames", suffix, content, False)
        yield Picture("sixty frames cut off", suffix, content[: len(content) // 200], True)
    yield Picture("MPO of two frames", "jpg", saved(frames[0], "MPO", save_all=True, append_images=frames[1:2]), False)


def _no_pictures(drawn: random.Random) -> Iterator[Picture]:
    yield Picture("nothing", "png", b"", True)
    yield Picture("a text", "jpg", b"not a picture", True)
    yield Picture("a page", "bmp", b"<html><script>alert(1)</script></html>", True)
    yield Picture("a program", "webp", b"\x7fELF" + drawn.randbytes(500), True)
    for suffix in ALLOWED:
        beginning = saved(noise(12), ALLOWED[suffix])[:12]
        yield Picture("a beginning and noise", suffix, beginning + drawn.randbytes(3000), True)


def _flipped(drawn: random.Random) -> Iterator[Picture]:
    """Bytes changed at random: what Pillow reads is a picture, what it does not is refused."""
    for number in range(60):
        suffix, form = [*ALLOWED.items()][number % len(ALLOWED)]
        content = bytearray(saved(noise(100 + number, (40, 30)), form))
        for _ in range(drawn.choice([1, 3, 10, 100])):
            content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        yield Picture("flipped bits", suffix, bytes(content), False)
