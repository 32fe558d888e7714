import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from httpx import Response

from service.store.ids import new_id
from tests.service.deployed import Deployed
from tests.service.work import claim, save

CONTENT = bytes(range(256)) * 9000  # more than two chunks of the artifacts
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A checkpoint whose file is there."""

    api: Deployed
    id: str
    job: str

    def content(self, **headers: str) -> Response:
        return self.api.http.get(f"/v1/checkpoints/{self.id}/content", headers=headers)


@pytest.fixture
def stored(api: Deployed, tmp_path: Path) -> Stored:
    api.enrol()
    api.submit()
    job = claim(api.ledger).job
    folder = tmp_path / "step-000000010"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "manifest.json").write_text("{}")
    key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
    api.artifacts.put_folder(key, folder)
    saved, _ = save(api.ledger, job, 10, 0.75, key=key, size_bytes=SIZE, sha256=SHA256)
    return Stored(api, saved.id, job.id)


def test_the_checkpoints_of_a_job_are_listed_newest_first(stored: Stored) -> None:
    job = stored.api.reader.job(stored.job)
    newer, _ = save(stored.api.ledger, job, 20, 0.5)
    found = stored.api.get(f"/v1/jobs/{stored.job}/checkpoints")["data"]
    assert [(each["id"], each["step"], each["best"]) for each in found] == [
        (newer.id, 20, False),
        (stored.id, 10, True),
    ]


def test_a_checkpoint_says_what_it_is_and_not_where_its_files_lie(stored: Stored) -> None:
    found = stored.api.get(f"/v1/checkpoints/{stored.id}")
    assert found.pop("created_at").endswith("Z")
    assert found == {
        "id": stored.id,
        "job": stored.job,
        "attempt": 1,
        "epoch": 1,
        "step": 10,
        "kind": "epoch",
        "metrics": {"val/accuracy": 0.75},
        "size_bytes": SIZE,
        "sha256": SHA256,
        "best": True,
        "latest": True,
    }


def test_the_whole_file_comes_as_an_attachment(stored: Stored) -> None:
    response = stored.content()
    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["Content-Length"] == str(SIZE)
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{stored.id}.safetensors"'


def test_head_tells_the_same_without_the_file(stored: Stored) -> None:
    whole = stored.content()
    head = stored.api.http.head(f"/v1/checkpoints/{stored.id}/content")
    assert head.content == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Accept-Ranges", "Content-Disposition"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=1000-", 1000, SIZE - 1),
        ("bytes=-5", SIZE - 5, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE - 1),
        (f"bytes=0-{'9' * 18}", 0, SIZE - 1),
    ],
)
def test_a_range_is_answered_with_that_part(stored: Stored, asked: str, first: int, last: int) -> None:
    response = stored.content(Range=asked)
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert response.headers["Content-Length"] == str(last - first + 1)
    assert response.content == CONTENT[first : last + 1]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 7}-{SIZE + 9}", "bytes=-0"])
def test_a_range_beyond_the_file_tells_its_size(stored: Stored, asked: str) -> None:
    response = stored.content(Range=asked)
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=5-2", "lines=0-9", "bytes=0-1,5-6", "bytes=a-b", "bytes=٣-٤", "0-9"]
)
def test_a_range_that_is_none_is_answered_with_the_whole_file(stored: Stored, asked: str) -> None:
    response = stored.api.http.get(f"/v1/checkpoints/{stored.id}/content", headers={"Range": asked.encode()})
    assert response.status_code == 200
    assert response.content == CONTENT


def test_a_download_that_was_cut_off_goes_on_only_with_the_same_file(stored: Stored) -> None:
    same = stored.content(**{"Range": "bytes=100-", "If-Range": f'"{SHA256}"'})
    other = stored.content(**{"Range": "bytes=100-", "If-Range": '"another"'})
    assert (same.status_code, same.content) == (206, CONTENT[100:])
    assert (other.status_code, other.content) == (200, CONTENT)


@pytest.mark.parametrize("tags", [f'"{SHA256}"', f'W/"{SHA256}"', f'"other", "{SHA256}"', "*"])
def test_a_file_that_the_caller_has_is_not_sent_again(stored: Stored, tags: str) -> None:
    response = stored.content(**{"If-None-Match": tags})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == f'"{SHA256}"'
    head = stored.api.http.head(f"/v1/checkpoints/{stored.id}/content", headers={"If-None-Match": tags})
    assert head.status_code == 304


def test_another_file_than_the_callers_is_sent(stored: Stored) -> None:
    assert stored.content(**{"If-None-Match": '"other"'}).status_code == 200


def test_a_checkpoint_whose_files_are_gone_is_a_404(stored: Stored) -> None:
    stored.api.artifacts.delete_prefix(f"jobs/{stored.job}")
    assert stored.content().status_code == 404
    assert stored.api.http.head(f"/v1/checkpoints/{stored.id}/content").status_code == 404


def test_a_folder_serves_nobody_itself_so_the_file_comes_where_a_redirect_is_asked_for(stored: Stored) -> None:
    path = f"/v1/checkpoints/{stored.id}/content?redirect=true"
    whole = stored.api.http.get(path, follow_redirects=False)
    part = stored.api.http.get(path, headers={"Range": "bytes=0-9"}, follow_redirects=False)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert (part.status_code, part.content) == (206, CONTENT[:10])
    assert stored.api.http.head(path, follow_redirects=False).status_code == 200
