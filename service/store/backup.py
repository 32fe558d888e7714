"""Back-up and restore: every row, and every file that a row names, as of one moment, while the service goes on.

Rows are read in one transaction that sees a single moment. It begins once all files named so far have been copied;
where it names further ones, it is let go and these are copied first. A file is never changed under its key, so that one
copied earlier is that of the moment too.

A back-up is a folder: `backup.json`, written last, `tables/`, and `artifacts/` by the keys of the store.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, select, text

from service.store import _dump
from service.store.artifacts import Artifacts
from service.store.database import clock, is_known, migrate, revision_of, writing
from service.store.datasets import samples_of
from service.store.errors import ArtifactNotFound, BackupRefused
from service.store.tables import checkpoints, dataset_parts, datasets, weights

FORMAT = 1
LIST = "backup.json"
MOMENTS = 20  # how often a new one is tried where files come and go more quickly than they can be copied


@dataclass(frozen=True)
class Backup:
    """What a back-up holds. `missing` are keys that rows name and under which the store has nothing."""

    rows: int
    files: int
    size_bytes: int
    missing: list[str]


def back_up(engine: Engine, artifacts: Artifacts, folder: Path, *, files: bool = True) -> Backup:
    """Write a back-up into a folder, which is made; one that broke off there goes on with the files that it has.

    Args:
        files: False leaves them out, for a store that keeps its own former versions.

    Raises:
        BackupRefused: a whole back-up is there already, or files come and go too quickly to be copied.
    """
    if (folder / LIST).exists():
        raise BackupRefused(f"{folder} holds a back-up already; choose another folder")
    for part in (folder, folder / "tables"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)  # hashes of keys, and secrets of webhooks, are among it
    copy = _Copy(artifacts, Artifacts((folder / "artifacts").resolve().as_uri()))
    with _settled(engine, copy, with_files=files) as connection:
        tables = {table.name: _dump.dump(connection, table, _file_of(folder, table.name)) for table in _dump.tables()}
        said = {
            "format": FORMAT,
            "revision": revision_of(connection),
            "taken_at": clock(connection).isoformat(),
            "with_files": files,
            "files": copy.files,
            "size_bytes": copy.size_bytes,
            "missing": sorted(copy.missing),
            "tables": tables,
        }
    (folder / LIST).write_text(json.dumps(said, indent=1))
    return _backup(said)


def restore(engine: Engine, artifacts: Artifacts, folder: Path) -> Backup:
    """Put a back-up into a database without a row, and its files into the store; then bring the tables up to date.

    Files come first and all rows in one transaction: broken off, it can be done again. No process of the service may
    run meanwhile.

    Raises:
        BackupRefused: the back-up is none, is damaged or newer than this version; the database is not empty.
    """
    said = _read(folder)
    for name, expected in said["tables"].items():
        _dump.check(_file_of(folder, name), expected)
    _check_empty(engine, folder)
    if said["with_files"]:
        source = Artifacts((folder / "artifacts").resolve().as_uri())
        copy = _Copy(source, artifacts)
        for key in source.all_below():
            copy.file(key)
    migrate(engine, said["revision"])
    with writing(engine).begin() as connection:
        _without_timeouts(connection)
        for name in said["tables"]:
            _dump.load(connection, name, _file_of(folder, name))
    migrate(engine)
    return _backup(said)


class _Copy:
    """Files from one store to another; those that are there already, at their length, are left as they are."""

    def __init__(self, source: Artifacts, target: Artifacts) -> None:
        self._source = source
        self._target = target
        self._copied: dict[str, int] = {}  # bytes by file
        self._found: set[str] = set()
        self.missing: set[str] = set()

    @property
    def files(self) -> int:
        return len(self._copied)

    @property
    def size_bytes(self) -> int:
        return sum(self._copied.values())

    def lacks(self, named: set[str]) -> set[str]:
        """Those of the keys that have not been looked for, or only once and in vain."""
        return named - self._found - self.missing

    def take(self, keys: set[str], sought_in_vain: set[str]) -> set[str]:
        """Copy what lies at or below each key; those under which nothing does.

        That may have been removed a moment ago, its row before it: only what is still named by then is missing.
        """
        in_vain = {key for key in sorted(keys) if not self._copy(key)}
        self._found |= keys - in_vain
        self.missing |= in_vain & sought_in_vain
        return in_vain

    def keep(self, named: set[str]) -> None:
        """Let go of what was copied and is named no more."""
        for key in self._found - named:
            self._target.delete_prefix(key)
            self._copied = {file: size for file, size in self._copied.items() if not _is_of(file, key)}
        self.missing &= named

    def file(self, key: str) -> bool:
        """Copy one file, if it is there."""
        try:
            size_bytes = self._source.head(key)
            if self._size_there(key) != size_bytes:
                self._target.put_stream(key, self._source.stream(key))
        except ArtifactNotFound:
            return False
        self._copied[key] = size_bytes
        return True

    def _copy(self, key: str) -> bool:
        found = [self.file(each) for each in self._source.all_below(key) or [key]]
        return any(found)

    def _size_there(self, key: str) -> int | None:
        try:
            return self._target.head(key)
        except ArtifactNotFound:
            return None


@contextmanager
def _settled(engine: Engine, copy: _Copy, *, with_files: bool) -> Iterator[Connection]:
    """A moment of the database all of whose files are copied."""
    in_vain: set[str] = set()
    for _ in range(MOMENTS):
        with _moment(engine) as connection:
            named = _named(connection) if with_files else set()
            lacking = copy.lacks(named)
            if not lacking:
                copy.keep(named)
                yield connection
                return
        in_vain = copy.take(lacking, in_vain)
    raise BackupRefused(f"files come and go more quickly than they can be copied; {MOMENTS} moments were tried")


@contextmanager
def _moment(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees what was committed when it began, and nothing of what is committed later."""
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        _without_timeouts(connection)
        yield connection


def _without_timeouts(connection: Connection) -> None:
    """A table may be long."""
    if connection.dialect.name == "postgresql":
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"SET LOCAL {name} = 0"))


def _named(connection: Connection) -> set[str]:
    """The keys, of files or of folders, that rows name."""
    keys = select(checkpoints.c.key).union_all(select(weights.c.key), select(dataset_parts.c.key))
    ready = select(datasets.c.id).where(datasets.c.status == "ready", datasets.c.deleted_at.is_(None))
    samples = (samples_of(each) for each in connection.execute(ready).scalars())
    return {*connection.execute(keys).scalars(), *samples}


def _read(folder: Path) -> dict[str, Any]:
    """What a back-up says of itself; BackupRefused where it is none that this version can restore."""
    try:
        said: dict[str, Any] = json.loads((folder / LIST).read_text())
        form, made_at = said["format"], said["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupRefused(f"{folder} is no whole back-up: it has no {LIST} that can be read") from None
    if form != FORMAT or not is_known(made_at):
        raise BackupRefused(f"{folder} was made by another version, of tables {made_at}; restore it with that one")
    return said


def _check_empty(engine: Engine, folder: Path) -> None:
    """BackupRefused if the database has a row: what a restore would do to it nobody can have meant."""
    there = inspect(engine).get_table_names()
    with engine.connect() as connection:
        for table in _dump.tables():
            if table.name in there and not _dump.is_empty(connection, table.name):
                raise BackupRefused(
                    f"the database has rows, in {table.name} for one; {folder} is restored into one without any"
                )


def _is_of(file: str, key: str) -> bool:
    return file == key or file.startswith(f"{key}/")


def _file_of(folder: Path, table: str) -> Path:
    return folder / "tables" / f"{table}.jsonl.gz"


def _backup(said: dict[str, Any]) -> Backup:
    rows = sum(table["rows"] for table in said["tables"].values())
    return Backup(rows, said["files"], said["size_bytes"], said["missing"])
