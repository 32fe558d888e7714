from pathlib import Path
from shutil import rmtree

import pytest

from tests.service.deployed import Deployed, deployed


def missing(api: Deployed) -> list[str]:
    """What /readyz names."""
    response = api.http.get("/readyz")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    return [fault["pointer"] for fault in response.json()["errors"]]


def test_a_process_that_is_up_is_healthy(api: Deployed) -> None:
    assert api.get("/healthz") == {"status": "ok"}


def test_a_service_with_a_worker_is_ready(api: Deployed) -> None:
    api.enrol()
    assert api.get("/readyz") == {"status": "ready"}


def test_without_a_catalog_it_is_not_ready(api: Deployed) -> None:
    assert missing(api) == ["/catalog"]


def test_without_a_broker_it_is_not_ready(database_url: str, tmp_path: Path) -> None:
    with deployed(database_url, "redis://127.0.0.1:1/0", tmp_path) as api:
        api.enrol()
        assert missing(api) == ["/broker"]


def test_without_its_files_it_is_not_ready(api: Deployed) -> None:
    api.enrol()
    rmtree(api.settings.data_folder / "artifacts")
    assert missing(api) == ["/artifacts"]


def test_without_a_database_it_is_healthy_and_not_ready(broker_url: str, tmp_path: Path) -> None:
    with deployed("postgresql://user:secret@127.0.0.1:1/none", broker_url, tmp_path) as api:
        assert api.http.get("/healthz").status_code == 200
        assert missing(api) == ["/database", "/catalog"]
        assert "secret" not in api.http.get("/readyz").text


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_quickly(api: Deployed, path: str) -> None:
    assert api.http.get(path).elapsed.total_seconds() < 2.5
