"""What the project needs, with the extras that are named, a line each: for a layer that changes of code leave alone."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
print("\n".join([*project["dependencies"], *(line for extra in extras for line in extra)]))
