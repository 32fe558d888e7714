"""Logs for machines: one JSON object a line, the ids of what it is about, and no secret in it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.logs import without_secrets
from service.settings import SettingInvalid, log_form
from service.store.reading import Reader
from tests.service.deployed import Deployed, deployed, spec
from tests.service.test_access import bearer, key_for

KEY = "acmix_aB3dE6gH_" + "k" * 43
BEGIN = """
import logging, sys, threading, warnings
from service import logs
logs.begin("api")
"""
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def printed(code: str, **environment: str) -> str:
    """What a process that has begun its log prints when it runs this."""
    command = [sys.executable, "-c", BEGIN + code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def records(code: str, **environment: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(code, LOG_FORMAT="json", **environment).splitlines()]


def test_a_record_has_time_level_logger_message_and_role() -> None:
    [said] = records("logging.getLogger('a.b').warning('%s of %s', 'two\\nlines', 'caf\\u00e9')")
    assert (said["level"], said["logger"], said["role"]) == ("warning", "a.b", "api")
    assert said["message"] == "two\nlines of café"
    assert said["time"].endswith("Z")
    assert len(said["time"]) == len("2026-11-29T05:00:00.000000Z")


def test_an_exception_is_a_field_also_one_that_nobody_caught() -> None:
    code = """
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("it failed")
        def fail():
            raise ValueError("in a thread")
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        warnings.warn("old")
        raise KeyError("at the end")
    """
    caught, in_thread, warned, uncaught = records("\n".join(line[8:] for line in code.splitlines()))
    assert caught["message"] == "it failed"
    assert (caught["exception"]["type"], caught["exception"]["message"]) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in caught["exception"]["trace"] or "line" in caught["exception"]["trace"]
    assert in_thread["exception"]["message"] == "in a thread"
    assert warned["logger"] == "py.warnings"
    assert (uncaught["level"], uncaught["exception"]["type"]) == ("critical", "KeyError")


def test_what_is_logged_within_is_about_the_same_and_no_longer() -> None:
    code = """
with logs.about(request_id="r-1", job=None):
    logs.add(tenant="lab")
    with logs.about(job="job_1", attempt=2):
        logging.info("within")
    logging.info("between")
logging.info("after")
"""
    within, between, after = records(code)
    names = ("request_id", "tenant", "job", "attempt")
    assert [within.get(name) for name in names] == ["r-1", "lab", "job_1", "2"]
    assert [between.get(name) for name in names] == ["r-1", "lab", None, None]
    assert [after.get(name) for name in names] == [None] * 4


def test_loggers_of_uvicorn_and_celery_speak_the_same() -> None:
    code = "import uvicorn, celery\nuvicorn.Config('x:y', log_config=None)\n"
    code += "[logging.getLogger(n).info('hello') for n in ('uvicorn.error', 'celery.worker', 'celery.task')]"
    assert [each["logger"] for each in records(code)] == ["uvicorn.error", "celery.worker", "celery.task"]


@pytest.mark.parametrize(("asked", "lines"), [("True", 1), ("False", 0)])
def test_requests_are_logged_by_uvicorn_unless_it_was_told_not_to(asked: str, lines: int) -> None:
    code = f"import uvicorn\nuvicorn.Config('x:y', access_log={asked})\nlogs.begin('api')\n"
    code += "access = logging.getLogger('uvicorn.access')\nif access.hasHandlers(): access.info('hello')"
    assert len(printed(code).splitlines()) == lines


@pytest.mark.parametrize(
    ("text", "kept", "hidden"),
    [
        (f"key {KEY} refused", "acmix_aB3dE6gH_***", "kkkk"),
        (f"Authorization: Bearer {KEY}", "acmix_aB3dE6gH_***", "kkkk"),
        ("authorization: bearer abcdefgh.ijkl-mnop", "bearer ***", "ijkl"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Basic ***", "dXNl"),
        ("postgresql://acmix:hunter2@db:5432/acmix", "postgresql://acmix:***@db:5432/acmix", "hunter2"),
        ("redis://:hunter2@redis:6379/0 is away", "redis://:***@redis:6379/0 is away", "hunter2"),
        ("secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_***", "MfKQ"),
    ],
)
def test_no_secret_is_in_a_line(text: str, kept: str, hidden: str) -> None:
    assert kept in without_secrets(text)
    assert hidden not in without_secrets(text)
    code = f"""
try:
    raise OSError({text!r})
except OSError:
    logging.exception("%s", {text!r})
"""
    for form in ("text", "json"):
        found = printed(code, LOG_FORMAT=form)
        assert kept in found
        assert hidden not in found


@pytest.mark.parametrize(
    "text", ["https://example.com/a:b@c", "at 12:30:01 it began", "acmix_seconds", "bearer of news"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_the_level_and_the_form_are_settings() -> None:
    assert records("logging.info('no')\nlogging.warning('yes')", LOG_LEVEL="warning")[0]["message"] == "yes"
    assert printed("logging.getLogger('a').info('hello')").rstrip().endswith(" INFO a hello")
    with pytest.raises(SettingInvalid, match="LOG_FORMAT='xml' will not do; text or json would"):
        log_form({"LOG_FORMAT": "xml"})
    with pytest.raises(SettingInvalid, match="LOG_LEVEL='loud' will not do"):
        log_form({"LOG_LEVEL": "loud"})


@on_sqlite
def test_a_job_knows_the_request_that_it_was_posted_by(api: Deployed, reader: Reader) -> None:
    api.enrol()
    job = api.post(spec(), **{"X-Request-Id": "call-7"}).json()
    assert reader.job(job["id"]).request_id == "call-7"
    assert "request_id" not in job
    other = api.post(spec()).json()
    assert str(reader.job(other["id"]).request_id).startswith("req_")


REQUESTS = """
import sys
from fastapi.testclient import TestClient
from service.app import app
with TestClient(app, client=("127.0.0.1", 5)) as http:
    headers = {"X-Request-Id": "call-9", "Authorization": sys.argv[1]}
    http.get("/v1/jobs/job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", headers=headers)
"""


def test_a_setting_that_will_not_do_is_told_in_the_form_of_the_log() -> None:
    command = [sys.executable, "-m", "worker", "train"]
    environment = {**os.environ, "LOG_FORMAT": "json", "LEASE_SECONDS": "soon"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    [said] = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert (said["role"], said["level"], said["exception"]["type"]) == ("worker", "critical", "SettingInvalid")
    assert "LEASE_SECONDS='soon' will not do" in said["exception"]["message"]


AWAY = """
from fastapi.testclient import TestClient
from service.app import app
with TestClient(app, client=("127.0.0.1", 5)) as http:
    assert http.get("/readyz").status_code == 503
"""


def test_no_password_of_what_is_away_is_in_the_log(tmp_path: Path) -> None:
    database, broker = "postgresql://acmix:hunter2@127.0.0.1:1/acmix", "redis://:hunter3@127.0.0.1:1/0"
    settings = {"DATABASE_URL": database, "BROKER_URL": broker, "ACMIX_DATA": str(tmp_path), "LOG_FORMAT": "json"}
    command = [sys.executable, "-c", AWAY]
    found = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True).stderr
    messages = [json.loads(line)["message"] for line in found.splitlines()]
    assert any(message.startswith("not ready: database: ") for message in messages)
    assert any(message.startswith("not ready: broker: ") for message in messages)
    assert "hunter" not in found


@on_sqlite
def test_a_request_is_one_line_with_its_route_its_tenant_and_not_its_key(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    settings = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "ACMIX_DATA": str(tmp_path)}
    with deployed(database_url, broker_url, tmp_path) as api:
        key = key_for(api, "jobs:read", tenant="lab")
    command = [sys.executable, "-c", REQUESTS, bearer(key)["Authorization"]]
    environment = {**os.environ, **settings, "LOG_FORMAT": "json"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    assert key not in found
    assert key.rpartition("_")[2] not in found
    said = [json.loads(line) for line in found.splitlines()]
    [line] = [each for each in said if each["logger"] == "service.requests"]
    assert 0 < line.pop("duration_ms") < 60_000
    assert {name: line[name] for name in line if name not in ("time", "message")} == {
        "level": "info",
        "logger": "service.requests",
        "role": "api",
        "request_id": "call-9",
        "tenant": "lab",
        "job": "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC",
        "method": "GET",
        "route": "/v1/jobs/{job_id}",
        "status": 404,
        "client": "127.0.0.1",
    }
