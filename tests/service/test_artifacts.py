"""Files by key, in a folder and in a bucket; and what a bucket's server that is away or refuses comes to."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from service.settings import SettingInvalid
from service.store.artifacts import PART_BYTES, Artifacts
from service.store.errors import ArtifactExists, ArtifactNotFound, ArtifactsAway, ArtifactsRefused
from tests.seaweed import READER, SeaweedFS

on_disk = pytest.mark.parametrize("artifacts", ["file"], indirect=True)


@pytest.fixture(params=["file", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    """Of either kind."""
    if request.param == "file":
        return Artifacts(f"file://{tmp_path}/with%20space/artifacts")
    seaweed: SeaweedFS = request.getfixturevalue("seaweed")
    return seaweed.artifacts(f"{uuid4()}/with%20space")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-10"
    (folder / "deeper").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    (folder / "deeper" / "empty").write_bytes(b"")
    (folder / "manifest.json").write_text('{"files": 2}')
    return folder


def test_a_folder_comes_back_as_it_was_put(artifacts: Artifacts, checkpoint: Path, tmp_path: Path) -> None:
    artifacts.put_folder("jobs/a/one", checkpoint)
    artifacts.fetch_folder("jobs/a/one", tmp_path / "back")
    for path in ("model.safetensors", "deeper/empty", "manifest.json"):
        assert (tmp_path / "back" / path).read_bytes() == (checkpoint / path).read_bytes()


@on_disk
def test_the_folder_of_a_url_is_made(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.ping()
    assert (tmp_path / "with space" / "artifacts").is_dir()


@on_disk
def test_ping_raises_when_the_folder_is_gone(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "with space" / "artifacts").rmdir()
    with pytest.raises(OSError, match="is not a folder that can be written to"):
        artifacts.ping()


@on_disk
def test_the_manifest_is_put_last(artifacts: Artifacts, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "zz").write_bytes(b"late in the alphabet")
    artifacts.put_folder("jobs/a/one", checkpoint)
    stored = [path for path in (tmp_path / "with space").rglob("*") if path.is_file()]
    assert len(stored) == 4
    assert max(stored, key=lambda path: path.stat().st_mtime_ns).name == "manifest.json"


def test_a_folder_without_a_manifest_is_not_put(artifacts: Artifacts, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        artifacts.put_folder("jobs/a/one", checkpoint)
    assert artifacts.prefixes("jobs") == []


def test_putting_the_same_folder_again_changes_nothing_and_another_one_is_refused(
    artifacts: Artifacts, checkpoint: Path
) -> None:
    artifacts.put_folder("jobs/a/one", checkpoint)
    artifacts.put_folder("jobs/a/one", checkpoint)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ArtifactExists, match="put the folder under a new key"):
        artifacts.put_folder("jobs/a/one", checkpoint)
    assert artifacts.head("jobs/a/one/model.safetensors") == 256 * 20_000


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 1), (5, 10), (5_119_999, None), (5, 10**9), (3, 2_500_000)])
def test_any_range_of_bytes_is_streamed(start: int, end: int | None, artifacts: Artifacts, checkpoint: Path) -> None:
    artifacts.put_folder("jobs/a/one", checkpoint)
    streamed = b"".join(artifacts.stream("jobs/a/one/model.safetensors", start, end))
    assert streamed == (checkpoint / "model.safetensors").read_bytes()[start:end]


def test_a_range_beyond_the_end_and_an_empty_file_stream_nothing(artifacts: Artifacts, checkpoint: Path) -> None:
    artifacts.put_folder("jobs/a/one", checkpoint)
    assert list(artifacts.stream("jobs/a/one/model.safetensors", 10**9)) == []
    assert list(artifacts.stream("jobs/a/one/deeper/empty")) == []


def test_what_is_not_there_is_not_found(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="no artifact has the key 'jobs/none'"):
        artifacts.head("jobs/none")
    with pytest.raises(ArtifactNotFound):
        artifacts.stream("jobs/none")
    with pytest.raises(ArtifactNotFound):
        artifacts.fetch_folder("jobs/none", tmp_path / "back")


def test_deleting_a_prefix_spares_its_neighbours(artifacts: Artifacts, checkpoint: Path, tmp_path: Path) -> None:
    for key in ("jobs/a/one", "jobs/a/two", "jobs/ab/one"):
        artifacts.put_folder(key, checkpoint)
    assert artifacts.prefixes("jobs") == ["jobs/a", "jobs/ab"]
    artifacts.delete_prefix("jobs/a/")
    for gone in ("jobs/a", "jobs/a/one", "jobs/a/two"):
        with pytest.raises(ArtifactNotFound):
            artifacts.fetch_folder(gone, tmp_path / "back")
    artifacts.delete_prefix("jobs/a/")
    assert artifacts.head("jobs/ab/one/model.safetensors") == 256 * 20_000


@on_disk
def test_a_prefix_that_is_deleted_leaves_no_folder(artifacts: Artifacts, checkpoint: Path, tmp_path: Path) -> None:
    for key in ("jobs/a/one", "jobs/ab/one"):
        artifacts.put_folder(key, checkpoint)
    artifacts.delete_prefix("jobs/a/")
    assert artifacts.prefixes("jobs") == ["jobs/ab"]
    assert [path.name for path in (tmp_path / "with space" / "artifacts" / "jobs").iterdir()] == ["ab"]


def test_everything_is_never_deleted_at_once(artifacts: Artifacts) -> None:
    with pytest.raises(ValueError, match="name a job's"):
        artifacts.delete_prefix("/")


def test_a_file_of_several_parts_comes_back(artifacts: Artifacts, tmp_path: Path) -> None:
    content = b"".join(number.to_bytes(8, "big") for number in range(3 * PART_BYTES // 8 + 1))
    (tmp_path / "large").write_bytes(content)
    with (tmp_path / "large").open("rb") as file:
        file.seek(8)
        artifacts.put_file("weights/large", file)
    artifacts.fetch_file("weights/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content[8:]


# A bucket alone


def test_a_signed_url_serves_one_file_to_anybody_for_a_while(seaweed: SeaweedFS, checkpoint: Path) -> None:
    artifacts = seaweed.artifacts("signed")
    artifacts.put_folder("one", checkpoint)
    url = artifacts.signed_url("GET", "one/model.safetensors", valid=timedelta(minutes=5))
    assert url is not None
    assert httpx.get(url, headers={"Range": "bytes=3-5"}).content == bytes([3, 4, 5])
    assert httpx.put(url, content=b"other").status_code == 403
    assert httpx.get(url.replace("one/model.safetensors", "one/manifest.json")).status_code == 403
    for_head = artifacts.signed_url("HEAD", "one/model.safetensors", valid=timedelta(minutes=5))
    assert for_head is not None
    assert httpx.head(for_head).headers["Content-Length"] == str(256 * 20_000)


def test_a_signed_url_is_made_for_the_host_that_clients_see(seaweed: SeaweedFS) -> None:
    artifacts = seaweed.artifacts("signed", ARTIFACTS_PUBLIC_ENDPOINT="https://files.example.com")
    url = artifacts.signed_url("GET", "one/model.safetensors", valid=timedelta(seconds=90))
    assert url is not None
    assert url.startswith("https://files.example.com/artifacts/signed/one/model.safetensors?")
    assert "X-Amz-Expires=90" in url


def test_nothing_is_signed_of_a_folder(tmp_path: Path) -> None:
    assert Artifacts(f"file://{tmp_path}").signed_url("GET", "one", valid=timedelta(minutes=5)) is None


@pytest.mark.parametrize(
    ("bucket", "wrong", "said"),
    [
        ("no-such-bucket", {}, "NoSuchBucket"),
        ("artifacts", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ("artifacts", {"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
    ],
)
def test_a_wrong_bucket_or_key_is_no_file_that_is_missing(
    seaweed: SeaweedFS, checkpoint: Path, tmp_path: Path, bucket: str, wrong: dict[str, str], said: str
) -> None:
    """Or a job would be taken back to its start, since its checkpoints are gone."""
    artifacts = Artifacts(f"s3://{bucket}/refused", seaweed.s3(**wrong))
    calls: list[Callable[[], object]] = [
        artifacts.ping,
        lambda: artifacts.put_folder("one", checkpoint),
        lambda: artifacts.fetch_folder("one", tmp_path / "back"),
        lambda: artifacts.delete_prefix("one"),
    ]
    for call in calls:
        with pytest.raises(ArtifactsRefused, match=rf"refuses \({said}\); ARTIFACTS_URL must name a bucket"):
            call()
    for call in (lambda: artifacts.head("one"), lambda: artifacts.stream("one"), lambda: artifacts.prefixes("one")):
        with pytest.raises(ArtifactsRefused):
            call()


def test_a_key_that_may_only_read_is_refused_what_it_may_not(seaweed: SeaweedFS, checkpoint: Path) -> None:
    seaweed.artifacts("guarded").put_folder("one", checkpoint)
    artifacts = seaweed.artifacts("guarded", **READER)
    assert artifacts.head("one/model.safetensors") == 256 * 20_000
    for call in (lambda: artifacts.put_folder("two", checkpoint), lambda: artifacts.delete_prefix("one")):
        with pytest.raises(ArtifactsRefused, match="AccessDenied"):
            call()


def test_a_server_that_hangs_is_found_away_within_seconds_and_then_used_again(seaweed: SeaweedFS) -> None:
    artifacts = seaweed.artifacts("hung")
    artifacts.ping()
    with seaweed.hung():
        began = time.monotonic()
        with pytest.raises(ArtifactsAway):
            artifacts.ping()
        assert time.monotonic() - began < 6
    artifacts.ping()


def test_a_server_that_is_down_is_away_and_its_files_are_there_when_it_is_back(
    seaweed: SeaweedFS, checkpoint: Path
) -> None:
    artifacts = seaweed.artifacts("down")
    artifacts.put_folder("one", checkpoint)
    with seaweed.down():
        for call in (lambda: artifacts.put_folder("two", checkpoint), lambda: artifacts.head("one/manifest.json")):
            with pytest.raises(ArtifactsAway) as raised:
                call()
            assert not isinstance(raised.value, ArtifactsRefused)
    assert b"".join(artifacts.stream("one/manifest.json")) == b'{"files": 2}'


def test_http_is_spoken_only_where_it_is_asked_for(seaweed: SeaweedFS) -> None:
    with pytest.raises(SettingInvalid, match=r"AWS_ENDPOINT_URL is http, .* AWS_ALLOW_HTTP=true allows it"):
        seaweed.s3(AWS_ALLOW_HTTP="")
