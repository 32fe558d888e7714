"""Bodies that never end: each is given up, and what waited for it goes on."""

import socket
from urllib.parse import urlsplit

import pytest

from service import body
from tests.service.deployed import Deployed, served

ABSENT = "01J9ZK6Q5W8Y3T4V7XB2D0M1NC"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v1/jobs", "application/json"),
        ("/v1/plans", "application/json"),
        ("/v1/datasets", "application/json"),
        ("/v1/weights", "application/octet-stream"),
        (f"/v1/checkpoints/ckpt_{ABSENT}/predict", "image/png"),
    ],
)
def test_a_body_that_stands_still_is_given_up(
    api: Deployed, path: str, media_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SILENT_SECONDS", 0.1)
    with served(api.app) as url, socket.create_connection(_address(url), timeout=20) as connection:
        lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media_type}", "Content-Length: 1000")
        connection.sendall("\r\n".join([*lines, "", "{"]).encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port
