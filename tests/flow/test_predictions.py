"""Predictions through the front door: a trained checkpoint, a digit that was scanned, the housekeeper's child."""

import io
from pathlib import Path

import psutil
import pytest
from PIL import Image

from acmix.datasets.digits import Digits
from acmix.prediction.predictor import Predictor
from service.client import Client, RequestRefused
from tests.flow.service_process import Up, kill, small_job, wait_for


def _children(service: Up) -> list[psutil.Process]:
    below = psutil.Process(service.process.pid).children(recursive=True)
    return [process for process in below if process.cmdline()[1:5] == ["-m", "acmix", "predict", "--serve"]]


def _image(file: Path, index: int) -> Path:
    image_3HW, _ = Digits(file.parent).split("test")[index]
    Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).resize((80, 80)).save(file)
    return file


def test_a_checkpoint_names_what_is_in_an_image_as_its_file_does_by_hand(service: Up, tmp_path: Path) -> None:
    job = service.ended(service.submit(small_job()))
    checkpoint = job["best"]["checkpoint"]
    first, second = (_image(tmp_path / f"{number}.png", number) for number in (0, 1))
    with Client(str(service.http.base_url)) as client:
        (tmp_path / "best.safetensors").write_bytes(client.checkpoint_content(checkpoint))
        by_hand = Predictor(tmp_path / "best.safetensors").predict(first).said
        said = client.predict(checkpoint, first)
        assert said == {"checkpoint": checkpoint, **by_hand}
        with Image.open(io.BytesIO(client.predict_drawn(checkpoint, first))) as drawn:
            assert (drawn.format, drawn.size) == ("PNG", (512, 512))

        [child] = _children(service)
        kill(child)
        assert client.predict(checkpoint, second)["task"] == "classification"
        wait_for(lambda: [each.pid for each in _children(service)] != [child.pid])

        (tmp_path / "text").write_text("no image")
        with pytest.raises(RequestRefused, match="cannot be read as an image"):
            client.predict(checkpoint, tmp_path / "text")
        assert service.http.delete(f"/v1/jobs/{job['id']}").status_code == 204
        with pytest.raises(RequestRefused, match="there is no checkpoint"):
            client.predict(checkpoint, first)
