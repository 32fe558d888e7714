"""One service for all tests that only use it: starting one takes its processes some ten seconds of a core."""

from collections.abc import Iterator

import pytest

from tests.flow.service_process import Up, up


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`acmix up`, with jobs of other tests in it. A test may kill its processes, if it waits till they are back."""
    with up(tmp_path_factory.mktemp("data"), PLANNER_IDLE_SECONDS="inf") as running:
        yield running
