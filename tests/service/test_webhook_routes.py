"""Webhooks over HTTP: made with a secret that is shown once, listed, tried, deleted; what is refused, and why."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from jsonschema import Draft202012Validator

from service.client import Client, RequestRefused
from service.store.backend import Backend
from service.store.database import writing
from service.store.rows import Dispatch
from service.store.states import EVENT_TYPES
from service.store.webhooks import MOST_WEBHOOKS
from tests.service.deployed import Deployed, deployed, served
from tests.service.test_dataset_routes import rings

URL = "https://example.com/hooks"
NO_WEBHOOK, NO_DELIVERY = "whk_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "dlv_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def create(api: Deployed, **more: Any) -> dict[str, Any]:
    response = api.http.post("/v1/webhooks", json={"url": URL, **more})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/v1/webhooks/{made['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    return made


def ping(api: Deployed, webhook: str) -> dict[str, Any]:
    response = api.http.post(f"/v1/webhooks/{webhook}/test")
    assert response.status_code == 202, response.text
    delivery: dict[str, Any] = response.json()
    return delivery


def refused(response: Response, status: int, code: str) -> list[dict[str, Any]]:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    faults: list[dict[str, Any]] = response.json()["errors"]
    return faults


def store(api: Deployed) -> Backend:
    """What a housekeeper writes with."""
    backend: Backend = api.app.state.backend
    return backend


def claimed(api: Deployed) -> Dispatch:
    found = store(api).deliveries.claim()
    assert found is not None
    return found


def test_a_secret_is_shown_when_its_webhook_is_made_and_never_again(api: Deployed) -> None:
    made = create(api, name="pager", types=["job.failed", "job.paused", "job.failed"])
    assert made.pop("secret").startswith("whsec_")
    created_at = made.pop("created_at")
    assert made == {
        "id": made["id"],
        "name": "pager",
        "url": URL,
        "types": ["job.failed", "job.paused"],
        "disabled_at": None,
        "disabled_reason": None,
    }
    shown = {**made, "created_at": created_at}
    assert api.get(f"/v1/webhooks/{made['id']}") == shown
    assert api.get("/v1/webhooks")["data"] == [shown]
    assert "whsec_" not in api.http.post(f"/v1/webhooks/{made['id']}/test").text
    assert "whsec_" not in api.http.get(f"/v1/webhooks/{made['id']}/deliveries").text


@on_sqlite
def test_a_secret_that_cannot_be_stored_is_not_logged_either(api: Deployed, caplog: pytest.LogCaptureFixture) -> None:
    with writing(store(api).engine).begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON webhooks BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    response = api.http.post("/v1/webhooks", json={"url": URL})
    assert response.status_code == 500
    assert "no room" in caplog.text
    assert "whsec_" not in caplog.text + response.text


@on_sqlite
def test_by_default_the_ends_of_jobs_are_told(api: Deployed) -> None:
    made = create(api)
    assert (made["name"], made["types"]) == ("", ["job.succeeded", "job.failed", "job.cancelled"])
    assert create(api, types=list(EVENT_TYPES))["types"] == list(EVENT_TYPES)


def test_webhooks_are_listed_newest_first_a_page_at_a_time(api: Deployed) -> None:
    made = [create(api)["id"] for _ in range(3)]
    first = api.get("/v1/webhooks", params={"limit": 2})
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (made[:0:-1], True)
    rest = api.get("/v1/webhooks", params={"limit": 2, "after": first["next"]})
    assert ([each["id"] for each in rest["data"]], rest["has_more"], rest["next"]) == (made[:1], False, None)


@on_sqlite
def test_what_will_not_do_is_refused_where_it_stands(api: Deployed) -> None:
    for wrong, pointer, code in (
        ({"url": "http://example.com/"}, "/url", "url_invalid"),
        ({"url": "https://127.0.0.1/"}, "/url", "url_invalid"),
        ({"url": "https://2130706433/"}, "/url", "url_invalid"),
        ({"url": "https://user:secret@example.com/"}, "/url", "url_invalid"),
        ({"url": ""}, "/url", "string_too_short"),
        ({"url": f"https://example.com/{'a' * 2000}"}, "/url", "string_too_long"),
        ({"url": None}, "/url", "string_type"),
        ({"types": []}, "/types", "too_short"),
        ({"types": "job.failed"}, "/types", "list_type"),
        ({"types": ["job.failed", "job.fail"]}, "/types/1", "unknown_name"),
        ({"types": [7]}, "/types/0", "unknown_name"),
        ({"types": ["webhook.test"]}, "/types/0", "unknown_name"),
        ({"types": ["job.failed"] * 7}, "/types", "too_long"),
        ({"name": "a" * 201}, "/name", "string_too_long"),
        ({"name": "a\u0007"}, "/name", "value_error"),
        ({"secret": "whsec_mine"}, "/secret", "unknown_field"),
    ):
        [fault] = refused(api.http.post("/v1/webhooks", json={"url": URL, **wrong}), 422, "webhook_invalid")
        assert (fault["pointer"], fault["code"]) == (pointer, code)
        assert "secret@" not in fault["message"]
    assert api.get("/v1/webhooks")["data"] == []


@on_sqlite
def test_an_unknown_type_is_answered_with_those_there_are(api: Deployed) -> None:
    body = {"url": URL, "types": ["job.suceeded"]}
    [fault] = refused(api.http.post("/v1/webhooks", json=body), 422, "webhook_invalid")
    assert (fault["allowed"], fault["fixes"][0]) == (list(EVENT_TYPES), "job.succeeded")


@on_sqlite
def test_a_body_is_read_strictly(api: Deployed) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b"", b"nonsense", b'{"url": "https://a.example/", "url": "https://b.example/"}', b"\xff"):
        refused(api.http.post("/v1/webhooks", content=body, headers=headers), 400, "malformed")
    [fault] = refused(api.http.post("/v1/webhooks", json=[]), 422, "webhook_invalid")
    assert fault["message"] == "the body must be an object"
    [fault] = refused(api.http.post("/v1/webhooks", json={}), 422, "webhook_invalid")
    assert (fault["pointer"], fault["message"]) == ("/url", "url is required")


@on_sqlite
def test_networks_of_the_deployment_may_be_named(database_url: str, broker_url: str, tmp_path: Path) -> None:
    with deployed(database_url, broker_url, tmp_path, WEBHOOK_NETWORKS="10.1.0.0/16") as api:
        create(api, url="https://10.1.2.3:8443/hooks")
        refused(api.http.post("/v1/webhooks", json={"url": "https://10.2.0.1/"}), 422, "webhook_invalid")


@on_sqlite
def test_there_may_be_so_many_and_no_more(api: Deployed) -> None:
    made = [create(api)["id"] for _ in range(MOST_WEBHOOKS)]
    [fault] = refused(api.http.post("/v1/webhooks", json={"url": URL}), 409, "too_many")
    assert fault["limit"] == MOST_WEBHOOKS
    assert fault["message"] == "there are 20 webhooks, which is as many as there may be; delete one first"
    assert api.http.delete(f"/v1/webhooks/{made[0]}").status_code == 204
    create(api)


def test_a_test_is_a_delivery_that_can_be_followed(api: Deployed) -> None:
    webhook = create(api, name="pager")["id"]
    before = rings(api)
    delivery = ping(api, webhook)
    assert rings(api) == before + 1, "the housekeeper is rung for"
    assert (delivery["type"], delivery["status"], delivery["attempts"], delivery["job"]) == (
        "webhook.test",
        "pending",
        0,
        None,
    )
    assert delivery["next_attempt_at"] == delivery["created_at"]
    assert f'"data":{{"webhook":"{webhook}","name":"pager"}}' in delivery["body"]
    assert api.get(f"/v1/webhooks/{webhook}/deliveries")["data"] == [delivery]
    store(api).deliveries.deliver(claimed(api), 204)
    [after] = api.get(f"/v1/webhooks/{webhook}/deliveries")["data"]
    assert (after["status"], after["response_status"], after["attempts"]) == ("delivered", 204, 1)
    assert after["next_attempt_at"] is None
    assert after["ended_at"] >= after["attempted_at"] >= after["created_at"]


def test_deliveries_are_listed_newest_first_and_by_status(api: Deployed) -> None:
    webhook, other = create(api)["id"], create(api)["id"]
    first, second, third = (ping(api, webhook)["id"] for _ in range(3))
    ping(api, other)
    store(api).deliveries.deliver(claimed(api), 200)

    def listed(**query: Any) -> list[str]:
        return [each["id"] for each in api.get(f"/v1/webhooks/{webhook}/deliveries", params=query)["data"]]

    assert listed() == [third, second, first]
    assert (listed(status="pending"), listed(status="delivered"), listed(status="dead")) == (
        [third, second],
        [first],
        [],
    )
    page = api.get(f"/v1/webhooks/{webhook}/deliveries", params={"limit": 1})
    assert page["has_more"]
    assert listed(after=page["next"]) == [second, first]
    for wrong in ({"status": "lost"}, {"after": "x"}, {"after": webhook}, {"limit": 0}, {"state": "dead"}):
        response = api.http.get(f"/v1/webhooks/{webhook}/deliveries", params=wrong)
        refused(response, 422, "parameter_invalid")


def test_a_delivery_can_be_sent_again(api: Deployed) -> None:
    webhook = create(api)["id"]
    delivery = ping(api, webhook)["id"]
    store(api).deliveries.deliver(claimed(api), 200)
    before = rings(api)
    response = api.http.post(f"/v1/webhooks/{webhook}/deliveries/{delivery}/retry")
    assert (response.status_code, response.json()["status"], response.json()["attempts"]) == (202, "pending", 0)
    assert rings(api) == before + 1
    assert claimed(api).id == delivery


@on_sqlite
def test_a_webhook_that_is_disabled_is_shown_so_and_takes_only_its_deletion(api: Deployed) -> None:
    webhook = create(api)["id"]
    delivery = ping(api, webhook)["id"]
    store(api).deliveries.disable(claimed(api), "the receiver answered 410", 410)
    shown = api.get(f"/v1/webhooks/{webhook}")
    assert (shown["disabled_reason"], shown["disabled_at"] is None) == ("the receiver answered 410", False)
    for path in ("test", f"deliveries/{delivery}/retry"):
        response = api.http.post(f"/v1/webhooks/{webhook}/{path}")
        refused(response, 409, "conflict")
        answer = response.json()
        assert (answer["resource_status"], answer["allowed_actions"]) == ("disabled", ["delete"])
        assert "the receiver answered 410; delete it and make another" in answer["detail"]
    assert api.http.delete(f"/v1/webhooks/{webhook}").status_code == 204
    refused(api.http.get(f"/v1/webhooks/{webhook}"), 404, "not_found")


@on_sqlite
@pytest.mark.parametrize("webhook", [NO_WEBHOOK, "whk_1", "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "9" * 30])
def test_what_is_not_there_is_a_404(api: Deployed, webhook: str) -> None:
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("GET", "/deliveries"),
        ("POST", f"/deliveries/{NO_DELIVERY}/retry"),
    ):
        refused(api.http.request(method, f"/v1/webhooks/{webhook}{path}"), 404, "not_found")


@on_sqlite
def test_a_delivery_of_another_webhook_is_not_there(api: Deployed) -> None:
    webhook, other = create(api)["id"], create(api)["id"]
    delivery = ping(api, other)["id"]
    for each in (delivery, NO_DELIVERY, "dlv_1"):
        refused(api.http.post(f"/v1/webhooks/{webhook}/deliveries/{each}/retry"), 404, "not_found")


def test_what_is_sent_is_as_the_document_describes_it(api: Deployed) -> None:
    document = api.get("/openapi.json")
    webhook = create(api, types=list(EVENT_TYPES))["id"]
    api.enrol()
    job = api.submit(metadata={"study": "depth"})["id"]
    api.http.post(f"/v1/jobs/{job}/cancel")
    sent = [json.loads(each["body"]) for each in api.get(f"/v1/webhooks/{webhook}/deliveries")["data"]]
    assert [message["type"] for message in sent] == ["job.cancelled", "job.queued"]
    described = document["webhooks"]["job"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**described, "components": document["components"]})
    for message in sent:
        validator.validate(message)
        assert set(message["data"]) == set(document["components"]["schemas"]["Told"]["properties"])


# The client


@pytest.fixture
def client(api: Deployed) -> Iterator[Client]:
    with served(api.app) as url, Client(url) as client:
        yield client


@on_sqlite
def test_the_client_makes_tries_lists_and_deletes_webhooks(api: Deployed, client: Client) -> None:
    made = client.create_webhook(URL, name="pager", types=["job.failed"])
    assert made["secret"].startswith("whsec_")
    assert [(each["id"], each["types"]) for each in client.webhooks()] == [(made["id"], ["job.failed"])]
    delivery = client.test_webhook(made["id"])
    store(api).deliveries.deliver(claimed(api), 200)
    assert [each["status"] for each in client.deliveries(made["id"], status="delivered")] == ["delivered"]
    assert client.retry_delivery(made["id"], delivery["id"])["status"] == "pending"
    client.delete_webhook(made["id"])
    assert list(client.webhooks()) == []
    with pytest.raises(RequestRefused, match="there is no webhook"):
        client.test_webhook(made["id"])
    with pytest.raises(RequestRefused, match="/url: url must begin with https://"):
        client.create_webhook("http://example.com/")
