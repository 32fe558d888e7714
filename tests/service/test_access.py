"""Who may call: keys and their scopes, and this machine until there is a key."""

import socket
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import select, update

from service.access import OPEN, scope_of
from service.store.database import writing
from service.store.rows import SCOPES, Scope
from service.store.tables import keys
from tests.service.deployed import Deployed, served, spec

# Every route and what a key must be for to use it; one that is not here fails the test that reads it.
JOBS_READ = """
    GET /v1/catalog
    POST /v1/plans
    GET /v1/jobs
    GET /v1/jobs/{job_id}
    GET /v1/jobs/{job_id}/results
    GET /v1/jobs/{job_id}/metrics
    GET /v1/jobs/{job_id}/traces
    GET /v1/jobs/{job_id}/traces.svg
    GET /v1/jobs/{job_id}/events
    GET /v1/jobs/{job_id}/logs
    GET /v1/jobs/{job_id}/attempts
    GET /v1/jobs/{job_id}/checkpoints
    GET /v1/checkpoints/{checkpoint_id}
    GET /v1/checkpoints/{checkpoint_id}/content
    HEAD /v1/checkpoints/{checkpoint_id}/content
    POST /v1/checkpoints/{checkpoint_id}/predict
    GET /v1/workers
    GET /v1/queue
    GET /v1/usage
"""
JOBS_WRITE = """
    POST /v1/jobs
    DELETE /v1/jobs/{job_id}
    POST /v1/jobs/{job_id}/cancel
    POST /v1/jobs/{job_id}/pause
    POST /v1/jobs/{job_id}/resume
    POST /v1/jobs/{job_id}/retry
"""
DATA_READ = """
    GET /v1/datasets
    GET /v1/datasets/{dataset_id}
    GET /v1/datasets/{dataset_id}/samples.png
    HEAD /v1/datasets/{dataset_id}/content
    GET /v1/weights
    GET /v1/weights/{weights_id}
"""
DATA_WRITE = """
    POST /v1/datasets
    PUT /v1/datasets/{dataset_id}/content
    DELETE /v1/datasets/{dataset_id}
    POST /v1/weights
    DELETE /v1/weights/{weights_id}
"""
ADMIN = """
    POST /v1/workers/{worker_id}/drain
    POST /v1/workers/{worker_id}/resume
    GET /metrics
    POST /v1/webhooks
    GET /v1/webhooks
    GET /v1/webhooks/{webhook_id}
    DELETE /v1/webhooks/{webhook_id}
    POST /v1/webhooks/{webhook_id}/test
    GET /v1/webhooks/{webhook_id}/deliveries
    POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry
"""
TABLE: dict[Scope, str] = {
    "jobs:read": JOBS_READ,
    "jobs:write": JOBS_WRITE,
    "data:read": DATA_READ,
    "data:write": DATA_WRITE,
    "admin": ADMIN,
}
NEEDED = {tuple(line.split()): scope for scope, lines in TABLE.items() for line in lines.strip().splitlines()}
ABSENT = "01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
IDS = {
    "job_id": "job",
    "checkpoint_id": "ckpt",
    "weights_id": "wts",
    "dataset_id": "ds",
    "webhook_id": "whk",
    "delivery_id": "dlv",
    "worker_id": "wk",
}


def key_for(api: Deployed, *scopes: Scope, tenant: str = "default", lasts: timedelta | None = None) -> str:
    _, text = api.app.state.backend.tenants.create_key(tenant, name="", scopes=scopes or SCOPES, lasts=lasts)
    return str(text)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(api: Deployed) -> set[tuple[str, str]]:
    """Method and path of every route that is not open to all."""
    found = {
        (method, route.path) for part in api.app.state.routers for route in part.routes for method in route.methods
    }
    return {(method, path) for method, path in found if path not in OPEN}


def called(api: Deployed, method: str, path: str, key: str | None) -> Response:
    for name, prefix in IDS.items():
        path = path.replace(f"{{{name}}}", f"{prefix}_{ABSENT}")
    return api.http.request(method, path, headers=bearer(key) if key else {})


def test_every_route_has_its_scope_and_no_other(api: Deployed) -> None:
    assert routes(api) == set(NEEDED)
    assert {each: scope_of(*each) for each in NEEDED} == NEEDED


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_opens_the_routes_of_its_scopes_alone(api: Deployed, scope: Scope) -> None:
    key = key_for(api, scope)
    for (method, path), needed in NEEDED.items():
        response = called(api, method, path, key)
        assert response.status_code != 401
        is_for_it = scope in (needed, "admin")
        assert (response.status_code == 403) != is_for_it, f"{method} {path}: {response.status_code}"
        if not is_for_it and method != "HEAD":
            assert response.json()["code"] == "scope_missing"
            assert needed in response.json()["detail"]
            assert f'scope="{needed}"' in response.headers["WWW-Authenticate"]


def test_with_keys_in_use_every_route_but_health_needs_one(api: Deployed) -> None:
    key_for(api)
    for method, path in routes(api):
        response = called(api, method, path, None)
        assert response.status_code == 401, f"{method} {path}"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert api.http.get("/healthz").status_code == 200
    assert api.http.get("/readyz").status_code == 503, "it tells what is missing, no worker, and nothing else"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer acmix_short",
        "Bearer acmix_aaaaaaaa_" + "A" * 43,
        "Bearer acmix_aaaaaaaa_" + "A" * 5000,
        "Bearer acmix_aaaaaaaa_' OR 1=1 --",
        "Bearer ümlaut",
    ],
)
def test_what_is_no_key_is_refused(api: Deployed, header: str) -> None:
    key_for(api)
    response = api.http.get("/v1/jobs", headers={"Authorization": header.encode("latin-1")})
    assert response.status_code == 401
    assert response.json()["code"] == "key_refused"
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_wrong_key_is_refused_also_before_any_is_in_use(api: Deployed) -> None:
    assert api.http.get("/v1/jobs", headers=bearer("acmix_aaaaaaaa_" + "A" * 43)).status_code == 401


def test_another_key_of_the_same_prefix_is_refused(api: Deployed) -> None:
    key = key_for(api)
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert api.http.get("/v1/jobs", headers=bearer(changed)).status_code == 401


def test_a_revoked_key_is_refused_and_the_last_one_lets_nobody_in(api: Deployed) -> None:
    tenants = api.app.state.backend.tenants
    key = key_for(api)
    assert api.http.get("/v1/jobs", headers=bearer(key)).status_code == 200
    (listed,) = tenants.all_keys()
    first = tenants.revoke_key(listed.id)
    assert tenants.revoke_key(listed.id) == first, "once revoked it stays so"
    refused = api.http.get("/v1/jobs", headers=bearer(key))
    assert refused.status_code == 401
    assert f"key {listed.id} was revoked at" in refused.json()["detail"]
    assert api.http.get("/v1/jobs").status_code == 401


def test_a_key_expires_by_the_databases_clock(api: Deployed) -> None:
    key = key_for(api, lasts=timedelta(hours=1))
    assert api.http.get("/v1/jobs", headers=bearer(key)).status_code == 200
    with writing(api.app.state.backend.engine).begin() as connection:
        created_at = connection.execute(select(keys.c.created_at)).scalar_one()
        connection.execute(update(keys).values(expires_at=created_at - timedelta(seconds=1)))
    refused = api.http.get("/v1/jobs", headers=bearer(key))
    assert refused.status_code == 401
    assert "has expired at" in refused.json()["detail"]


def test_of_a_key_only_its_hash_and_its_beginning_are_kept(api: Deployed) -> None:
    secret = key_for(api).split("_", 2)[2]
    with api.app.state.backend.engine.connect() as connection:
        row = dict(connection.execute(select(keys)).mappings().one())
    assert secret not in str(row)
    assert not any(str(value) in secret for name, value in row.items() if name in ("prefix", "sha256"))


def test_its_last_use_is_noted(api: Deployed) -> None:
    tenants = api.app.state.backend.tenants
    key = key_for(api)
    assert tenants.all_keys()[0].used_at is None
    api.http.get("/v1/jobs", headers=bearer(key))
    used_at = tenants.all_keys()[0].used_at
    assert used_at is not None
    api.http.get("/v1/jobs", headers=bearer(key))
    assert tenants.all_keys()[0].used_at == used_at, "once a minute is enough"


def test_nothing_of_a_body_is_read_before_its_sender_is_known(api: Deployed) -> None:
    key_for(api)
    with served(api.app) as url:
        for request in ("POST /v1/jobs", "POST /v1/weights", f"PUT /v1/datasets/ds_{ABSENT}/content"):
            assert _answered_without_its_body(url, request).startswith(b"HTTP/1.1 401 ")


def _answered_without_its_body(url: str, request: str) -> bytes:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        lines = (f"{request} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 9999999")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(4096)


# Without keys


def _from(api: Deployed, client: str, **headers: str) -> Response:
    http = TestClient(api.app, raise_server_exceptions=False, client=(client, 50000), base_url="http://127.0.0.1:8000")
    return http.post("/v1/jobs", json=spec(), headers=headers)


@pytest.mark.parametrize("client", ["127.0.0.1", "127.1.2.3", "::1"])
def test_without_keys_this_machine_may_call(api: Deployed, client: str) -> None:
    api.enrol()
    assert _from(api, client).status_code == 201


@pytest.mark.parametrize("client", ["192.168.1.7", "8.8.8.8", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0"])
def test_without_keys_no_other_machine_may_call(api: Deployed, client: str) -> None:
    api.enrol()
    response = _from(api, client)
    assert response.status_code == 403
    assert response.json()["code"] == "keys_needed"
    assert "acmix keys create" in response.json()["detail"]
    assert not api.reader.jobs().data


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"])
def test_without_keys_a_proxy_on_this_machine_lets_nobody_in(api: Deployed, header: str) -> None:
    api.enrol()
    assert _from(api, "127.0.0.1", **{header: "127.0.0.1"}).json()["code"] == "keys_needed"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.uk"])
def test_without_keys_a_name_that_only_resolves_to_this_machine_is_refused(api: Deployed, host: str) -> None:
    api.enrol()
    assert _from(api, "127.0.0.1", Host=host).json()["code"] == "host_refused"
    assert _from(api, "127.0.0.1", Host="localhost:8000").status_code == 201
    assert _from(api, "127.0.0.1", Host="[::1]:8000").status_code == 201


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9999", "null"])
def test_without_keys_no_page_of_another_origin_changes_anything(api: Deployed, origin: str) -> None:
    api.enrol()
    assert _from(api, "127.0.0.1", Origin=origin).json()["code"] == "origin_refused"
    assert _from(api, "127.0.0.1", Origin="http://127.0.0.1:8000").status_code == 201


def test_with_a_key_any_machine_may_call_by_any_name(api: Deployed) -> None:
    api.enrol()
    headers = {**bearer(key_for(api)), "Host": "train.example", "Origin": "https://ui.example"}
    assert _from(api, "8.8.8.8", **headers).status_code == 201


def test_the_document_names_the_scope_of_every_operation(api: Deployed) -> None:
    document: Any = api.get("/openapi.json")
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for (method, path), scope in NEEDED.items():
        assert document["paths"][path][method.lower()]["security"] == [{"key": [scope]}, {}]
    assert "security" not in document["paths"]["/healthz"]["get"]
