"""Data sets of users, as the API writes them: made, uploaded part by part, deleted. Reads are the Reader's."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, insert, select, update

from service.store import _quotas, _sources
from service.store.database import clock, writing
from service.store.errors import (
    DatasetInCheck,
    DatasetNotFound,
    LengthDiffers,
    OffsetDiffers,
    UploadNotTaken,
    UploadUnderWay,
)
from service.store.ids import new_id
from service.store.rows import Dataset, DatasetPart, Json, Upload, read
from service.store.scope import Scoped
from service.store.states import DATASET_ACTIONS
from service.store.tables import dataset_parts, datasets


def folder_of(dataset_id: str) -> str:
    """The key below which all files of a data set lie."""
    return f"datasets/{dataset_id}"


def samples_of(dataset_id: str) -> str:
    """The key of its contact sheet."""
    return f"{folder_of(dataset_id)}/samples.png"


def parts_of(dataset_id: str, upload: int | None = None) -> str:
    """The key below which the parts of its archive lie, those of one upload alone where its number is given."""
    return f"{folder_of(dataset_id)}/parts" + (f"/{upload:06d}" if upload is not None else "")


class Datasets(Scoped):
    """One upload at a time holds a data set, by a lease; its number fences what it writes.

    Parts are stored first and listed afterwards, all parts of a request at once: what is listed is whole.
    """

    def __init__(self, engine: Engine, *, lease_seconds: float = 60.0) -> None:
        self._writing = writing(engine)
        self._lease = timedelta(seconds=lease_seconds)

    def add(
        self,
        *,
        name: str,
        task: str,
        format_: str,
        options: Json,
        path: str | None = None,
        declared_sha256: str | None = None,
    ) -> Dataset:
        """A new one: empty, or to be checked at once where it lies below the data root at `path`."""
        counts = dict.fromkeys(("received_bytes", "upload_number", "claims", "failures", "losses"), 0)
        row = {
            "id": new_id("ds"),
            "tenant": self._owner,
            "name": name,
            "task": task,
            "format": format_,
            "options": options,
            "path": path,
            "declared_sha256": declared_sha256,
            "status": "empty" if path is None else "checking",
        }
        with self._writing.begin() as connection:
            inserted = insert(datasets).values(**row, **counts, created_at=clock(connection)).returning(*datasets.c)
            return read(Dataset, connection.execute(inserted).mappings().one())

    # An upload

    def begin_upload(self, dataset_id: str, start: int, total: int | None) -> Upload:
        """Take hold of a data set to bring what follows its first `start` bytes; `total` is the whole archive's.

        Raises:
            DatasetNotFound: there is none.
            UploadNotTaken, UploadUnderWay, OffsetDiffers, LengthDiffers: it does not go with how the data set stands.
            QuotaExceeded: its tenant may not store so much.
        """
        with self._writing.begin() as connection:
            found = self._lock(connection, dataset_id)
            now = clock(connection)
            if found.status not in DATASET_ACTIONS["upload"]:
                raise UploadNotTaken(found)
            if found.upload_expires_at is not None and found.upload_expires_at > now:
                raise UploadUnderWay(found)
            if start != found.received_bytes:
                raise OffsetDiffers(found, start)
            if total is not None and found.total_bytes not in {None, total}:
                raise LengthDiffers(found, total)
            _quotas.check_stored(connection, self._owner, (total or start) - start)
            number = found.upload_number + 1
            _change(connection, found, upload_number=number, upload_expires_at=now + self._lease)
            abandoned = found.upload_number if found.upload_expires_at is not None else None
            return Upload(dataset_id, number, start, total, abandoned)

    def renew_upload(self, upload: Upload) -> None:
        """Keep hold of it; DatasetNotFound, UploadUnderWay where it is another's by now."""
        with self._writing.begin() as connection:
            held = self._lock_held(connection, upload)
            _change(connection, held, upload_expires_at=clock(connection) + self._lease)

    def commit_upload(self, upload: Upload, parts: Sequence[DatasetPart], total: int) -> Dataset:
        """List what this upload brought, which is stored; with all of `total` there, the data set is to be checked.

        Raises:
            DatasetNotFound, UploadUnderWay: it is another's by now; nothing is listed.
            QuotaExceeded: others of its tenant have filled what it may store meanwhile.
        """
        rows = [
            {"dataset": upload.dataset, "start": part.start, "size_bytes": part.size_bytes, "key": part.key}
            for part in parts
        ]
        received = upload.start + sum(part.size_bytes for part in parts)
        assert received <= total, f"{received} bytes of {total}"
        with self._writing.begin() as connection:
            held = self._lock_held(connection, upload)
            _quotas.check_stored(connection, self._owner, received - upload.start)
            connection.execute(insert(dataset_parts).values(upload=upload.number), rows)
            return _change(
                connection,
                held,
                received_bytes=received,
                total_bytes=total,
                status="checking" if received == total else "uploading",
                upload_expires_at=None,
            )

    def abandon_upload(self, upload: Upload) -> bool:
        """Let go of a data set. Whether the files of this upload are nobody's: nothing will list them any more."""
        mine = and_(datasets.c.id == upload.dataset, datasets.c.upload_number == upload.number, self._mine(datasets))
        listed = select(dataset_parts.c.start).where(
            dataset_parts.c.dataset == upload.dataset, dataset_parts.c.upload == upload.number
        )
        with self._writing.begin() as connection:
            connection.execute(update(datasets).where(mine).values(upload_expires_at=None))
            return connection.execute(listed.limit(1)).first() is None

    # Its end

    def begin_delete(self, dataset_id: str) -> None:
        """Hide it from all but `delete`: its files can go, since no job and no upload can come to it any more.

        Raises:
            DatasetNotFound: there is none.
            DatasetInCheck: a housekeeper is at it, or will be.
            DatasetNeeded: a job that has not ended reads it.
        """
        with self._writing.begin() as connection:
            found = self._lock(connection, dataset_id, hidden_too=True)
            if found.status not in DATASET_ACTIONS["delete"]:
                raise DatasetInCheck(found)
            if found.deleted_at is None:
                _sources.check_unread(connection, dataset_id)
                _change(connection, found, deleted_at=clock(connection))

    def delete(self, dataset_id: str) -> None:
        """Remove the row of a hidden one, whose files are gone."""
        hidden = and_(datasets.c.id == dataset_id, datasets.c.deleted_at.is_not(None), self._mine(datasets))
        with self._writing.begin() as connection:
            connection.execute(delete(datasets).where(hidden))

    def _lock(self, connection: Connection, dataset_id: str, *, hidden_too: bool = False) -> Dataset:
        this = select(datasets).where(datasets.c.id == dataset_id, self._mine(datasets))
        this = this if hidden_too else this.where(datasets.c.deleted_at.is_(None))
        row = connection.execute(this.with_for_update()).mappings().one_or_none()
        if row is None:
            raise DatasetNotFound(dataset_id)
        return read(Dataset, row)

    def _lock_held(self, connection: Connection, upload: Upload) -> Dataset:
        """The fence: the data set while this very upload has hold of it, locked."""
        found = self._lock(connection, upload.dataset)
        if found.upload_number != upload.number or found.upload_expires_at is None:
            raise UploadUnderWay(found)
        return found


def _change(connection: Connection, found: Dataset, **values: Any) -> Dataset:
    """Change a locked row; returns it as it then is."""
    changed = update(datasets).where(datasets.c.id == found.id).values(**values).returning(*datasets.c)
    return read(Dataset, connection.execute(changed).mappings().one())
