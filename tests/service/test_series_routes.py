import csv
import io

import pytest

from tests.service.deployed import Deployed
from tests.service.work import claim, metrics, trace

LAYERS = ("layer3.0.conv2", "layer4.0.conv2")


@pytest.fixture
def url(api: Deployed) -> str:
    """Of a job that runs and has said how it does."""
    api.enrol()
    found: str = api.submit()["urls"]["self"]
    job = claim(api.ledger).job
    api.ledger.record(job.id, 1, [metrics(*range(1, 101)), metrics(50, 100, name="val/accuracy")])
    api.ledger.record(job.id, 1, [trace(step, LAYERS) for step in range(0, 101, 10)])
    return found


def test_metrics_are_curves_over_steps(api: Deployed, url: str) -> None:
    loss, accuracy = api.get(f"{url}/metrics")["series"]
    assert (loss["name"], loss["step"], loss["value"][1]) == ("train/loss", list(range(1, 101)), 0.5)
    assert (accuracy["name"], accuracy["step"]) == ("val/accuracy", [50, 100])


def test_metrics_are_chosen_by_name_and_range(api: Deployed, url: str) -> None:
    (loss,) = api.get(f"{url}/metrics?names=train/loss&x_from=10&x_to=12")["series"]
    assert loss["step"] == [10, 11, 12]
    both = api.get(f"{url}/metrics?names=train/loss,val/accuracy")["series"]
    assert len(both) == 2
    assert api.get(f"{url}/metrics?names=train/loss&names=val/accuracy")["series"] == both


def test_a_long_curve_is_thinned_out_and_keeps_its_ends(api: Deployed, url: str) -> None:
    loss, _ = api.get(f"{url}/metrics?max_points=10")["series"]
    assert len(loss["step"]) <= 10
    assert (loss["step"][0], loss["step"][-1]) == (1, 100)


def test_metrics_come_as_csv_where_that_is_asked_for(api: Deployed, url: str) -> None:
    response = api.http.get(f"{url}/metrics?names=val/accuracy", headers={"Accept": "text/csv"})
    assert response.headers["Content-Type"].startswith("text/csv")
    assert list(csv.reader(io.StringIO(response.text))) == [
        ["name", "step", "value"],
        ["val/accuracy", "50", "0.02"],
        ["val/accuracy", "100", "0.01"],
    ]


def test_traces_are_in_depth_order(api: Deployed, url: str) -> None:
    layers = api.get(f"{url}/traces")["layers"]
    assert [(layer["layer"], layer["depth"]) for layer in layers] == [(LAYERS[0], 0), (LAYERS[1], 1)]
    assert layers[0]["step"] == list(range(0, 101, 10))
    assert layers[1]["alpha"][:2] == [0.1, 10.1]


def test_traces_are_chosen_by_globs_and_range(api: Deployed, url: str) -> None:
    (layer,) = api.get(f"{url}/traces?layers=layer4.*&x_from=20&x_to=40")["layers"]
    assert (layer["layer"], layer["step"]) == ("layer4.0.conv2", [20, 30, 40])


def test_traces_come_as_csv_where_that_is_asked_for(api: Deployed, url: str) -> None:
    response = api.http.get(f"{url}/traces?x_to=0", headers={"Accept": "text/html;q=0.5, text/csv"})
    first, *rest = csv.reader(io.StringIO(response.text))
    assert first == ["layer", "depth", "step", "alpha", "beta", "attention_rms", "convolution_rms"]
    assert rest[1] == ["layer4.0.conv2", "1", "0", "0.1", "0.1", "0.1", "0.1"]


@pytest.mark.parametrize("style", ["depth", "trajectory"])
def test_traces_are_drawn_as_svg(api: Deployed, url: str, style: str) -> None:
    response = api.http.get(f"{url}/traces.svg?style={style}")
    assert response.headers["Content-Type"].startswith("image/svg+xml")
    assert "<svg" in response.text


def test_a_job_that_has_said_nothing_has_empty_curves(api: Deployed) -> None:
    api.enrol()
    url = api.submit()["urls"]["self"]
    assert api.get(f"{url}/metrics") == {"series": []}
    assert api.get(f"{url}/traces") == {"layers": []}
    assert "<svg" in api.http.get(f"{url}/traces.svg").text
