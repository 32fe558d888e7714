"""A job's few verbs: plan, submit, watch, cancel, pause, resume and retry."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cli import plan_table
from service.cli.progress import follow, show_result
from service.cli.verbs import DEFAULT_URL, Url, client_of, json_of, sentences
from service.client import ServiceError


def submit(
    spec: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a JSON file: the body of POST /v1/jobs")],
    url: Url = DEFAULT_URL,
    watch: Annotated[bool, typer.Option(help="stay and show its progress")] = False,
) -> None:
    """Post a job; prints its id."""
    with sentences():
        client = client_of(url)
        job = client.submit(json_of(spec))
        print(job["id"])
        if watch:
            follow(Console(stderr=True), client, job["id"])


def plan(
    spec: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="a JSON file: the body of POST /v1/jobs or /v1/plans")
    ],
    num_classes: Annotated[int | None, typer.Option(help="in place of what the data set gives")] = None,
    image_px: Annotated[int | None, typer.Option(help="in place of what the data set gives")] = None,
    json_: Annotated[bool, typer.Option("--json", help="the figures as JSON")] = False,
) -> None:
    """What a job would take, layer by layer, before anything is trained. Made on this machine, without a service."""
    with sentences():
        planned = _planned(spec, num_classes=num_classes, image_px=image_px)
        print(json.dumps(planned, indent=1)) if json_ else plan_table.show(Console(), planned)


def watch(job: str, url: Url = DEFAULT_URL) -> None:
    """Show a job's progress until it ends, then its result."""
    with sentences():
        client, console = client_of(url), Console()
        follow(console, client, job)
        show_result(console, client, job)


def cancel(job: str, url: Url = DEFAULT_URL) -> None:
    """End a job; what it has stored stays."""
    with sentences():
        print(client_of(url).cancel(job)["status"])


def pause(job: str, url: Url = DEFAULT_URL) -> None:
    """Have a job give its device back until it is resumed."""
    with sentences():
        paused = client_of(url).pause(job)
        print("pausing" if paused["requested"] == "pause" else paused["status"])


def resume(job: str, url: Url = DEFAULT_URL) -> None:
    """Queue a paused job again; it goes on where it was."""
    with sentences():
        print(client_of(url).resume(job)["status"])


def retry(job: str, url: Url = DEFAULT_URL) -> None:
    """Do an ended job again, from its start; prints the new one's id."""
    with sentences():
        print(client_of(url).retry(job)["id"])


def _planned(spec: Path, **assumed: int | None) -> dict[str, Any]:
    """The plan of a spec, asked of the library in a process of its own: torch is never loaded in this one."""
    command = [sys.executable, "-m", "acmix", "plan", str(spec)]
    for name, value in assumed.items():
        command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ServiceError(
            f"no plan could be made; the library, which acmix-service[train] installs, said: {last}"
        ) from None
    if "problems" in answer:
        raise ServiceError("\n".join(f"{fault['pointer'] or spec}: {fault['message']}" for fault in answer["problems"]))
    planned: dict[str, Any] = answer["plan"]
    return planned
