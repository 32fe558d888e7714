"""Archives that strangers upload: unpacked by our own rules into an empty folder, or refused without a trace.

A zip, tar, tar.gz or tar.zst is known by its content, never by its name. Regular files and folders come out, under
names that mean the same everywhere; every other thing an archive can hold, and every sign that two programs might read
it differently, is an ArchiveRefused. Only decompression is left to others: zlib, and zstandard, which is fed one block
at a time. The headers of zip and tar are read here: tarfile's and zipfile's readers are lenient where these may not
be, hold all members in memory, and their `extractall` is not used at all.
"""

from acmix.archives.limits import Limits
from acmix.archives.unpacking import Unpacked, content_root, unpack
from acmix.errors import ArchiveRefused

__all__ = ["ArchiveRefused", "Limits", "Unpacked", "content_root", "unpack"]
