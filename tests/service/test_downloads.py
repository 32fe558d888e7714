"""Files that lie in a bucket: served by us or by the store itself, and what is answered when that is away."""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from service.cli import main
from service.client import Client, ServiceError
from service.store import _objects
from service.store.ids import new_id
from tests.seaweed import BUCKET, SeaweedFS
from tests.service.deployed import Deployed, deployed, served
from tests.service.test_weights_routes import FILE
from tests.service.work import claim, save

CONTENT = bytes(range(256)) * 20_000  # of several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def more() -> dict[str, str]:
    """Settings of one test alone."""
    return {}


@pytest.fixture
def api(
    database_url: str, broker_url: str, tmp_path: Path, seaweed: SeaweedFS, more: dict[str, str]
) -> Iterator[Deployed]:
    """The API with its files in a bucket."""
    bucket = {**seaweed.environment, "ARTIFACTS_URL": f"s3://{BUCKET}/{uuid4()}", **more}
    with deployed(database_url, broker_url, tmp_path / "data", **bucket) as api:
        yield api


@pytest.fixture
def checkpoint(api: Deployed, tmp_path: Path) -> str:
    """The id of a checkpoint whose file is there."""
    return stored(api, tmp_path, CONTENT)


def stored(api: Deployed, tmp_path: Path, content: bytes) -> str:
    api.enrol()
    api.submit()
    job = claim(api.ledger).job
    folder = tmp_path / "step-000000010"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "manifest.json").write_text("{}")
    key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
    api.artifacts.put_folder(key, folder)
    sha256 = hashlib.sha256(content).hexdigest()
    saved, _ = save(api.ledger, job, 10, 0.75, key=key, size_bytes=len(content), sha256=sha256)
    return saved.id


@pytest.fixture
def path(checkpoint: str) -> str:
    return f"/v1/checkpoints/{checkpoint}/content"


def test_the_file_comes_whole_and_in_ranges_through_the_api(api: Deployed, path: str) -> None:
    assert api.http.get(path).content == CONTENT
    part = api.http.get(path, headers={"Range": "bytes=1000000-3999999"})
    assert (part.status_code, part.content) == (206, CONTENT[1_000_000:4_000_000])


def test_the_store_itself_serves_it_to_whoever_asks_to_be_redirected(api: Deployed, path: str) -> None:
    moved = api.http.get(path, params={"redirect": "true"}, follow_redirects=False)
    assert (moved.status_code, moved.headers["Cache-Control"], moved.content) == (307, "no-store", b"")
    assert "X-Amz-Expires=300" in moved.headers["Location"]
    whole = httpx.get(moved.headers["Location"])
    part = httpx.get(moved.headers["Location"], headers={"Range": "bytes=5-9"})
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert (part.status_code, part.content) == (206, CONTENT[5:10])


def test_head_is_redirected_too_by_a_url_of_its_own(api: Deployed, path: str) -> None:
    moved = api.http.head(path, params={"redirect": "true"}, follow_redirects=False)
    assert moved.status_code == 307
    assert httpx.head(moved.headers["Location"]).headers["Content-Length"] == str(len(CONTENT))


def test_who_has_the_file_is_redirected_nowhere(api: Deployed, path: str) -> None:
    held = {"If-None-Match": f'"{SHA256}"'}
    for method in ("GET", "HEAD"):
        answer = api.http.request(method, path, params={"redirect": "1"}, headers=held, follow_redirects=False)
        assert answer.status_code == 304


def test_a_file_that_is_gone_is_redirected_nowhere(api: Deployed, path: str) -> None:
    api.artifacts.delete_prefix("jobs")
    assert api.http.get(path, params={"redirect": "true"}, follow_redirects=False).status_code == 404


def test_the_client_downloads_from_the_store(api: Deployed, checkpoint: str, tmp_path: Path) -> None:
    with served(without_streams(api)) as url, Client(url) as client:
        described = client.download_checkpoint(checkpoint, tmp_path / "best.safetensors")
        printed = CliRunner().invoke(main, ["download", checkpoint, str(tmp_path / "again"), "--url", url])
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "again").read_bytes() == CONTENT
    assert described["sha256"] == SHA256
    assert printed.stdout.split("\t")[1:] == [str(len(CONTENT)), f"{SHA256}\n"]


@pytest.mark.parametrize("more", [{"ARTIFACTS_PUBLIC_ENDPOINT": "http://127.0.0.1:9"}])  # where nobody listens
def test_the_client_downloads_through_the_api_where_it_does_not_reach_the_store(
    api: Deployed, checkpoint: str, tmp_path: Path
) -> None:
    with served(api.app) as url, Client(url) as client:
        client.download_checkpoint(checkpoint, tmp_path / "best.safetensors")
    assert (tmp_path / "best.safetensors").read_bytes() == CONTENT


def test_a_download_that_is_not_what_was_stored_leaves_nothing(api: Deployed, checkpoint: str, tmp_path: Path) -> None:
    key = api.reader.checkpoint(checkpoint).key
    (tmp_path / "other").write_bytes(b"other")
    with (tmp_path / "other").open("rb") as other:
        api.artifacts.put_file(f"{key}/model.safetensors", other)
    with (
        served(api.app) as url,
        Client(url) as client,
        pytest.raises(ServiceError, match="is not what was stored: its sha256 differs"),
    ):
        client.download_checkpoint(checkpoint, tmp_path / "best.safetensors")
    assert not list(tmp_path.glob("*best*"))


def test_the_api_key_is_not_sent_on_to_the_store(
    database_url: str, broker_url: str, tmp_path: Path, seaweed: SeaweedFS, checkpoint: str, api: Deployed
) -> None:
    """Neither by our client nor by one that follows redirects by itself."""
    store = Recorder()
    lasts = timedelta(days=1)
    _, key = api.app.state.backend.tenants.create_key("default", name="", scopes=["jobs:read"], lasts=lasts)
    public = {"ARTIFACTS_URL": api.settings.artifacts_url, "ARTIFACTS_PUBLIC_ENDPOINT": store.url}
    with (
        store,
        deployed(database_url, broker_url, tmp_path / "public", **{**seaweed.environment, **public}) as second,
        served(second.app) as url,
        Client(url, key=key) as client,
    ):
        client.download_checkpoint(checkpoint, tmp_path / "best.safetensors")
        known = {"Authorization": f"Bearer {key}"}
        path = f"{url}/v1/checkpoints/{checkpoint}/content?redirect=true"
        assert httpx.get(path, headers=known, follow_redirects=True).content == CONTENT
    assert len(store.asked) == 2
    assert not any("authorization" in headers for headers in store.asked)


def test_while_the_store_is_down_it_is_a_503_that_says_when_to_come_back(
    api: Deployed, checkpoint: str, path: str, seaweed: SeaweedFS, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = api.http.post("/v1/datasets", json={"name": "d", "task": "classification", "format": "image_folder"})
    with seaweed.down():
        answers = [
            api.http.get(path),
            api.http.head(path),
            api.http.get(path, headers={"Range": "bytes=5-"}),
            api.http.get(path, params={"redirect": "true"}),
            api.http.post("/v1/weights", content=FILE),
            api.http.put(f"/v1/datasets/{dataset.json()['id']}/content", content=b"archive"),
            api.http.get("/readyz"),
        ]
    assert {(answer.status_code, answer.headers["Retry-After"]) for answer in answers} == {(503, "5")}
    assert "not ready: artifacts: the store of files does not answer" in caplog.text
    assert api.http.get(path).content == CONTENT


@pytest.mark.parametrize("more", [{"AWS_SECRET_ACCESS_KEY": "wrong"}])
def test_a_wrong_key_is_a_503_and_the_log_says_what_would_do(api: Deployed, caplog: pytest.LogCaptureFixture) -> None:
    api.enrol()
    ready = api.http.get("/readyz")
    assert [fault["pointer"] for fault in ready.json()["errors"]] == ["/artifacts"]
    assert api.http.post("/v1/weights", content=FILE).status_code == 503
    said = (
        "the store of files refuses (SignatureDoesNotMatch); ARTIFACTS_URL must name a bucket that is there, and AWS_*"
    )
    assert said in caplog.text
    assert "wrong" not in caplog.text


def test_a_store_that_hangs_is_a_503_before_the_first_byte(
    api: Deployed, path: str, seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_objects.CLIENT, "read_timeout", timedelta(seconds=0.5))  # type: ignore[typeddict-item,misc]
    monkeypatch.setitem(_objects.RETRIES, "max_retries", 1)  # type: ignore[misc]
    impatient = type(api.artifacts)(api.settings.artifacts_url, api.settings.s3)
    api.app.state.backend = replace(api.app.state.backend, artifacts=impatient)
    with seaweed.hung():
        answer = api.http.get(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_download_that_the_store_cuts_off_in_the_middle_goes_on_by_a_range(
    api: Deployed, seaweed: SeaweedFS, tmp_path: Path
) -> None:
    """Of more than all the buffers on the way hold."""
    content, came = CONTENT * 10, bytearray()
    path = f"/v1/checkpoints/{stored(api, tmp_path, content)}/content"
    with served(api.app) as url, httpx.Client(base_url=url, timeout=30) as http:
        with http.stream("GET", path) as response:
            chunks = response.iter_bytes(2**20)
            came += next(chunks)
            with seaweed.down(), pytest.raises(httpx.RemoteProtocolError):
                deque(map(came.extend, chunks), maxlen=0)
        rest = http.get(path, headers={"Range": f"bytes={len(came)}-", "If-Range": response.headers["ETag"]})
    assert rest.status_code == 206
    assert len(came) < len(content)
    assert bytes(came) + rest.content == content


class Recorder:
    """In the store's place for clients: it serves the file and keeps the headers that came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        asked = self.asked

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._thread = Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def without_streams(api: Deployed) -> FastAPI:
    """The app, whose own way to the file is closed: what comes came from the store."""
    artifacts = type("Unread", (type(api.artifacts),), {"stream": None})
    closed = artifacts(api.settings.artifacts_url, api.settings.s3)
    api.app.state.backend = replace(api.app.state.backend, artifacts=closed)
    return api.app
