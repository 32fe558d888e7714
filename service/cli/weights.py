"""`acmix weights` and `acmix convert`: files that jobs can start from."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli.verbs import DEFAULT_URL, Url, client_of, sentences

weights_verbs = typer.Typer(no_args_is_help=True, help="Files that jobs can start from.")


def convert(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what the authors' scripts saved")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="the safetensors file to write")],
    backbone: Annotated[str | None, typer.Option(help="what it must hold, such as resnet50 or swin_tiny")] = None,
) -> None:
    """Make a checkpoint of the paper's authors, a ResNet or a Swin, a file that `weights upload` takes."""
    command = [sys.executable, "-m", "acmix", "convert", str(source), str(target)]
    command += ["--backbone", backbone] if backbone else []
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@weights_verbs.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a safetensors file")],
    url: Url = DEFAULT_URL,
    name: Annotated[str, typer.Option(help="what to call it")] = "",
) -> None:
    """Upload weights; prints the id that a spec's `backbone.weights` takes."""
    with sentences():
        print(client_of(url).upload_weights(file, name=name or file.name[:200])["id"])


@weights_verbs.command(name="list")
def list_weights(url: Url = DEFAULT_URL) -> None:
    """Uploaded weights, newest first, a line each: id, numbers, name."""
    with sentences():
        for each in client_of(url).weights():
            print(each["id"], each["params"], each["name"], sep="\t")


@weights_verbs.command()
def delete(weights: str, url: Url = DEFAULT_URL) -> None:
    """Delete uploaded weights; refused while a job that has not ended starts from them."""
    with sentences():
        client_of(url).delete_weights(weights)
