"""`acmix backup` and `acmix restore`: all that the service knows, to a folder and back. They work on the stores."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from service import settings
from service.store.backend import Backend, open_backend
from service.store.backup import Backup, back_up, restore
from service.store.errors import ArtifactsAway, ArtifactsFull, BackupRefused

Folder = Annotated[Path, typer.Argument(help="where the back-up lies")]
Data = Annotated[Path, typer.Option(help="the folder that `acmix up` has; not read where the URLs are set")]
MISSING_SHOWN = 10


def backup(
    folder: Folder,
    data: Data = Path("data"),
    files: Annotated[bool, typer.Option(help="without them, rows alone: for a store that keeps its own")] = True,
) -> None:
    """Write every row and every file that a row names into a folder, as of one moment; the service may go on.

    Data sets that lie below DATA_ROOT are not the service's own and stay where they are.
    """
    made = _worked(data, lambda backend: back_up(backend.engine, backend.artifacts, folder, files=files))
    print(f"{made.rows} rows and {made.files} files of {made.size_bytes} bytes are in {folder}")
    if made.missing:
        named = f"{len(made.missing)} of the keys that rows name: {', '.join(made.missing[:MISSING_SHOWN])}"
        print(f"acmix: the store has nothing for {named}", file=sys.stderr)


def restore_(folder: Folder, data: Data = Path("data")) -> None:
    """Put a back-up into an empty database and its files into the store. No process of the service may run meanwhile.

    The database may be of another kind than the one that was backed up: this is how a laptop's jobs move to a rack.
    """
    put = _worked(data, lambda backend: restore(backend.engine, backend.artifacts, folder))
    print(f"{put.rows} rows and {put.files} files of {put.size_bytes} bytes were restored from {folder}")


def _worked(data: Path, work: Callable[[Backend], Backup]) -> Backup:
    """On the deployment that the environment names, or the folder; what can be mended is told in a sentence."""
    backend = None
    try:
        backend = open_backend(settings.load_for(data))
        return work(backend)
    except DBAPIError as error:
        sentence = f"the database cannot be worked with: {error.orig}"
    except (BackupRefused, ArtifactsFull, settings.SettingInvalid) as error:
        sentence = str(error)
    except (OSError, ArtifactsAway) as error:
        sentence = f"the files cannot be worked with: {error}"
    finally:
        if backend:
            backend.close()
    print(f"acmix: {sentence}", file=sys.stderr)
    raise typer.Exit(1)
