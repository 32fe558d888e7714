"""`acmix predict` and `acmix download`: what a job has stored, put to use."""

import json
from pathlib import Path
from typing import Annotated

import typer

from service.cli.verbs import DEFAULT_URL, Url, client_of, sentences


def predict(
    checkpoint: Annotated[str, typer.Argument(help="the id of a checkpoint, ckpt_...")],
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a JPEG, PNG, WebP, BMP or TIFF file")],
    url: Url = DEFAULT_URL,
    min_score: Annotated[float, typer.Option(help="of detection: objects of a lower score are left out")] = 0.5,
    drawn: Annotated[Path | None, typer.Option(dir_okay=False, help="draw it on the image, into this PNG")] = None,
) -> None:
    """What a checkpoint names in an image, as JSON; or drawn on it."""
    with sentences():
        client = client_of(url)
        if drawn:
            drawn.write_bytes(client.predict_drawn(checkpoint, image, min_score=min_score))
        else:
            print(json.dumps(client.predict(checkpoint, image, min_score=min_score), indent=1))


def download(
    checkpoint: Annotated[str, typer.Argument(help="the id of a checkpoint, ckpt_...")],
    target: Annotated[Path | None, typer.Argument(dir_okay=False, help="the file to write")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a checkpoint's weights to a safetensors file, CHECKPOINT.safetensors if none is named."""
    with sentences():
        file = target or Path(f"{checkpoint}.safetensors")
        found = client_of(url).download_checkpoint(checkpoint, file)
        print(file, found["size_bytes"], found["sha256"], sep="\t")
