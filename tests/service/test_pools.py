"""Connections to PostgreSQL: no more than a process may have, kept alive, and what is answered when all are taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from service.store import database
from service.store.database import connect
from service.store.rows import Outcome
from tests.service.deployed import Deployed, deployed
from tests.service.work import claim, evaluation, metrics, save, trace

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def api(database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    """With one connection, which none waits for longer than a moment."""
    monkeypatch.setattr(database, "POOL_SECONDS", 0.2)
    with deployed(database_url, broker_url, tmp_path / "data", DATABASE_POOL="1") as api:
        yield api


def test_where_all_connections_are_taken_it_is_a_503_that_says_when_to_come_back(api: Deployed) -> None:
    with api.app.state.backend.engine.connect():
        for path in ("/v1/jobs", "/v1/usage", "/readyz"):
            answer = api.http.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert api.http.get("/v1/jobs").status_code == 200


def test_nothing_needs_a_second_connection_while_it_has_one(api: Deployed) -> None:
    """Or requests that have one each would wait for each other."""
    api.enrol()
    job = api.submit()
    row = claim(api.ledger).job
    api.ledger.record(row.id, 1, [metrics(1, 2), trace(2), evaluation(2, 0.5, best=True)])
    save(api.ledger, row, 2, 0.5, best=True)
    api.ledger.finish(row.id, 1, Outcome("succeeded"))
    for url in job["urls"].values():
        assert api.http.get(url).status_code in {200, 405}, url
    waiting = api.submit()
    assert api.get(f"/v1/jobs/{waiting['id']}")["status"] == "queued"
    for action in ("pause", "resume", "cancel", "retry"):
        assert api.http.post(f"/v1/jobs/{waiting['id']}/{action}").is_success, action
    assert api.get("/v1/jobs")["data"]
    assert api.http.delete(f"/v1/jobs/{row.id}").status_code == 204


def test_a_connection_survives_idle_hours_and_prepares_nothing(database_url: str) -> None:
    engine = connect(make_url(database_url).update_query_dict({"keepalives_idle": "7"}).render_as_string(False))
    with engine.connect() as connection:
        parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert (parameters["keepalives_idle"], parameters["keepalives_interval"]) == ("7", "10")
        for _ in range(20):
            connection.execute(text("SELECT 1"))
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    engine.dispose()


def test_what_a_url_sets_by_options_is_added_to_ours(database_url: str) -> None:
    options = {"options": "-c statement_timeout=5s -c work_mem=8MB"}
    engine = connect(make_url(database_url).update_query_dict(options).render_as_string(False))
    with engine.connect() as connection:
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("statement_timeout", "work_mem")]
        assert [*shown, connection.execute(text("SHOW lock_timeout")).scalar_one()] == ["5s", "8MB", "10s"]
    engine.dispose()
