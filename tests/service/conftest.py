"""The HTTP API over the databases and the broker of all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.deployed import Deployed, deployed


@pytest.fixture
def api(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Deployed]:
    """The HTTP API over all of them, before any worker has come."""
    with deployed(database_url, broker_url, tmp_path / "data") as api:
        yield api
