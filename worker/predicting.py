"""Predictions, made by a child that reads a checkpoint's file and the image that came; both lie on this machine."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from acmix.errors import CheckpointIncompatible, WeightsMissing
from service.store.artifacts import MODEL
from service.store.backend import Backend
from service.store.errors import ArtifactNotFound, CheckpointNotFound
from service.store.rows import Asked, Checkpoint
from worker.answering import RENEW_SECONDS, Answerer

PREDICTION_SECONDS = 60.0
IDLE_SECONDS = 300.0  # a child with its models takes a gigabyte
MODELS_KEPT = 4
BESIDE = "at-"  # of folders with what one request needs, beside the models
STALE_SECONDS = 3600.0  # then a folder is one that a killed housekeeper left


class Predictor(Answerer):
    command = "predict"
    what = "predicts"

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.predictions, seconds=PREDICTION_SECONDS, idle_seconds=IDLE_SECONDS)
        self.predictions = backend.predictions
        self.reader = backend.reader
        self.artifacts = backend.artifacts
        self.folder = backend.settings.data_folder / "predictions"

    @contextmanager
    def told(self, asked: Asked) -> Iterator[Any]:
        """Files by their paths, in a folder that is there until the child has answered.

        Raises:
            WeightsMissing, CheckpointIncompatible: the checkpoint was removed, or is not as it was stored.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear_stale()
        with TemporaryDirectory(prefix=BESIDE, dir=self.folder, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            image = folder / "image"
            image.write_bytes(self.predictions.image(asked) or b"")  # of a row that went meanwhile nothing is kept
            yield {
                "checkpoint": str(self._model(asked, folder)),
                "image": str(image),
                "min_score": asked.request["min_score"],
                "drawn": str(folder / "drawn.png") if asked.request["drawn"] else None,
            }

    def keep(self, asked: Asked, answer: dict[str, Any], told: Any, library: str) -> None:
        """Store an answer with its picture. That an image cannot be read is one too; faults of ours are tried again."""
        error = answer.get("error")
        if error and error["blame"] == "platform":
            self.predictions.fail(asked, error["message"])
            return
        drawn = Path(told["drawn"]).read_bytes() if told and told["drawn"] and not error else None
        self.predictions.answer(asked, answer, library=library, drawn=drawn)

    def _model(self, asked: Asked, folder: Path) -> Path:
        """The checkpoint's file, fetched by way of the folder if it is not there, as one of the last of use."""
        checkpoint_id = asked.request["checkpoint"]
        try:
            stored = self.reader.checkpoint(checkpoint_id)
            file = self.folder / f"{stored.sha256}.safetensors"
            if not file.exists():
                self._fetch(asked, stored, folder / MODEL).rename(file)
        except (CheckpointNotFound, ArtifactNotFound):
            raise WeightsMissing(f"{checkpoint_id} was removed before it was read") from None
        os.utime(file)
        for old in sorted(self.folder.glob("*.safetensors"), key=_last_use)[:-MODELS_KEPT]:
            old.unlink(missing_ok=True)
        return file

    def _fetch(self, asked: Asked, stored: Checkpoint, file: Path) -> Path:
        """The file, whole and as it was stored; the claim is renewed meanwhile."""
        digest, renewed_at = hashlib.sha256(), time.monotonic()
        with file.open("xb") as target:
            for chunk in self.artifacts.stream(f"{stored.key}/{MODEL}"):
                target.write(chunk)
                digest.update(chunk)
                if time.monotonic() > renewed_at + RENEW_SECONDS:
                    renewed_at = time.monotonic()
                    self.renew(asked)
        if digest.hexdigest() != stored.sha256:
            raise CheckpointIncompatible(f"{stored.id} is not as it was stored: its sha256 differs")
        return file

    def _clear_stale(self) -> None:
        for folder in self.folder.glob(f"{BESIDE}*"):
            with suppress(FileNotFoundError):
                if _last_use(folder) < time.time() - STALE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _last_use(path: Path) -> float:
    return path.stat().st_mtime
