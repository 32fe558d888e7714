"""Checks of data sets: what was uploaded, or lies below the data root, handed to a child that looks into it."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from acmix.data_root import folder_below
from acmix.errors import AcmixError, DatasetMissing, OptionInvalid, Reason
from service.store import database
from service.store.backend import Backend
from service.store.datasets import folder_of, parts_of, samples_of
from service.store.errors import ArtifactNotFound, ArtifactsAway, DatasetNotFound
from service.store.rows import Dataset
from worker import vitals
from worker.archives import check_room, fetch
from worker.inspection_child import INSPECT, Found, InspectionChild, InspectionFailed, Ready, Rejected
from worker.rounds import Rounds

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # a message may be lost
TICK_SECONDS = 0.1
MOST_SECONDS = 6 * 3600.0  # the child limits itself; this is for one that hangs
RENEWALS_A_LEASE = 12
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
# The database or the files do not answer now: nothing is known of the data set, which is checked once they do.
AWAY = (*database.AWAY, ArtifactsAway)


class ClaimLost(Exception):
    """The check is another housekeeper's: the child is to be killed and nothing to be written."""


class Interrupted(Exception):
    """This housekeeper ends before the check has."""


class Inspector(Rounds):
    """Claims data sets and has them checked, one after the other, in a thread of its own."""

    def __init__(self, backend: Backend, command: Sequence[str] = INSPECT) -> None:
        super().__init__("inspections")
        self.settings = backend.settings
        self.reader = backend.reader
        self.datasets = backend.datasets
        self.checks = backend.checks
        self.artifacts = backend.artifacts
        self.command = command
        self.folder = backend.settings.data_folder / "inspections"
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def look(self) -> None:
        """Remove what is left of others, then check what there is to check."""
        self._remove_left()
        while not self._draining.is_set() and (check := self.checks.claim()):
            _Check(self, check, self._draining).see_through()
            self._remove_left()

    def _loop(self) -> None:
        while not self._draining.is_set():
            try:
                self.look()
                self._pause_seconds = FIRST_PAUSE_SECONDS
            except (DBAPIError, *AWAY) as error:
                log.warning("the database or the files do not answer: %s", error)
                self._draining.wait(self._pause_seconds)
                self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            except Exception:  # whatever ailed one round, other data sets are waited for
                log.exception("a round of inspections failed")
            self._wait(LOOK_SECONDS)

    def _remove_left(self) -> None:
        """What deletions cut short, rejections and killed housekeepers of this machine left."""
        for dataset_id in self.checks.deleted():
            self.artifacts.delete_prefix(folder_of(dataset_id))
            self.datasets.delete(dataset_id)
        for dataset_id in self.checks.rejected_with_parts():
            self.artifacts.delete_prefix(parts_of(dataset_id))
            self.checks.forget_parts(dataset_id)
        for folder in self.folder.glob("ds_*-*"):
            if not self._is_at_work(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_at_work(self, folder: Path) -> bool:
        """Whether somebody's claim, which is not over, is on a folder: another housekeeper may share the disk."""
        dataset_id, claims = folder.name.split("-")
        try:
            found = self.reader.dataset(dataset_id)
        except DatasetNotFound:
            return False
        return (found.status, found.claims) == ("checking", int(claims)) and found.lease_expires_at is not None


class _Check:
    """One claim, from the archive to the verdict."""

    def __init__(self, inspector: Inspector, check: Dataset, draining: threading.Event) -> None:
        self.inspector = inspector
        self.check = check
        self.draining = draining
        self.folder = inspector.folder / f"{check.id}-{check.claims}"
        self._renew_every = inspector.settings.lease_seconds / RENEWALS_A_LEASE
        self._renew_from = 0.0
        self._progress: dict[str, Any] | None = None

    def see_through(self) -> None:
        """When this returns, the row has the verdict, or the claim is over, or given back."""
        checks, check = self.inspector.checks, self.check
        log.info("%s: check %s begins", check.id, check.claims)
        try:
            self.folder.mkdir(parents=True)
            with vitals.timed(vitals.CHECK):
                found = self._found()
                self._settle(found)
            vitals.CHECKS.labels(found.status).inc()
        except ClaimLost:
            vitals.CHECKS.labels("lost").inc()
            log.warning("%s: check %s was given to another; it ends here", check.id, check.claims)
        except Interrupted:
            self._patiently(lambda: checks.release(check))
        except AWAY:
            self._patiently(lambda: checks.release(check))
            raise
        except Exception as error:
            reason = _reason(error)
            vitals.CHECKS.labels("failed").inc()
            log.warning("%s: check %s failed: %s", check.id, check.claims, reason.message, exc_info=error)
            self._patiently(lambda: checks.fail(check, reason))
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> Ready | Rejected:
        """What there is to say of the data set."""
        try:
            arguments = self._archive() if self.check.path is None else self._lying_there(self.check.path)
        except (OptionInvalid, DatasetMissing) as error:
            return _rejected(self.check, error)
        found = self._inspected([*arguments, *self._declared()])
        if not isinstance(found, Ready | Rejected):
            raise InspectionFailed(f"the process that inspects data sets said {found.status!r} of it")
        return found

    def _archive(self) -> list[str]:
        """Its parts as one file; half of the room is for what comes out of it."""
        parts = self.inspector.reader.dataset_parts(self.check.id)
        size_bytes = sum(part.size_bytes for part in parts)
        check_room(self.folder, 2 * size_bytes)
        target = self.folder / "archive"

        def told(done: int) -> None:
            self._go_on({"phase": "fetching", "done": done, "of": size_bytes})

        fetch(self.inspector.artifacts, parts, target, told)
        return ["--archive", str(target)]

    def _lying_there(self, path: str) -> list[str]:
        return ["--folder", str(folder_below(self.inspector.settings.data_root, path, option="path"))]

    def _declared(self) -> list[str]:
        check = self.check
        declared = ["--into", str(self.folder), "--task", check.task, "--format", check.format]
        declared += ["--options", json.dumps(check.options)]
        return [*declared, *(["--sha256", check.declared_sha256] if check.declared_sha256 else [])]

    def _inspected(self, arguments: Sequence[str]) -> Found:
        child = InspectionChild(self.inspector.command, arguments)
        give_up_at = time.monotonic() + MOST_SECONDS
        try:
            while not child.has_ended(TICK_SECONDS):
                if time.monotonic() > give_up_at:
                    raise InspectionFailed(f"the process that inspects data sets took longer than {MOST_SECONDS:g} s")
                self._go_on(child.progress)
            return child.found()
        finally:
            child.close()

    def _settle(self, found: Ready | Rejected) -> None:
        """Files first, the row last; of a rejected one the row first: without it the files are still needed."""
        inspector, report = self.inspector, found.model_dump(mode="json")
        if isinstance(found, Ready):
            with (self.folder / "samples.png").open("rb") as file:
                inspector.artifacts.put_file(samples_of(self.check.id), file)
            self._patiently(lambda: inspector.checks.ready(self.check, report))
        else:
            self._patiently(lambda: inspector.checks.reject(self.check, report))

    def _go_on(self, progress: dict[str, Any] | None) -> None:
        """Renew the claim when it is due; Interrupted or ClaimLost where the check must not go on."""
        self._progress = progress or self._progress
        if self.draining.is_set():
            raise Interrupted
        if time.monotonic() < self._renew_from:
            return
        self._renew_from = time.monotonic() + self._renew_every
        try:
            if not self.inspector.checks.renew(self.check, self._progress):
                raise ClaimLost
        except database.AWAY as error:
            log.warning("%s: the claim could not be renewed: %s", self.check.id, error)

    def _patiently(self, write: Callable[[], bool]) -> None:
        """Write the end of a check, again every second while the database is away; a drain leaves it to the lease."""
        while True:
            try:
                if not write():
                    log.warning("%s: check %s was given to another", self.check.id, self.check.claims)
            except database.AWAY as error:
                log.warning("%s: tried again in a second: %s", self.check.id, error)
                if self.draining.wait(1):
                    return
            else:
                return


def _rejected(check: Dataset, error: AcmixError) -> Rejected:
    """Of a folder that is not there, or not to be read."""
    fault = {"file": check.path, "code": error.code, "message": error.message}
    report = {"faults": [fault], "faults_total": 1, "expected": "a folder below the data root", "found": None}
    return Rejected.model_validate({"status": "rejected", **report})


def _reason(error: Exception) -> Reason:
    if isinstance(error, AcmixError):
        return error.reason()
    if isinstance(error, ArtifactNotFound):
        return Reason("archive_missing", f"a part of the uploaded archive is gone: {error}", retryable=True)
    return Reason("internal", f"the check failed: {type(error).__name__}: {error}"[:1000], retryable=True)
