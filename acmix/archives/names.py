"""Names of members: the same file on every system, or none.

A name is checked as it is written and in its compatibility form (NFKC), in which a full-width solidus is a slash and a
two-dot leader is the parent folder. It is kept as it is written, for annotations refer to files by their names.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from acmix.archives.limits import Limits
from acmix.errors import ArchiveRefused

SHOWN_CHARACTERS = 80
DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$|clock\$)", re.IGNORECASE)
ARCHIVE_SUFFIX = re.compile(
    r".*\.(7z|ace|apk|arj?|br|bz2|cab|cpio|deb|dmg|egg|gz|iso|jar|lha|lz[4hmo]?|lzma|rar|rpm|tar|taz|tbz2?|tgz|tlz|txz"
    r"|tzst|war|whl|xar|xz|z|zipx?|zstd?)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Name:
    """A checked name; the archive's own root has no parts."""

    parts: tuple[str, ...]
    of_folder: bool  # it ends in a slash

    def __str__(self) -> str:
        return shown("/".join(self.parts) or ".")

    @property
    def is_noise(self) -> bool:
        """Whether macOS put it there for itself."""
        return bool(self.parts) and (
            self.parts[0] == "__MACOSX" or self.parts[-1] == ".DS_Store" or self.parts[-1].startswith("._")
        )

    @property
    def is_archive(self) -> bool:
        """Whether it is called like an archive."""
        return ARCHIVE_SUFFIX.fullmatch(self.parts[-1]) is not None


def check(raw: bytes, limits: Limits) -> Name:
    """The name that these bytes of an archive spell; ArchiveRefused says what is wrong with it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ArchiveRefused(f"the name {shown(raw)} is not UTF-8; rename the file and pack it again") from None
    while text.startswith("./"):
        text = text[2:]
    if text in {"", "."}:
        return _root(raw)
    parts = tuple(text.removesuffix("/").split("/"))
    fault = _fault_of_whole(text, parts, limits) or next(filter(None, (_fault(part, limits) for part in parts)), None)
    if fault:
        raise ArchiveRefused(f"the name {shown(raw)} {fault}; rename it and pack again")
    return Name(parts, text.endswith("/"))


def folded(parts: tuple[str, ...]) -> str:
    """The same for names that some system takes for one."""
    path = "/".join(parts)
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def shown(name: bytes | str) -> str:
    """A name for a sentence: in quotes, on one line, what does not print escaped, the middle of a long one left out."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[: SHOWN_CHARACTERS // 2]}...{text[-SHOWN_CHARACTERS // 2 :]}"
    escaped = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return f"'{''.join(escaped)}'"


def _root(raw: bytes) -> Name:
    if not raw:
        raise ArchiveRefused("a member of the archive has no name; pack it again")
    return Name((), of_folder=True)


def _fault_of_whole(text: str, parts: tuple[str, ...], limits: Limits) -> str | None:
    if text.startswith("/"):
        return "is an absolute path; names are relative to the archive"
    if len(text.encode()) > limits.path_bytes:
        return f"is longer than {limits.path_bytes} bytes"
    if len(parts) > limits.depth:
        return f"lies more than {limits.depth} folders deep"
    return None


@lru_cache(maxsize=10_000)  # the folders' names come again with every file
def _fault(part: str, limits: Limits) -> str | None:
    """What is wrong with one part of a name, as the end of a sentence."""
    forms = [part] if part.isascii() else [part, unicodedata.normalize("NFKC", part)]
    for form in forms:
        for is_wrong, fault in FAULTS:
            if is_wrong(form):
                return fault
        if len(form.encode()) > limits.part_bytes:
            return f"has a part longer than {limits.part_bytes} bytes"
    return None


def _does_not_print(part: str) -> bool:
    """Control and format characters, private and unassigned ones, separators of lines."""
    kinds = {unicodedata.category(each) for each in part}
    return any(kind[0] == "C" or kind in {"Zl", "Zp"} for kind in kinds)


FAULTS: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda part: part in {"", ".", ".."} or "/" in part, "has a part that is empty, '.' or '..'"),
    (lambda part: "\\" in part, "has a backslash"),
    (DRIVE.match, "has a drive letter"),
    (_does_not_print, "has a character that does not print"),
    (lambda part: part[-1] in ". ", "has a part that ends in a dot or a space"),
    (lambda part: DEVICE.fullmatch(part.partition(".")[0].rstrip(" ")), "is reserved for a device on some systems"),
)
