"""A reader of a job's events whose connection breaks now and then, and who goes on where it was."""

import json
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import httpx

from service.store.states import ENDED

MOST_EVENTS = 60  # between two breaks


@dataclass
class Reading:
    """What came of one: `cut` connections were broken off, `gaps` tells where a number did not follow on the last."""

    last: int = 0
    cut: int = 0
    ended: bool = False
    gaps: str = ""


def read(http_url: str, job_id: str, drawn: random.Random, over: threading.Event) -> Reading:
    """To the job's end, or until `over` is set."""
    reading = Reading()
    while not (reading.ended or reading.gaps or over.is_set()):
        with suppress(httpx.HTTPError):
            _connect(http_url, job_id, reading, drawn.randint(1, MOST_EVENTS))
        time.sleep(0.05)
    return reading


def _connect(http_url: str, job_id: str, reading: Reading, most: int) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(reading.last)}
    with httpx.stream("GET", f"{http_url}/v1/jobs/{job_id}/events", headers=headers, timeout=20) as answer:
        assert answer.status_code in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE), answer.read()
        if answer.status_code != httpx.codes.OK:
            time.sleep(0.2)
            return
        for line in answer.iter_lines():
            if line.startswith("data:"):
                _take(json.loads(line.removeprefix("data:")), reading)
                most -= 1
            if reading.ended or reading.gaps:
                return
            if not most:
                reading.cut += 1
                return


def _take(event: dict[str, object], reading: Reading) -> None:
    number = event["number"]
    if number != reading.last + 1:
        reading.gaps = f"{number} came after {reading.last}"
        return
    reading.last += 1
    data = event["data"]
    assert isinstance(data, dict)
    reading.ended = event["type"] == "status" and data["status"] in ENDED
