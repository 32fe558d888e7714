"""What an image's Python can import, without an image: an environment with links to what its requirements name."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.deploy.composed import ROOT

OURS = ("acmix", "service", "worker")
COMMANDS = {"acmix": "service.cli:main", "uvicorn": "uvicorn.main:main"}


def environment(folder: Path, extras: Sequence[str]) -> Path:
    """Its folder of commands. Made like the Dockerfile's own: requirements of pyproject.toml, then our packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = (folder / "lib").glob("python3*/site-packages")
    for each in _closure(extras):
        for top in _tops(each):
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(top))))
    for name in OURS:
        (packages / name).symlink_to(ROOT / name)
    own = distribution("acmix-service")
    (packages / own._path.name).symlink_to(own._path)  # type: ignore[attr-defined]  # where its version stands
    for name, entry in COMMANDS.items():
        module, _, function = entry.partition(":")
        command = folder / "bin" / name
        called = f'if __name__ == "__main__":\n    {function}()\n'  # not where uvicorn's own children begin
        command.write_text(f"#!{folder}/bin/python\nfrom {module} import {function}\n{called}")
        command.chmod(0o755)
    return folder / "bin"


def _closure(extras: Sequence[str]) -> Iterator[Distribution]:
    """Every distribution that is needed, each once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    wanted, seen = [Requirement(line) for line in lines], set()
    while wanted:
        requirement = wanted.pop()
        known = (requirement.name.lower(), frozenset(requirement.extras))
        if known in seen:
            continue
        seen.add(known)
        found = distribution(requirement.name)
        yield found
        for line in found.requires or ():
            further = Requirement(line)
            told = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if further.marker is None or any(further.marker.evaluate(each) for each in told):
                wanted.append(further)


def _tops(each: Distribution) -> set[str]:
    """What it has put beside other packages: folders and single modules."""
    names = {file.parts[0] for file in each.files or ()}
    return {name for name in names if name not in {"..", "__pycache__"}}
