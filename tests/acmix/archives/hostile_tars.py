"""Tars that are refused: bytes, and what the refusal says."""

from tests.acmix.archives.hostile_names import NAMES
from tests.acmix.archives.tars import BLOCK_BYTES, GNU, OLD, header, long_name, member, padded, pax, record, tar

Cases = dict[str, tuple[bytes, str]]
MOST_HEADER_NAME = 100
LINK = b"../outside"

NAMES_IN_HEADERS: Cases = {
    f"name: {what}": (tar(member(name, b"")), says)
    for what, (name, says) in NAMES.items()
    if len(name) <= MOST_HEADER_NAME
}
NAMES_IN_PAX: Cases = {
    f"pax path: {what}": (tar(pax({b"path": name}) + member(b"fine.txt")), says) for what, (name, says) in NAMES.items()
}
NAMES_IN_GNU: Cases = {
    f"long name: {what}": (tar(long_name(name) + member(b"fine.txt", magic=GNU)), says)
    for what, (name, says) in NAMES.items()
}

KINDS: Cases = {
    "symbolic link out": (tar(header(b"a", kind=b"2", link=LINK)), "is a symbolic link"),
    "symbolic link out and a file through it": (
        tar(header(b"a", kind=b"2", link=LINK), member(b"a/evil.txt")),
        "is a symbolic link",
    ),
    "file, then a link in its place": (tar(member(b"a"), header(b"a", kind=b"2", link=LINK)), "is a symbolic link"),
    "symbolic link, absolute": (tar(header(b"a", kind=b"2", link=b"/etc/passwd")), "is a symbolic link"),
    "symbolic link inside": (tar(member(b"b"), header(b"a", kind=b"2", link=b"b")), "is a symbolic link"),
    "symbolic link called like macOS's own": (tar(header(b"._a", kind=b"2", link=LINK)), "is a symbolic link"),
    "symbolic link by pax": (tar(pax({b"linkpath": LINK}) + header(b"a", kind=b"2")), "pax header 'linkpath'"),
    "link path on a file": (tar(pax({b"linkpath": LINK}) + member(b"a")), "pax header 'linkpath'"),
    "hard link out": (tar(header(b"a", kind=b"1", link=LINK + b"/planted.txt")), "is a hard link"),
    "hard link inside": (tar(member(b"b"), header(b"a", kind=b"1", link=b"b")), "is a hard link"),
    "hard link with content": (tar(member(b"a", b"evil", kind=b"1", link=LINK + b"/planted.txt")), "is a hard link"),
    "character device": (tar(header(b"a", kind=b"3")), "is a character device"),
    "block device": (tar(header(b"a", kind=b"4")), "is a block device"),
    "named pipe": (tar(header(b"a", kind=b"6")), "is a named pipe"),
    "contiguous file": (tar(member(b"a", kind=b"7")), "is a contiguous file"),
    "incremental folder": (tar(member(b"a/", kind=b"D", magic=GNU)), "incremental backup"),
    "long link name": (tar(member(b"././@LongLink", LINK, kind=b"K", magic=GNU)), "link with a long name"),
    "several volumes": (tar(member(b"a", kind=b"M", magic=GNU)), "spans several archives"),
    "old long name": (tar(member(b"a", b"Rename a to ../b\n", kind=b"N", magic=GNU)), "in an old form"),
    "sparse": (tar(member(b"a", kind=b"S", magic=GNU)), "is a sparse file"),
    "volume label": (tar(header(b"a", kind=b"V", magic=GNU)), "volume's label"),
    "Solaris header": (tar(member(b"a", kind=b"X")), "Solaris"),
    "kind Z": (tar(member(b"a", kind=b"Z")), "unknown kind"),
    "kind 0xff": (tar(member(b"a", kind=b"\xff")), "unknown kind"),
    "folder with content": (tar(member(b"a/", b"x", kind=b"5")), "folder with content"),
    "folder without a slash with content": (tar(member(b"a", b"x", kind=b"5")), "folder with content"),
    "file called like a folder with content": (tar(member(b"a/", b"x")), "folder with content"),
    "the root with content": (tar(member(b"./", b"x")), "folder with content"),
}

HEADERS: Cases = {
    "wrong checksum": (tar(member(b"b"), member(b"a", checksum=b"000001\0 ")), "is damaged"),
    "no checksum": (tar(member(b"b"), member(b"a", checksum=b" " * 8)), "is damaged"),
    "another magic": (tar(member(b"a", magic=b"ustar\x0099")), "no known form"),
    "size is no number": (tar(header(b"a", size_field=b"00000000009\0")), "the size"),
    "size is negative": (tar(header(b"a", size_field=b"\xff" * 12)), "the size"),
    "size of a gap": (tar(header(b"a", size_field=b"0000 000001\0")), "the size"),
    "size of petabytes": (tar(header(b"a", size_field=b"\x80" + bytes(3) + b"\xff" * 8)), "larger than"),
    "size beyond the end": (tar(header(b"a", size=10**6)), "cut off"),
    "a name that goes on": (tar(member(b"a\0/../evil")), "after a zero byte"),
    "a prefix that leads out": (tar(member(b"evil.txt", prefix=b"../..")), "'.' or '..'"),
    "a prefix from the root": (tar(member(b"evil.txt", prefix=b"/tmp")), "absolute path"),
    "a prefix that goes on": (tar(member(b"evil.txt", prefix=b"a\0b")), "after a zero byte"),
}

PAX: Cases = {
    "another size": (tar(pax({b"size": b"600"}) + member(b"a"), member(b"b")), "has two sizes"),
    "a size of nothing": (tar(pax({b"size": b"0"}) + member(b"a", member(b"../evil"))), "has two sizes"),
    "a negative size": (tar(pax({b"size": b"-5"}) + member(b"a")), "gives the size"),
    "an endless size": (tar(pax({b"size": b"9" * 40}) + member(b"a")), "gives the size"),
    "two paths": (tar(pax(record(b"path", b"a") + record(b"path", b"../b")) + member(b"c")), "gives 'path' twice"),
    "two headers": (tar(pax({b"path": b"a"}) + pax({b"path": b"../b"}) + member(b"c")), "two headers"),
    "pax and long name": (tar(pax({b"path": b"a"}) + long_name(b"b") + member(b"c")), "two headers"),
    "two long names": (tar(long_name(b"a") + long_name(b"../b") + member(b"c", magic=GNU)), "two headers"),
    "a path for all": (tar(pax({b"path": b"../a"}, kind=b"g") + member(b"c")), "one path"),
    "a size for all": (tar(pax({b"size": b"5"}, kind=b"g") + member(b"c")), "one size"),
    "a link path for all": (tar(pax({b"linkpath": b"a"}, kind=b"g") + member(b"c")), "pax header 'linkpath'"),
    "sparse 0.0": (tar(pax({b"GNU.sparse.size": b"9"}) + member(b"c")), "sparse"),
    "sparse 0.1": (tar(pax({b"GNU.sparse.map": b"0,1"}) + member(b"c")), "sparse"),
    "sparse 1.0": (tar(pax({b"GNU.sparse.major": b"1", b"GNU.sparse.name": b"../x"}) + member(b"c")), "sparse"),
    "unknown keyword": (tar(pax({b"target": b"x"}) + member(b"c")), "pax header 'target'"),
    "names in another charset": (tar(pax({b"hdrcharset": b"KOI8-R"}) + member(b"c")), "names are in"),
    "no length": (tar(pax(b"path=a\n") + member(b"c")), "pax header of the archive is damaged"),
    "length of zero": (tar(pax(b"0 path=a\n") + member(b"c")), "pax header of the archive is damaged"),
    "length too small": (tar(pax(b"3 path=a\n") + member(b"c")), "pax header of the archive is damaged"),
    "length too large": (tar(pax(b"99 path=a\n") + member(b"c")), "pax header of the archive is damaged"),
    "negative length": (tar(pax(b"-9 path=a\n") + member(b"c")), "pax header of the archive is damaged"),
    "no line's end": (tar(pax(b"9 path=ab") + member(b"c")), "pax header of the archive is damaged"),
    "no equals sign": (tar(pax(b"9 path ab\n"[:8] + b"\n") + member(b"c")), "pax header of the archive is damaged"),
    "a megabyte and more": (tar(pax({b"SCHILY.xattr.user.x": bytes(2**20)}) + member(b"c")), "a header of"),
    "a long name of a megabyte and more": (tar(long_name(b"x" * 2**20) + member(b"c", magic=GNU)), "a header of"),
    "a header of petabytes": (tar(header(b"p", kind=b"x", size_field=b"\x80" + bytes(3) + b"\xff" * 8)), "a header of"),
    "a pax header for nothing": (tar(member(b"a"), pax({b"path": b"b"})), "belongs to no file"),
    "a long name for nothing": (tar(member(b"a"), long_name(b"b")), "belongs to no file"),
    "a long name with two ends": (tar(long_name(b"a\0../b") + member(b"c", magic=GNU)), "after a zero byte"),
}

ENDS: Cases = {
    "no end": (tar(member(b"a"), end=b""), "cut off"),
    "half an end": (tar(member(b"a"), end=bytes(BLOCK_BYTES)), "cut off"),
    "cut in a header": (tar(member(b"a"), header(b"b")[:300], end=b""), "cut off"),
    "cut in a content": (tar(member(b"a", bytes(5000))[:3000], end=b""), "cut off"),
    "cut in a content's filling": (tar(member(b"a")[:-1], end=b""), "cut off"),
    "cut in a pax header": (tar(pax({b"path": b"b"})[:520], end=b""), "cut off"),
    "one empty block and more": (tar(member(b"a"), bytes(BLOCK_BYTES), member(b"../b")), "after the mark|goes on"),
    "another tar after it": (tar(member(b"a")) + tar(member(b"../b")), "goes on after the mark"),
    "something after it": (tar(member(b"a")) + b"x", "goes on after the mark"),
    "a zip after it": (tar(member(b"a")) + b"PK\5\6" + bytes(18), "goes on after the mark"),
    "endless zeros after it": (tar(member(b"a")) + bytes(2**20 + BLOCK_BYTES), "goes on after the mark"),
    "nothing in it": (tar(header(b"a/", kind=b"5")), "holds no file"),
    "nothing but the root": (tar(header(b"./", kind=b"5")), "holds no file"),
    "nothing but macOS's own": (tar(member(b"__MACOSX/a"), member(b"b/.DS_Store"), member(b"._c")), "holds no file"),
}

TWICE: Cases = {
    "twice": (tar(member(b"a"), member(b"a", b"evil")), "is there twice"),
    "twice in other case": (tar(member(b"photo.jpg"), member(b"PHOTO.jpg")), "is there twice"),
    "twice by sharp s": (tar(member("straße".encode()), member(b"STRASSE")), "is there twice"),
    "twice by composition": (tar(member("é.txt".encode()), member("e\u0301.txt".encode())), "is there twice"),
    "twice by ligature": (tar(member("ﬁsh".encode()), member(b"fish")), "is there twice"),
    "twice by width": (tar(member("ａ".encode()), member(b"a")), "is there twice"),
    "twice by a leading dot": (tar(member(b"a"), member(b"./a")), "is there twice"),
    "a folder in other case": (tar(member(b"train/a"), member(b"Train/b")), "is there twice"),
    "a folder in other case, deep": (tar(member(b"a/b/c/d"), member(b"a/B/c/e")), "is there twice"),
    "a folder of its own in other case": (tar(header(b"A/", kind=b"5"), header(b"a/", kind=b"5")), "is there twice"),
    "a file, then a folder": (tar(member(b"a"), member(b"a/b")), "both a file and a folder"),
    "a file, then a folder of its own": (tar(member(b"a"), header(b"a/", kind=b"5")), "both a file and a folder"),
    "a folder, then a file": (tar(member(b"a/b"), member(b"a")), "both a file and a folder"),
    "an empty folder, then a file": (tar(header(b"a/", kind=b"5"), member(b"A")), "both a file and a folder"),
}

OLD_FORMS: Cases = {
    "old tar's link": (tar(header(b"a", kind=b"1", magic=OLD, link=b"b")), "is a hard link"),
    "GNU's sparse with a map": (tar(member(b"a", padded(b"0000"), kind=b"S", magic=GNU)), "is a sparse file"),
}

TARS: Cases = NAMES_IN_HEADERS | NAMES_IN_PAX | NAMES_IN_GNU | KINDS | HEADERS | PAX | ENDS | TWICE | OLD_FORMS
