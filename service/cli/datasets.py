"""`acmix datasets`: the user's own data."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from acmix.formats import FORMATS
from service.cli.verbs import DEFAULT_URL, Url, client_of, json_object, sentences
from service.client import ServiceError

dataset_verbs = typer.Typer(no_args_is_help=True, help="Your own data.")


@dataset_verbs.command()
def create(
    name: Annotated[str, typer.Argument(help="what to call it")],
    task: Annotated[str, typer.Option(help=", ".join(FORMATS))],
    format_: Annotated[str, typer.Option("--format", help=", ".join(each for own in FORMATS.values() for each in own))],
    url: Url = DEFAULT_URL,
    options: Annotated[str, typer.Option(help="a JSON object: what the format takes beside the files")] = "{}",
    sha256: Annotated[str | None, typer.Option(help="of the archive to come; another one is rejected")] = None,
    path: Annotated[
        str | None, typer.Option(help="a folder below the service's data root, instead of an upload")
    ] = None,
) -> None:
    """Declare a data set; prints its id, which `datasets upload` takes."""
    with sentences(), client_of(url) as client:
        given = {"options": json_object(options, "--options"), "sha256": sha256, "path": path}
        print(client.create_dataset(name, task=task, format_=format_, **given)["id"])


@dataset_verbs.command(name="upload")
def upload_dataset(
    dataset: Annotated[str, typer.Argument(help="its id")],
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a zip, tar, tar.gz or tar.zst")],
    url: Url = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option(help="stay until it has been checked; exit status 1 if it is rejected")
    ] = False,
) -> None:
    """Upload the archive, part by part: the same command again goes on where it was cut off. Prints the status."""
    console = Console(stderr=True)
    with sentences(), client_of(url) as client:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            line = bar.add_task("uploading", total=archive.stat().st_size)
            found = client.upload_dataset(
                dataset, archive, on_progress=lambda done, _of: bar.update(line, completed=done)
            )
        if watch:
            with console.status("waiting for the check") as status:
                found = client.wait_dataset(dataset, lambda stand: status.update(_check_stand(stand)))
        print(found["status"])
        if found["status"] == "rejected":
            raise ServiceError(_why_rejected(found))


@dataset_verbs.command(name="list")
def list_datasets(url: Url = DEFAULT_URL) -> None:
    """Data sets, newest first, a line each: id, status, task, format, name."""
    with sentences(), client_of(url) as client:
        for each in client.datasets():
            print(*(each[field] for field in ("id", "status", "task", "format", "name")), sep="\t")


@dataset_verbs.command()
def show(dataset: str, url: Url = DEFAULT_URL) -> None:
    """All that is known of a data set, as JSON."""
    with sentences(), client_of(url) as client:
        print(json.dumps(client.dataset(dataset), indent=1))


@dataset_verbs.command(name="delete")
def delete_dataset(dataset: str, url: Url = DEFAULT_URL) -> None:
    """Delete a data set; refused while it is being checked, or a job that has not ended reads it."""
    with sentences(), client_of(url) as client:
        client.delete_dataset(dataset)


def _check_stand(dataset: dict[str, Any]) -> str:
    progress = dataset["progress"]
    if not progress:
        return "waiting for the check"
    return f"{progress['phase']}: {progress['done']}" + (f" of {progress['of']}" if progress["of"] else "")


def _why_rejected(dataset: dict[str, Any]) -> str:
    """A line a fault; the service's own reason where it could not check it."""
    if dataset["status_reason"]:
        return str(dataset["status_reason"]["message"])
    faults, total = dataset["faults"] or [], dataset["faults_total"] or 0
    lines = [f"{fault['file']}: {fault['message']}" if fault["file"] else fault["message"] for fault in faults]
    more = [f"and {total - len(lines)} more"] if total > len(lines) else []
    return "\n".join([f"{total} faults" if total != 1 else "1 fault", *lines, *more])
