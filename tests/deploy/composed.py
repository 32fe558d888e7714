"""docker-compose.yml as Compose itself reads it, and the Dockerfile as far as the tests need it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tests

ROOT = Path(tests.__path__[0]).parent
COMPOSE = Path(sys.executable).with_name("docker-compose")
ONE_SHOTS = ("migrate",)


def compose(*arguments: str, environment: Mapping[str, str], files: Sequence[str] = ("docker-compose.yml",)) -> str:
    """What it prints. Neither the shell's variables nor an .env of this folder are seen; a warning is a fault."""
    chosen = [word for file in files for word in ("--file", str(ROOT / file))]
    done = subprocess.run(
        [COMPOSE, *chosen, "--env-file", "/dev/null", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def config(
    *profiles: str, environment: Mapping[str, str], files: Sequence[str] = ("docker-compose.yml",)
) -> dict[str, Any]:
    """Every service of these profiles with all that stands about it; `*` is all profiles."""
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    found: dict[str, Any] = json.loads(
        compose(*chosen, "config", "--format", "json", environment=environment, files=files)
    )
    return found


def stages() -> list[str]:
    """Of the Dockerfile, each from behind its FROM on, with long lines joined."""
    text = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    return re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]


def image_environment(target: str) -> dict[str, str]:
    """What the Dockerfile sets for an image, its PATH aside."""
    named = {stage.split()[2]: stage for stage in stages()}
    lines = [line for stage in ("runtime", target) for line in named[stage].splitlines() if line.startswith("ENV ")]
    pairs = [pair.partition("=") for line in lines for pair in line.removeprefix("ENV ").split()]
    return {name: value for name, _, value in pairs if name != "PATH"}
