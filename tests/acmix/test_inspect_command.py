"""`python -m acmix inspect`: its lines, its exit status, and what it takes of the machine."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.acmix.photos import write_photos, zip_of


def _command(into: Path, *arguments: object, note_imports: bool = False) -> tuple[int, list[dict], str]:
    """Exit status, lines of stdout, stderr."""
    command = [sys.executable, *(["-X", "importtime"] if note_imports else []), "-m", "acmix", "inspect"]
    command += ["--into", into, "--task", "classification", "--format", "image_folder", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_the_command_tells_progress_and_ends_with_the_report(tmp_path):
    whole = zip_of(write_photos(tmp_path / "photos"), tmp_path / "x").read_bytes()
    parts = [tmp_path / "1", tmp_path / "2"]
    parts[0].write_bytes(whole[:7000])
    parts[1].write_bytes(whole[7000:])
    status, lines, _ = _command(
        tmp_path / "into", "--archive", parts[0], "--archive", parts[1], "--options", '{"image_px": 32}'
    )
    assert status == 0
    assert all(set(line["progress"]) == {"phase", "done", "of"} for line in lines[:-1])
    assert len(lines) > 1
    assert (lines[-1]["status"], lines[-1]["options"]) == ("ready", {"folder": ".", "image_px": 32})
    with Image.open(tmp_path / "into/samples.png") as sheet:
        assert sheet.size == (1000, 1112)


def test_the_command_refuses_an_archive_without_torch(tmp_path):
    (tmp_path / "x").write_bytes(b"no archive")
    status, lines, log = _command(tmp_path / "into", "--archive", tmp_path / "x", note_imports=True)
    assert (status, lines[-1]["status"]) == (0, "rejected")
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert "zstandard" in imported
    assert not imported & {"torch", "numpy", "PIL"}


def test_the_command_fails_where_its_memory_does_not_suffice(tmp_path):
    """A picture of 72 million pixels, which training would read, in 100 MB."""
    photos = write_photos(tmp_path / "photos")
    Image.new("L", (9000, 8000)).save(photos / "train/cat/large.png")
    status, lines, log = _command(tmp_path, "--folder", photos, "--memory-bytes", 100 * 2**20)
    assert status == 1
    assert "MemoryError" in log
    assert all("status" not in line for line in lines)


def test_the_command_takes_lower_limits(tmp_path):
    archive = zip_of(write_photos(tmp_path / "photos"), tmp_path / "x")
    status, lines, _ = _command(tmp_path / "into", "--archive", archive, "--limits", '{"entries": 50}')
    assert (status, lines[-1]["faults_total"]) == (0, 1)
    assert "50 are the most" in lines[-1]["faults"][0]["message"]
