"""Uploaded weights over HTTP, and jobs that start from them."""

import hashlib
import io
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as as_file

from service.client import Client, RequestRefused
from service.store.rows import Outcome
from tests.service.deployed import Deployed, deployed, served, spec
from tests.service.work import claim, save, until

FILE = as_file({"conv1.weight": torch.ones(4, 3), "conv1.bias": torch.ones(4)}, {"acmix": '{"step": 3}'})
NONE = "wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def upload(api: Deployed, content: bytes = FILE, **query: str) -> Any:
    return api.http.post("/v1/weights", content=content, params=query)


def starting_from(source: str) -> dict[str, Any]:
    return {"backbone": {"name": "resnet26", "weights": source}, "swaps": []}


def files(api: Deployed) -> list[str]:
    """All that lies in the data folder, artifacts included."""
    return sorted(str(path) for path in api.settings.data_folder.rglob("*") if path.is_file())


def test_a_file_that_was_uploaded_is_described_listed_and_kept(api: Deployed) -> None:
    answered = upload(api, name="first")
    assert answered.status_code == 201, answered.text
    told = answered.json()
    assert answered.headers["Location"] == f"/v1/weights/{told['id']}"
    assert {key: value for key, value in told.items() if key not in {"id", "created_at"}} == {
        "name": "first",
        "sha256": hashlib.sha256(FILE).hexdigest(),
        "size_bytes": len(FILE),
        "tensors": 2,
        "params": 16,
        "about": {"step": 3},
    }
    newer = upload(api).json()
    assert api.get(f"/v1/weights/{told['id']}") == told
    page = api.get("/v1/weights", params={"limit": 1})
    assert (page["data"], page["has_more"]) == ([newer], True)
    assert api.get("/v1/weights", params={"after": page["next"]})["data"] == [told]
    kept = api.artifacts.stream(f"weights/{told['id']}/model.safetensors")
    assert b"".join(kept) == FILE


@on_sqlite
def test_what_is_no_safetensors_file_is_refused_and_not_kept(api: Deployed) -> None:
    for content in (b"", b"PK\x03\x04" + bytes(1000), FILE[:-1], FILE + b"\0"):
        refused = upload(api, content)
        assert (refused.status_code, refused.json()["code"]) == (422, "file_invalid")
        assert "no safetensors file that can be taken: its " in refused.json()["detail"]
    assert upload(api, name="a\nb").status_code == 422
    assert api.get("/v1/weights")["data"] == []
    assert files(api) == []


@on_sqlite
def test_a_file_that_is_too_large_is_refused_before_and_while_it_comes(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    with deployed(database_url, broker_url, tmp_path / "data", MAX_WEIGHTS_BYTES="1024") as api:
        assert upload(api).status_code == 201
        before = files(api)
        for content in (bytes(1025), iter([bytes(600)] * 2)):
            refused = upload(api, content)  # type: ignore[arg-type]  # the second comes in chunks
            assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
            assert refused.json()["errors"][0]["limit"] == 1024
        assert files(api) == before


@on_sqlite
def test_a_file_that_the_disk_takes_only_in_part_is_refused_and_not_kept(api: Deployed) -> None:
    """The last write fits half: the disk takes that half without an error."""
    content = as_file({"weight": torch.zeros(400_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 100_000, hard))
    try:
        refused = upload(api, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
    assert api.get("/v1/weights")["data"] == []
    assert files(api) == []
    assert upload(api, content).status_code == 201


@on_sqlite
def test_an_upload_that_is_cut_off_leaves_nothing_behind(api: Deployed) -> None:
    with served(api.app) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/weights HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(FILE)}\r\n\r\n"
            connection.sendall(head.encode() + FILE[:50])
        until(lambda: api.get("/v1/weights")["data"] == [] and files(api) == [])


def test_a_job_starts_from_what_there_is_and_only_that(api: Deployed) -> None:
    api.enrol()
    weights = upload(api).json()["id"]
    assert api.submit(**starting_from(weights))["resolved_spec"]["backbone"]["weights"] == weights
    for absent in (NONE, NONE.replace("wts", "ckpt")):
        refused = api.post({**spec(), **starting_from(absent)})
        assert refused.status_code == 422
        [fault] = refused.json()["errors"]
        assert (fault["pointer"], fault["code"]) == ("/backbone/weights", "unknown_id")
        assert absent in fault["message"]


@on_sqlite
def test_a_backbone_that_timm_has_no_weights_for_is_refused_with_those_that_have(api: Deployed) -> None:
    api.enrol()
    refused = api.post({**spec(), **starting_from("timm")})
    [fault] = refused.json()["errors"]
    assert (fault["pointer"], fault["code"]) == ("/backbone/weights", "no_weights")
    assert fault["message"] == "timm has no weights for resnet26; it has for: resnet50, most of zoo/..."


def test_weights_are_deleted_once_no_job_needs_them(api: Deployed) -> None:
    api.enrol()
    weights = upload(api).json()["id"]
    job = api.submit(**starting_from(weights))["id"]
    refused = api.http.delete(f"/v1/weights/{weights}")
    assert (refused.status_code, refused.json()["code"], refused.json()["job"]) == (409, "conflict", job)
    assert refused.json()["detail"] == f"job {job} is queued and starts from {weights}; cancel it or wait for its end"
    assert api.artifacts.head(f"weights/{weights}/model.safetensors") == len(FILE)
    api.http.post(f"/v1/jobs/{job}/cancel")
    assert api.http.delete(f"/v1/weights/{weights}").status_code == 204
    assert api.http.get(f"/v1/weights/{weights}").status_code == 404
    assert api.http.delete(f"/v1/weights/{weights}").status_code == 404
    assert api.artifacts.prefixes("weights") == []


def test_a_job_is_kept_while_another_starts_from_its_checkpoint(api: Deployed) -> None:
    api.enrol()
    first = api.submit()["id"]
    saved, _ = save(api.ledger, claim(api.ledger).job, 10)
    api.artifacts.put_file(f"{saved.key}/model.safetensors", io.BytesIO(FILE))
    api.http.post(f"/v1/jobs/{first}/cancel")
    second = api.submit(**starting_from(saved.id))["id"]
    api.ledger.finish(first, 1, Outcome("cancelled"))
    refused = api.http.delete(f"/v1/jobs/{first}")
    assert (refused.status_code, refused.json()["job"]) == (409, second)
    assert api.artifacts.head(f"{saved.key}/model.safetensors")
    api.http.post(f"/v1/jobs/{second}/cancel")
    assert api.http.delete(f"/v1/jobs/{first}").status_code == 204


@on_sqlite
def test_ids_that_cannot_be_ones_are_not_found(api: Deployed) -> None:
    for name in ("wts_1", "ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", NONE):
        assert api.http.get(f"/v1/weights/{name}").status_code == 404
        assert api.http.delete(f"/v1/weights/{name}").status_code == 404


@on_sqlite
def test_a_client_uploads_lists_and_deletes(api: Deployed, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(FILE)
    with served(api.app) as url, Client(url) as client:
        added = client.upload_weights(tmp_path / "model.safetensors", name="mine")
        assert [each["name"] for each in client.weights()] == ["mine"]
        client.delete_weights(added["id"])
        assert list(client.weights()) == []
        with pytest.raises(RequestRefused, match="there are no weights"):
            client.delete_weights(added["id"])
