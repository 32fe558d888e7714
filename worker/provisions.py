"""What a run finds in its folder when it starts: its job's checkpoints, the weights it begins with, its data."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

from acmix import events, manifest
from acmix.errors import CheckpointIncompatible, WeightsMissing
from service.store.artifacts import MODEL
from service.store.backend import Backend
from service.store.errors import ArtifactNotFound, CheckpointNotFound, WeightsNotFound
from service.store.rows import Checkpoint, Job
from worker.data_cache import DataCache


class Provisions:
    """Laid down below `folder` for one attempt, whose lease the caller keeps meanwhile. Doing it again is fine."""

    def __init__(self, backend: Backend, job: Job, folder: Path, inspect_command: Sequence[str]) -> None:
        self.ledger = backend.ledger
        self.reader = backend.reader
        self.artifacts = backend.artifacts
        self.data_cache = DataCache(backend, inspect_command)
        self.job = job
        self.folder = folder

    def lay_checkpoints(self) -> None:
        """Lay down the job's checkpoints. The job goes back behind newest ones that cannot be read; an event says so.

        An older one that cannot be read is only left out: a run that misses its best then tests its last.
        """
        self._clear_former_attempts()
        self.folder.mkdir(parents=True)
        newest_first = self.reader.checkpoints(self.job.id)
        found = False
        for listed, before in zip_longest(newest_first, newest_first[1:]):
            fault = self._fetch(listed)
            if fault and found:
                told = events.warning("checkpoint_unreadable", f"step {listed.step}: {fault}; it is left out")
                self.ledger.record(self.job.id, self.job.attempt, [told])
            elif fault:
                why = f"step {listed.step}: {fault}; training goes on from step {before.step if before else 0}"
                for gone in self.ledger.rewind(self.job.id, self.job.attempt, before, why=why):
                    self.artifacts.delete_prefix(gone.key)
            found = found or not fault

    def lay_weights(self) -> Path | None:
        """The file that a fresh start begins with, laid down; None where it has none, or the job goes on.

        Raises:
            WeightsMissing: it is gone.
            CheckpointIncompatible: it is not as it was stored.
        """
        source = self.job.resolved_spec["backbone"].get("weights")
        goes_on = any(self.folder.glob("checkpoints/step-*"))
        if goes_on or source in {None, "timm"}:
            return None
        target = self.folder / MODEL
        try:
            stored = self.reader.source(source)
            self.artifacts.fetch_file(f"{stored.key}/{MODEL}", target)
            with target.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except (CheckpointNotFound, WeightsNotFound, ArtifactNotFound):
            raise WeightsMissing(f"{source}, which the job starts from, was removed before it began") from None
        if sha256 != stored.sha256:
            raise CheckpointIncompatible(f"{source}, which the job starts from, is not as stored: its sha256 differs")
        return target

    def hold_data(self, held: ExitStack, give_up: Callable[[], bool]) -> Path | None:
        """The folder of the user's data set that the job reads, there until `held` closes; None for any other.

        GivenUp where `give_up` says so before it is there.
        """
        dataset_id = self.job.resolved_spec["dataset"].get("id")
        return None if dataset_id is None else held.enter_context(self.data_cache.held(dataset_id, give_up))

    def checkpoint_folder(self, step: int) -> Path:
        """Where the run looks for the checkpoint of a step, and saves it."""
        return self.folder / "checkpoints" / f"step-{step:09d}"

    def _clear_former_attempts(self) -> None:
        """What killed workers left. A later attempt may be at work beside one that is only thought dead."""
        for folder in self.folder.parent.glob("attempt-*"):
            if int(folder.name.removeprefix("attempt-")) <= self.job.attempt:
                shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, checkpoint: Checkpoint) -> Exception | None:
        """Copy a checkpoint's files to where the run looks for them; what is wrong with them, if anything."""
        target = self.checkpoint_folder(checkpoint.step)
        try:
            self.artifacts.fetch_folder(checkpoint.key, target)
            manifest.check(target)
        except (CheckpointIncompatible, ArtifactNotFound) as fault:
            shutil.rmtree(target, ignore_errors=True)
            return fault
        return None
