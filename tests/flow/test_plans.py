"""Plans through the front door: `acmix up`, its housekeeper, the library's figures."""

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from service.client import Client, RequestRefused
from tests.flow.service_process import Up, kill, wait_for

SPEC: dict[str, Any] = {
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.125}},
    "swaps": [{"layers": "layer4.*"}],
    "training": {"batch_size": 4},
}
SIZES = {"num_classes": 10, "image_px": 16}


@pytest.fixture(scope="module")
def client(service: Up) -> Iterator[Client]:
    with Client(str(service.http.base_url)) as client:
        planned(client)
        yield client


def planned(client: Client, **changes: Any) -> dict[str, Any]:
    """A plan, however long the housekeeper takes to warm up."""

    def ask() -> dict[str, Any] | None:
        try:
            return client.plan({**SPEC, **changes}, **SIZES)
        except RequestRefused as refused:
            if refused.status != 503:
                raise
            return None

    found = wait_for(ask, within_seconds=240)
    assert found is not None
    return found


def test_a_plan_says_what_the_swaps_cost_and_is_there_at_once_the_next_time(client: Client) -> None:
    jobs = list(client.jobs())
    first = planned(client)
    began = time.monotonic()
    assert client.plan(SPEC, **SIZES) == first
    assert time.monotonic() - began < 1
    swapped = [layer for layer in first["layers"] if layer["mixer"]]
    assert [layer["layer"] for layer in swapped] == ["layer4.0.conv2"]
    assert first["totals"]["before"]["params"] > first["totals"]["after"]["params"]
    assert first["resolved_spec"]["swaps"][0]["mixer"]["options"]["heads"] == 4
    assert list(client.jobs()) == jobs


def test_its_memory_follows_the_batch(client: Client) -> None:
    peaks = [planned(client, training={"batch_size": size})["totals"]["after"]["peak_memory_bytes"] for size in (4, 64)]
    assert peaks[1] > 2 * peaks[0]


def test_geometry_that_cannot_be_is_refused_with_what_would_do(client: Client) -> None:
    with pytest.raises(RequestRefused) as caught:
        client.plan({**SPEC, "training": {"batch_size": 1}}, num_classes=10, image_px=8)
    [fault] = caught.value.problem["errors"]
    assert (caught.value.status, fault["pointer"], fault["fixes"]) == (422, "/training/batch_size", [2])


def test_a_killed_child_and_a_killed_housekeeper_are_started_again(service: Up, client: Client) -> None:
    kill(process(service, "--serve"))
    planned(client, training={"batch_size": 5})
    kill(process(service, "housekeeping"))
    planned(client, training={"batch_size": 6})


def process(service: Up, word: str) -> psutil.Process:
    below = psutil.Process(service.process.pid).children(recursive=True)
    return next(each for each in below if word in each.cmdline())
