"""What kind of archive some bytes begin, whatever their file is called."""

import re

BEGINNING_BYTES = 512  # one header of a tar
CHECKSUM = slice(148, 156)  # of a tar's header: octal digits, themselves counted as spaces

BEGINNINGS = {
    "zip": rb"PK(\x03\x04|\x05\x06)",
    "zip in parts": rb"PK\x07\x08",
    "gzip": rb"\x1f\x8b",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    "bzip2": rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)",
    "xz": rb"\xfd7zXZ\0",
    "lzma": rb"\x5d\0\0[\0-\xff]{2}(\xff{8}|[\0-\xff]{5}\0{3})",
    "lzip": rb"LZIP[\x00\x01]",
    "lz4": rb"\x04\x22\x4d\x18",
    "compress": rb"\x1f[\x9d\xa0]",
    "7z": rb"7z\xbc\xaf\x27\x1c",
    "rar": rb"Rar!\x1a\x07",
    "cab": rb"MSCF\0{4}",
    "xar": rb"xar!\0",
    "ar": rb"!<arch>\n",
    "cpio": rb"07070[12][0-9a-fA-F]{104}|070707[0-7]{70}",
    "rpm": rb"\xed\xab\xee\xdb",
}
PATTERNS = {form: re.compile(beginning, re.DOTALL) for form, beginning in BEGINNINGS.items()}


def form_of(beginning: bytes) -> str | None:
    """The kind of archive that begins with these bytes, of which 512 are enough; None for any other file."""
    known = next((form for form, pattern in PATTERNS.items() if pattern.match(beginning)), None)
    if known:
        return known
    return "tar" if is_tar_header(beginning) else None


def is_tar_header(block: bytes) -> bool:
    """Whether the checksum of the block is right; no other file's is."""
    digits = block[CHECKSUM].strip(b" \0")
    if len(block) != BEGINNING_BYTES or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[CHECKSUM]) + 8 * ord(" ")
