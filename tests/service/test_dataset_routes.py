"""Data sets over HTTP: declared, uploaded whole and in parts, refused, shown, deleted."""

import base64
import hashlib
import io
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx import Response
from redis import Redis

from acmix.formats import FORMATS
from service import body, uploads
from service.store.datasets import samples_of
from service.store.rows import DatasetPart
from tests.service.deployed import Deployed, deployed, served
from tests.service.test_dataset_rows import REJECTED, REPORT, submit_reading
from tests.service.work import at_once, until

NONE = "ds_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
FLOWERS = {"name": "flowers", "task": "classification", "format": "image_folder"}
ARCHIVE = bytes(range(256)) * 4
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def dataset(api: Deployed) -> str:
    """The id of an empty one."""
    return create(api)


def create(api: Deployed, **more: Any) -> str:
    response = api.http.post("/v1/datasets", json={**FLOWERS, **more})
    assert response.status_code == 201, response.text
    made: str = response.json()["id"]
    assert response.headers["Location"] == f"/v1/datasets/{made}"
    return made


def put(api: Deployed, dataset: str, content: Any = ARCHIVE, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.http.put(f"/v1/datasets/{dataset}/content", content=content, headers=named)


def put_part(api: Deployed, dataset: str, start: int, end: int, total: int = len(ARCHIVE), **headers: str) -> Response:
    return put(api, dataset, ARCHIVE[start:end], Content_Range=f"bytes {start}-{end - 1}/{total}", **headers)


def offset(api: Deployed, dataset: str) -> tuple[str | None, str | None]:
    response = api.http.head(f"/v1/datasets/{dataset}/content")
    assert (response.status_code, response.content) == (200, b"")
    return response.headers.get("Upload-Offset"), response.headers.get("Upload-Length")


def stored(api: Deployed, dataset: str) -> bytes:
    """The archive as a housekeeper finds it."""
    parts = api.reader.dataset_parts(dataset)
    return b"".join(chunk for part in parts for chunk in api.artifacts.stream(part.key))


def files(api: Deployed) -> list[str]:
    """All that lies in the data folder, artifacts included."""
    return sorted(str(path) for path in api.settings.data_folder.rglob("*") if path.is_file())


def refused(response: Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    return body


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def check(api: Deployed) -> Any:
    """A housekeeper takes it on."""
    found = api.checks.claim()
    assert found is not None
    return found


def ready(api: Deployed) -> str:
    """One that was found good."""
    made = create(api)
    assert put(api, made).status_code == 200
    api.artifacts.put_file(samples_of(made), io.BytesIO(b"a picture"))
    assert api.checks.ready(check(api), REPORT)
    return made


def rings(api: Deployed) -> int:
    with Redis(unix_socket_path=api.settings.broker_url.removeprefix("redis+socket://")) as broker:
        return int(broker.llen("light"))


# Declared


def test_a_data_set_that_was_declared_is_empty_and_shown(api: Deployed) -> None:
    made = create(api, options={"image_px": 64}, sha256="a" * 64)
    shown = api.get(f"/v1/datasets/{made}")
    assert {name: value for name, value in shown.items() if value is not None and name != "created_at"} == {
        "id": made,
        **FLOWERS,
        "options": {"image_px": 64},
        "status": "empty",
        "upload": {"offset": 0, "total": None},
    }
    assert api.reader.dataset(made).declared_sha256 == "a" * 64
    assert rings(api) == 0


def test_data_sets_are_listed_newest_first_and_filtered(api: Deployed) -> None:
    first, second = create(api), create(api, name="street", task="detection", format="voc")
    done = ready(api)

    def listed(**query: Any) -> list[str]:
        return [each["id"] for each in api.get("/v1/datasets", params=query)["data"]]

    assert listed() == [done, second, first]
    assert listed(task="detection") == [second]
    assert listed(name="flowers") == [done, first]
    assert listed(status="ready") == [done]
    page = api.get("/v1/datasets", params={"limit": 2})
    assert page["has_more"]
    assert listed(after=page["next"]) == [first]
    assert "classes" not in page["data"][0], "a report may be long"
    assert api.http.get("/v1/datasets", params={"status": "lost"}).status_code == 422


@on_sqlite
def test_every_task_and_format_can_be_declared_and_no_other(api: Deployed) -> None:
    for task, formats in FORMATS.items():
        for format_ in formats:
            create(api, task=task, format=format_)
    for wrong, pointer, allowed, fixes in (
        ({"task": "detect"}, "/task", list(FORMATS), ["detection"]),
        ({"format": "voc"}, "/format", ["image_folder", "imagenet"], None),
        ({"task": "detection", "format": "coc"}, "/format", ["coco", "voc"], ["coco", "voc"]),
    ):
        answer = refused(api.http.post("/v1/datasets", json={**FLOWERS, **wrong}), 422, "dataset_invalid")
        [fault] = answer["errors"]
        assert (fault["pointer"], fault["code"], fault["allowed"]) == (pointer, "unknown_name", allowed)
        assert fault.get("fixes") == fixes
        assert all(name in fault["message"] for name in fixes or allowed)


IMPOSSIBLE = (
    ({"name": None}, "/name", "name must be a string"),
    ({"name": ""}, "/name", "name must have at least 1 character"),
    ({"name": "a\nb"}, "/name", "name must hold no control characters"),
    ({"options": []}, "/options", "options must be an object"),
    ({"sha256": "A" * 64}, "/sha256", "sha256 must be 64 hexadecimal digits in lower case"),
    ({"colour": 1}, "/colour", "'colour' is not a field of a data set"),
    ({"formats": "voc"}, "/formats", "'formats' is not a field of a data set"),
    ({"path": "/etc"}, "/path", "path='/etc' must be a path below the data root, without '..'"),
    ({"path": "../x"}, "/path", "path='../x' must be a path below the data root, without '..'"),
    ({"path": "a/../../x"}, "/path", "path='a/../../x' must be a path below the data root, without '..'"),
    ({"path": "absent"}, "/path", "path='absent' is no folder below the data root"),
    ({"path": "file"}, "/path", "path='file' is no folder below the data root"),
    ({"path": "out"}, "/path", "path='out' is a link out of the data root; mount or copy the files instead"),
    ({"path": "in", "sha256": "a" * 64}, "/sha256", "sha256 is an archive's; leave it out where path is given"),
)


@on_sqlite
def test_a_declaration_that_cannot_be_is_told_where_and_why(api: Deployed) -> None:
    root = api.settings.data_root
    (root / "in").mkdir(parents=True)
    (root / "file").touch()
    (root / "out").symlink_to(root.parent)
    for wrong, pointer, message in IMPOSSIBLE:
        answer = refused(api.http.post("/v1/datasets", json={**FLOWERS, **wrong}), 422, "dataset_invalid")
        [fault] = answer["errors"]
        assert (fault["pointer"], fault["message"]) == (pointer, message)
    assert api.get("/v1/datasets")["data"] == []


@on_sqlite
def test_what_lies_below_the_data_root_is_checked_at_once_and_takes_no_upload(api: Deployed) -> None:
    (api.settings.data_root / "flowers").mkdir(parents=True)
    made = create(api, path="flowers")
    assert (api.get(f"/v1/datasets/{made}")["status"], rings(api)) == ("checking", 1)
    assert api.get(f"/v1/datasets/{made}")["upload"] is None
    answer = refused(put(api, made), 409, "conflict")
    assert (
        answer["detail"] == f"data set {made} lies at flowers and takes no upload; create another one for other content"
    )


@on_sqlite
def test_a_data_root_that_only_the_workers_see_is_left_to_them(api: Deployed) -> None:
    assert not api.settings.data_root.exists()
    assert api.get(f"/v1/datasets/{create(api, path='flowers')}")["status"] == "checking"


# Uploaded


@pytest.mark.parametrize("chunked", [False, True])
def test_an_archive_sent_whole_is_kept_and_to_be_checked(chunked: bool, api: Deployed, dataset: str) -> None:
    response = put(api, dataset, iter([ARCHIVE[:100], ARCHIVE[100:]]) if chunked else ARCHIVE)
    assert response.status_code == 200, response.text
    assert (response.json()["status"], response.json()["upload"]) == ("checking", {"offset": 1024, "total": 1024})
    assert (response.headers["Upload-Offset"], response.headers["Upload-Length"]) == ("1024", "1024")
    assert stored(api, dataset) == ARCHIVE
    assert rings(api) == 1


def test_an_archive_sent_in_parts_is_the_same(api: Deployed, dataset: str) -> None:
    assert offset(api, dataset) == ("0", None)
    for start, end in ((0, 300), (300, 301)):
        response = put_part(api, dataset, start, end, Content_Digest=digest(ARCHIVE[start:end]))
        assert (response.status_code, response.json()["status"]) == (200, "uploading")
        assert offset(api, dataset) == (str(end), "1024")
    assert rings(api) == 0
    assert put_part(api, dataset, 301, 1024).json()["status"] == "checking"
    assert stored(api, dataset) == ARCHIVE
    assert [part.size_bytes for part in api.reader.dataset_parts(dataset)] == [300, 1, 723]
    assert rings(api) == 1


@on_sqlite
def test_a_long_body_stands_on_the_disk_one_piece_at_a_time(
    api: Deployed, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WRITE_BYTES", 2**14)
    monkeypatch.setattr(uploads, "PIECE_BYTES", 2**20)
    long = ARCHIVE * 4096
    with served(api.app) as url:
        assert httpx.put(f"{url}/v1/datasets/{dataset}/content", content=long).status_code == 200
    sizes = [part.size_bytes for part in api.reader.dataset_parts(dataset)]
    assert len(sizes) > 2
    assert all(2**20 <= size < 2**21 for size in sizes[:-1])
    assert stored(api, dataset) == long


@pytest.mark.parametrize(
    ("start", "end", "total", "sentence"),
    [
        (0, 100, 1024, "has 300 bytes; an upload goes on at byte 300, not at 0"),
        (200, 400, 1024, "has 300 bytes; an upload goes on at byte 300, not at 200"),
        (301, 400, 1024, "has 300 bytes; an upload goes on at byte 300, not at 301"),
        (300, 400, 1023, "has 1024 bytes by the parts before; this one says 1023"),
    ],
)
@on_sqlite
def test_a_part_goes_on_where_the_one_before_ended(
    start: int, end: int, total: int, sentence: str, api: Deployed, dataset: str
) -> None:
    put_part(api, dataset, 0, 300)
    before = files(api)
    response = put_part(api, dataset, start, end, total)
    answer = refused(response, 409, "conflict" if total == 1023 else "offset_differs")
    assert answer["detail"] == f"data set {dataset} {sentence}"
    assert (answer["resource_status"], answer["allowed_actions"]) == ("uploading", ["upload", "delete"])
    assert (response.headers["Upload-Offset"], response.headers["Upload-Length"]) == ("300", "1024")
    assert refused(put(api, dataset), 409, "offset_differs")["detail"].endswith("not at 0")
    assert files(api) == before
    assert put_part(api, dataset, 300, 1024).json()["status"] == "checking"


NO_HEADERS: tuple[tuple[dict[str, str], str, str], ...] = (
    ({"Content_Range": "items 0-9/10"}, "content-range", "the unit of Content-Range is 'items'; bytes would do"),
    ({"Content_Range": "bytes 0-9/*"}, "content-range", "must read like 'bytes 0-1023/4096', the total included"),
    ({"Content_Range": "bytes */10"}, "content-range", "must read like"),
    ({"Content_Range": "bytes=0-9/10"}, "content-range", "must read like"),
    ({"Content_Range": "bytes 0-/10"}, "content-range", "must read like"),
    ({"Content_Range": "bytes -1-9/10"}, "content-range", "must read like"),
    ({"Content_Range": f"bytes 0-{9**40}/{9**41}"}, "content-range", "must read like"),
    ({"Content_Range": "bytes 9-0/10"}, "content-range", "the first must not be above the last"),
    ({"Content_Range": "bytes 0-10/10"}, "content-range", "the last must be below the total"),
    ({"Content_Range": "bytes 0-8/10"}, "content-length", "Content-Length is 10; Content-Range spans 9 bytes"),
    ({"Content_Range": "bytes 0-10/11"}, "content-length", "Content-Length is 10; Content-Range spans 11 bytes"),
    ({"Content_Digest": "sha-256=abc"}, "content-digest", "must read like 'sha-256=:BASE64:'"),
    ({"Content_Digest": "sha-256=:&&:"}, "content-digest", "must be 32 bytes in base64"),
    ({"Content_Digest": "sha-256=:AAAA:"}, "content-digest", "must be 32 bytes in base64"),
)


@on_sqlite
def test_headers_that_cannot_be_are_refused_before_a_byte_is_kept(api: Deployed, dataset: str) -> None:
    for headers, header, sentence in NO_HEADERS:
        answer = refused(put(api, dataset, b"0123456789", **headers), 422, "parameter_invalid")
        [fault] = answer["errors"]
        assert fault["pointer"] == f"/header/{header}"
        assert sentence in fault["message"]
    assert (offset(api, dataset), files(api)) == (("0", None), [])


@on_sqlite
@pytest.mark.parametrize(
    ("content", "headers", "code", "sentence"),
    [
        (b"", {}, "length_mismatch", "the body has no bytes; send an archive"),
        (b"12345", {"Content_Range": "bytes 0-5/9"}, "length_mismatch", "the body has 5 bytes, not the 6 that"),
        (b"1234567", {"Content_Range": "bytes 0-5/9"}, "length_mismatch", "the body has more than the 6 bytes that"),
        (b"12345", {"Content_Digest": digest(b"54321")}, "digest_mismatch", f"the body's digest is {digest(b'12345')}"),
    ],
)
def test_a_body_that_is_not_as_announced_is_not_kept(
    content: bytes, headers: dict[str, str], code: str, sentence: str, api: Deployed, dataset: str
) -> None:
    assert sentence in refused(put(api, dataset, iter([content]), **headers), 422, code)["detail"]
    assert (offset(api, dataset), files(api)) == (("0", None), [])
    assert put(api, dataset).status_code == 200, "and the next one is taken at once"


@on_sqlite
def test_an_archive_within_a_form_is_refused(api: Deployed, dataset: str) -> None:
    form = api.http.put(f"/v1/datasets/{dataset}/content", files={"file": ARCHIVE})
    answer = refused(form, 415, "unsupported_media_type")
    assert answer["detail"] == "send the archive itself as the body, not within a form"
    assert (offset(api, dataset), files(api)) == (("0", None), [])


@on_sqlite
def test_a_digest_of_a_kind_that_is_not_known_is_passed_over(api: Deployed, dataset: str) -> None:
    assert put(api, dataset, Content_Digest=f"md5=:AAAA:, {digest(ARCHIVE)}").status_code == 200
    assert put(api, create(api), Content_Digest="sha-512=:AAAA:").status_code == 200


@on_sqlite
def test_an_archive_that_is_too_large_is_refused_before_and_while_it_comes(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WRITE_BYTES", 10)
    monkeypatch.setattr(uploads, "PIECE_BYTES", 100)
    with deployed(database_url, broker_url, tmp_path / "data", MAX_DATASET_BYTES="1024") as api:
        made = create(api)
        for response in (
            put(api, made, bytes(1025)),
            put(api, made, iter([bytes(500)] * 3)),
            put(api, made, b"1", Content_Range="bytes 0-0/1025"),
        ):
            answer = refused(response, 413, "too_large")
            assert (answer["errors"][0]["limit"], answer["detail"]) == (1024, "the archive must be at most 1024 bytes")
        assert (offset(api, made), files(api)) == (("0", None), [])
        assert put(api, made).status_code == 200


@on_sqlite
def test_a_body_that_the_disk_takes_only_in_part_is_refused_and_not_kept(
    api: Deployed, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WRITE_BYTES", 2**16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        refused(put(api, dataset, iter([bytes(2**16)] * 17)), 507, "disk_full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (offset(api, dataset), files(api)) == (("0", None), [])
    assert put(api, dataset).status_code == 200


def test_of_two_uploads_at_once_one_is_kept_whole(api: Deployed, dataset: str) -> None:
    with served(api.app) as url:

        def send(content: bytes) -> int:
            return httpx.put(f"{url}/v1/datasets/{dataset}/content", content=content).status_code

        codes = at_once(*[lambda byte=byte: send(bytes([byte]) * 2_000_000) for byte in range(4)])
    assert sorted(codes) == [200, 409, 409, 409]
    content = stored(api, dataset)
    assert content == bytes([codes.index(200)]) * 2_000_000
    assert len(api.artifacts.prefixes(f"datasets/{dataset}/parts")) == 1


@pytest.mark.parametrize("status", ["checking", "ready", "rejected"])
def test_what_is_there_is_not_uploaded_again(status: str, api: Deployed, dataset: str) -> None:
    put(api, dataset)
    if status == "ready":
        api.checks.ready(check(api), REPORT)
    if status == "rejected":
        api.checks.reject(check(api), REJECTED)
    answer = refused(put(api, dataset), 409, "conflict")
    assert answer["resource_status"] == status
    assert answer["allowed_actions"] == ([] if status == "checking" else ["delete"])
    assert answer["detail"].startswith(f"data set {dataset} is {status} and takes no upload")


# Cut off


@contextmanager
def connected(url: str, dataset: str, headers: str, content: bytes) -> Iterator[socket.socket]:
    """A connection that has sent the head of a request and the beginning of its body."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PUT /v1/datasets/{dataset}/content HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n"
        connection.sendall(head.encode() + content)
        yield connection


def is_held(api: Deployed, dataset: str) -> bool:
    return api.reader.dataset(dataset).upload_expires_at is not None


@pytest.mark.parametrize("headers", ["Content-Length: 1024", "Transfer-Encoding: chunked"])
@on_sqlite
def test_an_upload_that_is_cut_off_leaves_nothing(headers: str, api: Deployed, dataset: str) -> None:
    beginning = ARCHIVE[:500] if "Length" in headers else b"1f4\r\n" + ARCHIVE[:500] + b"\r\n"
    with served(api.app) as url:
        with connected(url, dataset, headers, beginning):
            until(lambda: is_held(api, dataset))
        until(lambda: not is_held(api, dataset))
    assert (offset(api, dataset), files(api)) == (("0", None), [])
    assert api.get(f"/v1/datasets/{dataset}")["status"] == "empty"


def test_a_part_that_is_cut_off_is_lost_alone_and_the_upload_goes_on_behind_the_one_before(
    api: Deployed, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pieces of the lost part were stored already: they go."""
    monkeypatch.setattr(uploads, "WRITE_BYTES", 10)
    monkeypatch.setattr(uploads, "PIECE_BYTES", 100)
    with served(api.app) as url:
        put_part(api, dataset, 0, 300)
        before = files(api)
        headers = f"Content-Range: bytes 300-1023/1024\r\nContent-Length: {1024 - 300}"
        with connected(url, dataset, headers, ARCHIVE[300:800]):
            until(lambda: len(files(api)) > len(before))
            refused(put_part(api, dataset, 300, 1024), 409, "upload_under_way")
        until(lambda: not is_held(api, dataset))
    assert (offset(api, dataset), files(api)) == (("300", "1024"), before)
    assert put_part(api, dataset, 300, 1024).json()["status"] == "checking"
    assert stored(api, dataset) == ARCHIVE


@on_sqlite
def test_an_upload_that_stands_still_is_given_up(api: Deployed, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SILENT_SECONDS", 0.1)
    with (
        served(api.app) as url,
        connected(url, dataset, "Content-Length: 1024", ARCHIVE[:500]) as connection,
        connection.makefile("rb") as answer,
    ):
        assert answer.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
    assert not is_held(api, dataset)
    assert put(api, dataset).status_code == 200


@on_sqlite
def test_an_upload_that_goes_on_for_longer_than_its_lease_keeps_hold_of_it(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WRITE_BYTES", 1)
    with deployed(database_url, broker_url, tmp_path / "data", LEASE_SECONDS="1") as api, served(api.app) as url:
        made = create(api)
        first = api.reader.dataset(made)
        with connected(url, made, "Content-Length: 1024", b"") as connection:
            sent = 0
            until(lambda: is_held(api, made))
            began = api.reader.dataset(made).upload_expires_at
            assert began is not None

            def has_outlived_its_lease() -> bool:
                nonlocal sent
                connection.sendall(ARCHIVE[sent : sent + 1])
                sent += 1
                now = api.reader.dataset(made).upload_expires_at
                assert now is not None
                return now > began + (began - first.created_at)

            until(has_outlived_its_lease)
            connection.sendall(ARCHIVE[sent:])
            until(lambda: api.reader.dataset(made).status == "checking")
        assert stored(api, made) == ARCHIVE


@on_sqlite
def test_what_a_killed_service_had_stored_of_an_upload_goes_with_the_next(api: Deployed, dataset: str) -> None:
    left = api.datasets.begin_upload(dataset, 0, 1024)
    key = f"datasets/{dataset}/parts/{left.number:06d}/{0:015d}"
    api.artifacts.put_file(key, io.BytesIO(ARCHIVE[:500]))
    with api.app.state.backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("UPDATE datasets SET upload_expires_at = '2020-01-01T00:00:00.000000Z'")
    assert put(api, dataset).status_code == 200
    assert stored(api, dataset) == ARCHIVE
    [part] = api.reader.dataset_parts(dataset)
    assert [name for name in files(api) if name.endswith(key)] == []
    assert isinstance(part, DatasetPart)


# Shown and deleted


def test_one_that_is_ready_shows_what_is_in_it_and_its_samples(api: Deployed) -> None:
    made = ready(api)
    shown = api.get(f"/v1/datasets/{made}")
    for name in ("sha256", "size_bytes", "files", "classes", "num_classes", "splits"):
        assert shown[name] == REPORT[name]
    assert (shown["status"], shown["faults"]) == ("ready", None)
    assert shown["checked_at"] is not None
    picture = api.http.get(f"/v1/datasets/{made}/samples.png")
    assert (picture.status_code, picture.headers["Content-Type"], picture.content) == (200, "image/png", b"a picture")
    assert picture.headers["Cache-Control"] == "private, immutable, max-age=31536000"
    held = {"If-None-Match": picture.headers["ETag"]}
    assert api.http.get(f"/v1/datasets/{made}/samples.png", headers=held).status_code == 304


@on_sqlite
def test_one_that_is_rejected_shows_why_and_has_no_samples(api: Deployed, dataset: str) -> None:
    put(api, dataset)
    report = {**REJECTED, "faults_total": 7, "expected": "train/<class>/<image>", "found": "a.png"}
    api.checks.reject(check(api), report)
    shown = api.get(f"/v1/datasets/{dataset}")
    assert shown["status"] == "rejected"
    for name in ("faults", "faults_total", "expected", "found"):
        assert shown[name] == report[name]
    answer = refused(api.http.get(f"/v1/datasets/{dataset}/samples.png"), 404, "not_found")
    assert answer["detail"] == f"data set {dataset} is rejected; its samples can be seen once it is ready"


def test_a_data_set_goes_with_its_files(api: Deployed) -> None:
    for made in (create(api), ready(api)):
        assert api.http.delete(f"/v1/datasets/{made}").status_code == 204
        for response in (api.http.get(f"/v1/datasets/{made}"), api.http.delete(f"/v1/datasets/{made}")):
            refused(response, 404, "not_found")
    assert api.artifacts.prefixes("datasets") == []


def test_a_data_set_stays_while_it_is_checked_or_a_job_reads_it(api: Deployed, dataset: str) -> None:
    put(api, dataset)
    answer = refused(api.http.delete(f"/v1/datasets/{dataset}"), 409, "conflict")
    assert (answer["resource_status"], answer["allowed_actions"]) == ("checking", [])
    assert api.checks.ready(check(api), REPORT)
    job = submit_reading(api.ledger, dataset)
    answer = refused(api.http.delete(f"/v1/datasets/{dataset}"), 409, "conflict")
    assert answer["detail"] == f"job {job.id} is queued and reads {dataset}; cancel it or wait for its end"
    assert stored(api, dataset) == ARCHIVE
    api.ledger.request_cancel(job.id)
    assert api.http.delete(f"/v1/datasets/{dataset}").status_code == 204


@on_sqlite
def test_a_deletion_that_was_cut_short_is_done_by_the_next(api: Deployed) -> None:
    made = ready(api)
    api.datasets.begin_delete(made)
    refused(api.http.get(f"/v1/datasets/{made}"), 404, "not_found")
    refused(put(api, made), 404, "not_found")
    assert api.http.delete(f"/v1/datasets/{made}").status_code == 204
    assert api.artifacts.prefixes("datasets") == []


@on_sqlite
@pytest.mark.parametrize("dataset", ["ds_1", "wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", NONE])
def test_ids_that_are_none_are_not_found(dataset: str, api: Deployed) -> None:
    path = f"/v1/datasets/{dataset}"
    for response in (api.http.get(path), api.http.delete(path), api.http.get(f"{path}/samples.png"), put(api, dataset)):
        refused(response, 404, "not_found")
    assert api.http.head(f"{path}/content").status_code == 404


@on_sqlite
def test_the_examples_of_the_document_are_declarations_that_are_taken(api: Deployed) -> None:
    document = api.get("/openapi.json")
    body = document["paths"]["/v1/datasets"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/DatasetRequest"}
    assert document["components"]["schemas"]["DatasetRequest"]["required"] == ["name", "task", "format"]
    for example in body["examples"].values():
        assert api.http.post("/v1/datasets", json=example["value"]).status_code == 201
    content = document["paths"]["/v1/datasets/{dataset_id}/content"]
    assert set(content) == {"put", "head"}
    assert {each["name"] for each in content["put"]["parameters"]} == {"dataset_id", "content-range", "content-digest"}
    assert "Upload-Offset" in content["head"]["responses"]["200"]["headers"]
