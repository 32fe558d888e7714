from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.ids import new_id
from tests.service.deployed import Deployed, deployed, spec


@pytest.fixture
def without_database(tmp_path: Path) -> Iterator[Deployed]:
    with deployed("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1/0", tmp_path) as api:
        yield api


def test_a_problem_has_every_field_of_the_contract(api: Deployed) -> None:
    response = api.http.get("/v1/jobs/job_absent", headers={"X-Request-Id": "call-9"})
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no job 'job_absent'",
        "instance": "/v1/jobs/job_absent",
        "code": "not_found",
        "request_id": "call-9",
        "errors": [],
    }


@pytest.mark.parametrize("path", ["/", "/v2/jobs", "/v1/jobs/", "/v1", "/docs", "/v1/jobs/x/y/z", "/%00", "/..%2f"])
def test_an_unknown_path_is_a_404(api: Deployed, path: str) -> None:
    response = api.http.get(path)
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


def test_a_method_that_a_path_does_not_take_names_those_that_it_does(api: Deployed) -> None:
    response = api.http.put("/v1/jobs")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, POST"


ABSURD = ["x", "1" * 5000, "job_", "job_" + "I" * 26, "job_" + "0" * 27, "%00", "%F0%9F%92%A9", "job_%0a", "-1", "null"]

ABSENT = "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"


@pytest.mark.parametrize("given", [*ABSURD, ABSENT, ABSENT.lower()])
def test_an_absent_or_absurd_id_is_a_404_on_every_path(api: Deployed, given: str) -> None:
    for part in ("", "/results", "/metrics", "/traces", "/traces.svg", "/events", "/logs", "/attempts", "/checkpoints"):
        assert api.http.get(f"/v1/jobs/{given}{part}").status_code == 404
    assert api.http.post(f"/v1/jobs/{given}/cancel").status_code == 404
    assert api.http.delete(f"/v1/jobs/{given}").status_code == 404
    assert api.http.get(f"/v1/checkpoints/{given}").status_code == 404
    assert api.http.get(f"/v1/checkpoints/{given}/content").status_code == 404


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/jobs?limit=0", "/query/limit"),
        ("/v1/jobs?limit=201", "/query/limit"),
        ("/v1/jobs?limit=ten", "/query/limit"),
        ("/v1/jobs?limit=" + "9" * 100, "/query/limit"),
        ("/v1/jobs?after=job_1", "/query/after"),
        ("/v1/jobs?status=done", "/query/status"),
        ("/v1/jobs?name=%00", "/query/name"),
        ("/v1/jobs?name=" + "x" * 201, "/query/name"),
        ("/v1/jobs?colour=green", "/query/colour"),
        ("/v1/jobs?metadata=x", "/query/metadata"),
        ("/v1/jobs?metadata[study]=%00", "/query/metadata[study]"),
        ("/v1/jobs?metadata[]=x", "/query/metadata[]"),
        ("/v1/queue?after=x", "/query/after"),
    ],
)
def test_a_query_parameter_that_will_not_do_is_pointed_at(api: Deployed, path: str, pointer: str) -> None:
    response = api.http.get(path)
    assert response.status_code == 422
    assert [fault["pointer"] for fault in response.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("metrics?max_points=1", "/query/max_points"),
        ("metrics?x_from=-1", "/query/x_from"),
        ("metrics?x_to=1e5", "/query/x_to"),
        ("metrics?x_to=" + "9" * 30, "/query/x_to"),
        ("metrics?names=%00", "/query/names/0"),
        ("traces?smooth=1", "/query/smooth"),
        ("traces.svg?style=pie", "/query/style"),
        ("events?after=-1", "/query/after"),
        ("events?limit=1001", "/query/limit"),
        ("logs?tail=0", "/query/tail"),
        ("logs?after=99999999999", "/query/after"),
    ],
)
def test_a_parameter_of_a_part_of_a_job_is_pointed_at(api: Deployed, query: str, pointer: str) -> None:
    api.enrol()
    response = api.http.get(f"/v1/jobs/{api.submit()['id']}/{query}")
    assert response.status_code == 422
    assert [fault["pointer"] for fault in response.json()["errors"]] == [pointer]


def test_without_a_database_every_path_says_503_and_when_to_come_back(without_database: Deployed) -> None:
    job = new_id("job")
    for path in ("/v1/jobs", f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", "/v1/workers", "/v1/catalog", "/v1/queue"):
        response = without_database.http.get(path)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "127.0.0.1" not in response.text


def test_without_a_database_a_spec_is_refused_for_now(without_database: Deployed) -> None:
    response = without_database.post({"backbone": {"name": "resnet26"}, "dataset": {"name": "digits"}})
    assert response.status_code == 503


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_only_reads_answers_reads_and_refuses_a_spec_for_now(api: Deployed) -> None:
    """As a standby does while another takes over."""
    api.enrol()
    engine = api.app.state.backend.engine
    with engine.begin() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    engine.dispose()
    assert api.post(spec()).status_code == 503
    assert api.get("/v1/jobs")["data"] == []
