from pathlib import Path

import pytest

from service.store.artifacts import Artifacts
from service.store.errors import ArtifactExists, ArtifactNotFound


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(f"file://{tmp_path}/with%20space/artifacts")


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


def test_the_folder_of_a_url_is_made(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.ping()
    assert (tmp_path / "with space" / "artifacts").is_dir()


def test_ping_raises_when_the_folder_is_gone(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "with space" / "artifacts").rmdir()
    with pytest.raises(OSError, match="is not a folder that can be written to"):
        artifacts.ping()


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
    assert artifacts.prefixes("jobs") == ["jobs/ab"]
    artifacts.delete_prefix("jobs/a/")
    assert [path.name for path in (tmp_path / "with space" / "artifacts" / "jobs").iterdir()] == ["ab"]


def test_everything_is_never_deleted_at_once(artifacts: Artifacts) -> None:
    with pytest.raises(ValueError, match="name a job's"):
        artifacts.delete_prefix("/")
