import logging
import subprocess
import sys
from pathlib import Path

import pytest

from service import settings
from service.app import create_app
from service.store.database import is_current
from tests.service.deployed import PLAN, Deployed, deployed


def test_the_service_never_loads_torch() -> None:
    code = "import sys, service.app, service.client, service.figures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_app_reads_no_settings() -> None:
    code = "import service.app"
    subprocess.run([sys.executable, "-c", code], check=True, env={"DATABASE_URL": "nonsense://", "PYTHONPATH": "."})


def test_the_app_for_uvicorn_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    code = "import service.app; assert service.app.app is service.app.app; print(service.app.app.title)"
    command = [sys.executable, "-c", code]
    environment = {"ACMIX_DATA": str(tmp_path), "PYTHONPATH": "."}
    assert subprocess.check_output(command, env=environment, text=True) == "ACmix service\n"


def test_the_tables_are_there_when_the_app_has_started(
    empty_database_url: str, broker_url: str, tmp_path: Path
) -> None:
    with deployed(empty_database_url, broker_url, tmp_path) as api:
        assert is_current(api.app.state.backend.engine)


def test_an_answer_carries_the_request_id_that_came(api: Deployed) -> None:
    assert api.http.get("/healthz", headers={"X-Request-Id": "call-7"}).headers["X-Request-Id"] == "call-7"


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, 'quo"te'])
def test_a_request_id_that_could_not_be_logged_is_replaced(api: Deployed, given: str) -> None:
    answered = api.http.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert answered.startswith("req_")


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/jobs", "/openapi.json"])
def test_every_answer_carries_the_security_headers(api: Deployed, path: str) -> None:
    headers = api.http.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'self'"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("path", ["/v1/catalog", "/v1/workers", "/v1/jobs/job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
def test_a_parameter_where_none_is_taken_is_refused(api: Deployed, path: str) -> None:
    response = api.http.get(path, params={"limt": 3})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert (fault["pointer"], fault["code"]) == ("/query/limt", "unknown_parameter")
    assert api.http.get("/healthz", params={"limt": 3}).status_code == 200


def test_an_unexpected_error_is_logged_under_the_request_id_and_told_without_a_trace(
    api: Deployed, caplog: pytest.LogCaptureFixture
) -> None:
    @api.app.get("/broken")
    def broken() -> None:
        raise RuntimeError("password=hunter2")

    with caplog.at_level(logging.ERROR):
        response = api.http.get("/broken", headers={"X-Request-Id": "call-8"})
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "hunter2" not in response.text
    assert "call-8" in caplog.text
    assert "hunter2" in caplog.text


def test_the_openapi_document_describes_every_path_of_the_api(api: Deployed) -> None:
    document = api.get("/openapi.json")
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert ("/v1/jobs", "post") in described
    assert ("/v1/checkpoints/{checkpoint_id}/content", "head") in described
    assert ("/v1/plans", "post") in described
    assert ("/v1/checkpoints/{checkpoint_id}/predict", "post") in described
    assert ("/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry", "post") in described
    assert ("/v1/workers/{worker_id}/drain", "post") in described
    assert len(described) == 48


def test_the_openapi_document_describes_the_spec_and_the_problems(api: Deployed) -> None:
    document = api.get("/openapi.json")
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    kinds = [{"$ref": f"#/components/schemas/{name}"} for name in ("JobSpec", "EvaluateSpec")]
    assert body["schema"] == {"anyOf": kinds}
    schemas = document["components"]["schemas"]
    assert schemas["JobSpec"]["required"] == ["backbone", "dataset"]
    assert schemas["EvaluateSpec"]["required"] == ["kind", "checkpoint"]
    assert "checkpoint" not in schemas["JobSpec"]["properties"]
    assert "pointer" in schemas["ProblemFault"]["properties"]
    assert "HTTPValidationError" not in schemas


def test_every_reference_of_the_openapi_document_leads_somewhere(api: Deployed) -> None:
    text = api.http.get("/openapi.json").text
    schemas = api.get("/openapi.json")["components"]["schemas"]
    references = {part.partition('"')[0] for part in text.split('"$ref":"#/components/schemas/')[1:]}
    assert references <= set(schemas)


def test_the_examples_of_the_document_are_jobs_that_are_taken(api: Deployed) -> None:
    api.enrol()
    body = api.get("/openapi.json")["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert api.post(body["examples"]["a training"]["value"]).status_code == 201
    [fault] = api.post(body["examples"]["an evaluation"]["value"]).json()["errors"]
    assert (fault["pointer"], fault["code"]) == ("/checkpoint", "unknown_id")  # all else of it is right


def test_the_examples_of_a_plan_are_requests_that_are_taken(api: Deployed) -> None:
    api.enrol()
    body = api.get("/openapi.json")["paths"]["/v1/plans"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/PlanRequest"}
    assert api.get("/openapi.json")["components"]["schemas"]["PlanRequest"]["required"] == ["backbone"]
    with api.housekeeper(lambda _: {"plan": PLAN}):
        for example in body["examples"].values():
            assert api.plan(example["value"]).status_code == 200


def test_an_app_starts_while_its_database_is_away(tmp_path: Path) -> None:
    given = settings.load({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "ACMIX_DATA": str(tmp_path)})
    assert create_app(given).title == "ACmix service"
