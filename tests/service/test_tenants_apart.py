"""P15: what is another tenant's is as absent as what never was."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from safetensors.numpy import save
from sqlalchemy import select, true

from acmix.events import Event
from service.store.rows import Outcome
from service.store.scope import Scoped
from service.store.tables import metadata
from tests.service import work
from tests.service.deployed import Deployed, spec
from tests.service.test_access import ABSENT, IDS, bearer, key_for

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODIES: dict[str, dict[str, Any]] = {
    "PUT": {"content": b"PK", "headers": {"Content-Type": "application/octet-stream"}},
    "POST": {"content": b"image", "headers": {"Content-Type": "image/png"}},
}
NOT_THERE = {404, 405}


@dataclass
class Two:
    """Two tenants of one service: `theirs` has one of each thing, whose ids are by the routes' parameters; we none."""

    api: Deployed
    ours: dict[str, str]
    theirs: dict[str, str]
    ids: dict[str, str]
    waiting: str

    def call(self, who: dict[str, str], method: str, path: str, ids: dict[str, str], **more: Any) -> Response:
        body = {**BODIES.get(method, {}), **more}
        headers = {**who, **body.pop("headers", {})}
        return self.api.http.request(method, path.format(**ids), headers=headers, **body)

    def id_paths(self) -> list[str]:
        """Of things that a tenant has; workers are everybody's."""
        found = {route.path for part in self.api.app.state.routers for route in part.routes}
        return sorted(path for path in found if "{" in path and not path.startswith("/v1/workers/"))


@pytest.fixture
def two(api: Deployed, tmp_path: Path) -> Two:
    api.enrol()
    ours, theirs = (bearer(key_for(api, tenant=tenant)) for tenant in ("ours", "theirs"))
    job = api.http.post("/v1/jobs", json=spec(), headers=theirs).json()["id"]
    claimed = work.claim(api.ledger).job
    assert claimed.id == job
    api.ledger.record(job, 1, [Event("metrics", "", {"step": [1], "values": {"train/loss": [0.5]}}), work.trace(1)])
    api.ledger.log(job, 1, ["a word"])
    checkpoint = _checkpoint(api, claimed, tmp_path / "step-10")
    api.ledger.finish(job, 1, Outcome("succeeded"))
    waiting = api.http.post("/v1/jobs", json=spec(), headers=theirs).json()["id"]
    weights = api.http.post("/v1/weights", content=_safetensors(), headers=theirs).json()["id"]
    declared = {"name": "flowers", "task": "classification", "format": "image_folder"}
    dataset = api.http.post("/v1/datasets", json=declared, headers=theirs).json()["id"]
    webhook = api.http.post("/v1/webhooks", json={"url": "https://example.com/"}, headers=theirs).json()["id"]
    delivery = api.http.post(f"/v1/webhooks/{webhook}/test", headers=theirs).json()["id"]
    ids = {
        "job_id": job,
        "checkpoint_id": checkpoint,
        "weights_id": weights,
        "dataset_id": dataset,
        "webhook_id": webhook,
        "delivery_id": delivery,
    }
    return Two(api, ours, theirs, ids, waiting)


def test_every_route_of_an_id_answers_404_for_anothers_as_for_none(two: Two) -> None:
    before, tried = _rows(two), 0
    for path in two.id_paths():
        for method in METHODS:
            foreign = two.call(two.ours, method, path, two.ids)
            absent = two.call(two.ours, method, path, {name: f"{kind}_{ABSENT}" for name, kind in IDS.items()})
            assert foreign.status_code in NOT_THERE, f"{method} {path}: {foreign.status_code} {foreign.text}"
            assert _shape(foreign, two.ids) == _shape(absent, {"": ABSENT})
            tried += foreign.status_code == 404
    assert tried >= 30
    assert _rows(two) == before
    print(f"\nP15: {tried} routes of an id tried from another tenant, all 404")


def test_those_whose_they_are_find_them(two: Two) -> None:
    for path in two.id_paths():
        answered = two.call(two.theirs, "GET", path, two.ids)
        assert answered.status_code in (200, 405) or path.endswith("samples.png"), f"{path}: {answered.status_code}"


def test_without_its_condition_the_test_above_would_find_them(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scoped, "_mine", lambda _self, _table: true())
    monkeypatch.setattr(Scoped, "_my_jobs", lambda _self, _table: true())
    found = [path for path in two.id_paths() if two.call(two.ours, "GET", path, two.ids).status_code == 200]
    assert len(found) >= 12, found


def test_lists_hold_nothing_of_another(two: Two) -> None:
    for path in ("/v1/jobs", "/v1/queue", "/v1/datasets", "/v1/weights", "/v1/webhooks"):
        assert two.call(two.theirs, "GET", path, {}).json()["data"]
        assert two.call(two.ours, "GET", path, {}).json()["data"] == []
    for filtered in ("status=queued", "kind=train", "name=late attention", "metadata[study]=depth"):
        assert two.call(two.theirs, "GET", f"/v1/jobs?{filtered}", {}).json()["data"]
        assert two.call(two.ours, "GET", f"/v1/jobs?{filtered}", {}).json()["data"] == []
    assert two.call(two.ours, "GET", f"/v1/queue?after={two.waiting}", {}).status_code == 404


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans"])
def test_no_spec_reaches_what_is_anothers(two: Two, path: str) -> None:
    bodies = [
        ({**spec(), "dataset": {"id": two.ids["dataset_id"]}}, "/dataset/id"),
        ({**spec(), "backbone": {**spec()["backbone"], "weights": two.ids["weights_id"]}}, "/backbone/weights"),
        ({**spec(), "backbone": {**spec()["backbone"], "weights": two.ids["checkpoint_id"]}}, "/backbone/weights"),
        ({"kind": "evaluate", "checkpoint": two.ids["checkpoint_id"]}, "/checkpoint"),
    ]
    for body, pointer in bodies if path == "/v1/jobs" else bodies[:1]:
        refused = two.call(two.ours, "POST", path, {}, json=body, content=None, headers={})
        assert refused.status_code == 422, refused.text
        (fault,) = refused.json()["errors"]
        assert (fault["pointer"], fault["code"]) == (pointer, "unknown_id")
    assert not two.api.app.state.backend.of("ours").reader.jobs().data


def test_of_the_jobs_that_a_worker_runs_each_tenant_is_told_its_own(two: Two) -> None:
    theirs = work.claim(two.api.ledger).job.id
    ours = two.api.http.post("/v1/jobs", json=spec(), headers=two.ours).json()["id"]
    two.api.enrol(gpus=1)
    told = {"index": 0, "jobs": [theirs, ours], "put_aside": None}
    two.api.ledger.seen(
        "worker-1", 1, {"devices": [told], "cpu": {"load": None, "memory_used_bytes": None, "memory_bytes": None}}
    )
    for who, job in ((two.ours, ours), (two.theirs, theirs)):
        answered = two.call(who, "GET", "/v1/workers", {})
        (worker,) = answered.json()["data"]
        assert (worker["busy"], worker["devices"][0]["jobs"]) == (1, [job])
        assert ({ours, theirs} - {job}).pop() not in answered.text
        drained = two.call(who, "POST", "/v1/workers/worker-1/drain", {}, content=None, headers={})
        assert drained.json()["devices"][0]["jobs"] == [job]


def test_an_idempotency_key_is_its_tenants_own(two: Two) -> None:
    jobs = [
        two.api.http.post("/v1/jobs", json=spec(), headers={**who, "Idempotency-Key": "one"})
        for who in (two.ours, two.theirs, two.ours)
    ]
    assert [job.status_code for job in jobs] == [201, 201, 200]
    assert jobs[0].json()["id"] == jobs[2].json()["id"] != jobs[1].json()["id"]
    other = {**spec(), "name": "x"}
    refused = two.api.http.post("/v1/jobs", json=other, headers={**two.theirs, "Idempotency-Key": "one"})
    assert refused.status_code == 422, "another body under the key of theirs"


def test_keys_of_one_tenant_see_the_same(two: Two) -> None:
    another = bearer(key_for(two.api, tenant="theirs"))
    assert two.call(another, "GET", "/v1/jobs/{job_id}", two.ids).status_code == 200


def test_no_route_has_a_way_around_its_tenant() -> None:
    for file in Path("service/routes").glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if "state.backend" in line]
        allowed = ("state.backend.settings", "backend, access = ")
        assert all(any(each in line for each in allowed) for line in lines), f"{file}: {lines}"


def _checkpoint(api: Deployed, job: Any, folder: Path) -> str:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(_safetensors())
    (folder / "manifest.json").write_text("{}")
    stored, _ = work.save(api.ledger, job, 10)
    api.artifacts.put_folder(stored.key, folder)
    return stored.id


def _safetensors() -> bytes:
    import numpy as np

    return bytes(save({"weight": np.zeros((2, 2), dtype=np.float32)}))


def _rows(two: Two) -> dict[str, Any]:
    """All that is stored, but when keys were last used."""
    with two.api.app.state.backend.engine.connect() as connection:
        tables = [table for table in metadata.sorted_tables if table.name != "keys"]
        return {table.name: [tuple(row) for row in connection.execute(select(table))] for table in tables}


def _shape(response: Response, ids: dict[str, str]) -> tuple[int, str]:
    """An answer without the id that was asked for and the id of the request."""
    text = response.text
    for asked in ids.values():
        text = text.replace(asked.partition("_")[2] or asked, "ID")
    return response.status_code, text.replace(response.headers["X-Request-Id"], "")
