"""Data sets by the Python client and by the command line: uploads that outlast errors, and what is shown."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from service import client as client_module
from service.cli import main
from service.client import Client, RequestRefused, ServiceError, ServiceUnreachable
from service.store.artifacts import Artifacts
from tests.service.deployed import Deployed, served
from tests.service.test_dataset_routes import FLOWERS, NONE, check, stored
from tests.service.test_dataset_rows import REJECTED, REPORT
from tests.service.work import until

CONTENT = bytes(range(250)) * 40
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.02)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.zip"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def url(api: Deployed) -> Iterator[str]:
    with served(api.app) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def dataset(client: Client) -> str:
    made: str = client.create_dataset("flowers", task="classification", format_="image_folder")["id"]
    return made


class Failing(httpx.HTTPTransport):
    """Lets through what is sent but for parts whose turn it is to fail: after the head, after half, after the end."""

    def __init__(self, fails: dict[int, str]) -> None:
        super().__init__()
        self.fails = fails
        self.parts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "PUT":
            return super().handle_request(request)
        self.parts += 1
        how = self.fails.get(self.parts)
        if how == "unsent":
            raise httpx.ConnectError("nobody is there")
        if how == "half":
            request.stream = Half(request.stream)  # type: ignore[arg-type]  # the blocks, whatever httpx calls them
        response = super().handle_request(request)
        if how == "unheard":
            response.close()
            raise httpx.ReadError("the answer was lost")
        return response


class Half(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, whole: httpx.SyncByteStream) -> None:
        self._whole = whole

    def __iter__(self) -> Iterator[bytes]:
        for block in self._whole:
            yield block[: len(block) // 2]
            raise httpx.WriteError("the connection broke")


def failing(client: Client, fails: dict[int, str]) -> Failing:
    client.close()
    transport = Failing(fails)
    client._http = httpx.Client(base_url=client.url, transport=transport)
    return transport


def test_an_archive_is_brought_in_parts_and_its_progress_told(
    api: Deployed, client: Client, dataset: str, archive: Path
) -> None:
    told: list[tuple[int, int]] = []
    found = client.upload_dataset(dataset, archive, part_bytes=3000, on_progress=lambda *each: told.append(each))
    assert found["status"] == "checking"
    assert stored(api, dataset) == CONTENT
    assert [part.size_bytes for part in api.reader.dataset_parts(dataset)] == [3000, 3000, 3000, 1000]
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, 10_000), (10_000, 10_000))
    assert client.upload_dataset(dataset, archive)["status"] == "checking", "it is all there already"


def test_an_upload_goes_on_after_errors_and_sends_nothing_twice_that_is_kept(
    api: Deployed, client: Client, dataset: str, archive: Path
) -> None:
    transport = failing(client, {1: "unsent", 3: "half", 5: "unheard", 6: "half"})
    assert client.upload_dataset(dataset, archive, part_bytes=3000)["status"] == "checking"
    assert stored(api, dataset) == CONTENT
    assert transport.parts >= 7
    assert [part.size_bytes for part in api.reader.dataset_parts(dataset)] == [3000, 3000, 3000, 1000]


def test_an_upload_that_another_client_has_begun_is_taken_up(
    api: Deployed, client: Client, dataset: str, archive: Path
) -> None:
    held = api.datasets.begin_upload(dataset, 0, len(CONTENT))
    upload = threading.Thread(target=client.upload_dataset, args=(dataset, archive))
    upload.start()
    api.datasets.abandon_upload(held)
    upload.join()
    assert stored(api, dataset) == CONTENT


def test_an_error_that_does_not_pass_is_told(
    api: Deployed, client: Client, dataset: str, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RequestRefused, match="there is no data set"):
        client.upload_dataset(NONE, archive)
    (tmp_path / "empty").touch()
    with pytest.raises(ServiceError, match="empty is empty; an archive would do"):
        client.upload_dataset(dataset, tmp_path / "empty")
    client.upload_dataset(dataset, archive)
    archive.write_bytes(CONTENT + b"more")
    with pytest.raises(RequestRefused, match="is checking and takes no upload"):
        client.upload_dataset(dataset, archive)
    monkeypatch.setattr(client_module, "GONE_SECONDS", 0.1)
    failing(client, dict.fromkeys(range(1, 1000), "unsent"))
    other = client.create_dataset("other", task="detection", format_="voc")["id"]
    with pytest.raises(ServiceUnreachable, match="nobody is there"):
        client.upload_dataset(other, archive)


def test_data_sets_are_waited_for_looked_at_and_deleted(
    api: Deployed, client: Client, dataset: str, archive: Path
) -> None:
    client.upload_dataset(dataset, archive)
    seen: list[Any] = []
    taken = check(api)

    def on_change(stand: Any) -> None:
        seen.append(stand["progress"])
        if len(seen) == 1:
            api.checks.renew(taken, {"phase": "checking", "done": 1, "of": 2})
        elif len(seen) == 2:
            api.artifacts.put_file(f"datasets/{dataset}/samples.png", io.BytesIO(CONTENT))
            api.checks.ready(taken, REPORT)

    assert client.wait_dataset(dataset, on_change)["status"] == "ready"
    assert seen == [None, {"phase": "checking", "done": 1, "of": 2}]
    assert client.dataset_samples(dataset) == CONTENT
    assert [each["id"] for each in client.datasets(status="ready")] == [dataset]
    client.delete_dataset(dataset)
    with pytest.raises(RequestRefused, match="there is no data set"):
        client.dataset(dataset)


# The command line


def acmix(url: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["datasets", *words, "--url", url])


def test_the_command_line_creates_uploads_lists_shows_and_deletes(api: Deployed, url: str, archive: Path) -> None:
    options = ["--task", FLOWERS["task"], "--format", FLOWERS["format"], "--options", '{"image_px": 64}']
    made = acmix(url, "create", "flowers", *options)
    assert made.exit_code == 0, made.output
    dataset = made.stdout.strip()
    sent = acmix(url, "upload", dataset, str(archive))
    assert (sent.exit_code, sent.stdout) == (0, "checking\n")
    assert stored(api, dataset) == CONTENT
    assert api.reader.dataset(dataset).options == {"image_px": 64}
    assert acmix(url, "list").stdout == f"{dataset}\tchecking\tclassification\timage_folder\tflowers\n"
    assert json.loads(acmix(url, "show", dataset).stdout)["upload"] == {"offset": 10_000, "total": 10_000}
    refused = acmix(url, "delete", dataset)
    assert refused.exit_code == 1
    assert "is being checked" in refused.stderr
    api.checks.ready(check(api), REPORT)
    assert acmix(url, "delete", dataset).exit_code == 0
    assert acmix(url, "list").stdout == ""


def test_the_command_line_tells_why_a_data_set_was_rejected(
    api: Deployed, url: str, dataset: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject() -> None:
        until(lambda: api.reader.dataset(dataset).status == "checking")
        api.checks.reject(check(api), {**REJECTED, "faults_total": 3})

    housekeeper = threading.Thread(target=reject)
    housekeeper.start()
    sent = acmix(url, "upload", dataset, str(archive), "--watch")
    housekeeper.join()
    assert (sent.exit_code, sent.stdout) == (1, "rejected\n")
    assert "acmix: 3 faults\na.png: no image\nand 2 more\n" in sent.stderr


def test_the_command_line_tells_what_is_wrong_with_a_declaration(url: str) -> None:
    wrong = acmix(url, "create", "flowers", "--task", "detection", "--format", "coc")
    assert wrong.exit_code == 1
    assert "/format: no format of detection is named 'coc'; there are: coco, voc" in wrong.stderr
    wrong = acmix(url, "create", "flowers", "--task", "detection", "--format", "coco", "--options", "[]")
    assert "--options must hold a JSON object" in wrong.stderr


def test_parts_are_stored_while_the_files_can_be_reached_and_not_before(
    api: Deployed, client: Client, dataset: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that refuses is a fault of the service: nothing is listed, and the next upload is taken at once."""

    def refuse(*_: Any) -> None:
        raise OSError("the store is gone")

    with monkeypatch.context() as away:
        away.setattr(Artifacts, "put_file", refuse)
        with pytest.raises(RequestRefused) as caught:
            client.upload_dataset(dataset, archive)
    assert caught.value.status == 500
    assert api.reader.dataset_parts(dataset) == []
    assert client.upload_dataset(dataset, archive)["status"] == "checking"
