"""The library, but for `python -m acmix`, which is the stand-in beside this file."""

import os
from pathlib import Path

_LIBRARY = Path(os.environ["PYTHON_CHAOS_LIBRARY"])
__path__.append(str(_LIBRARY))
exec(compile((_LIBRARY / "__init__.py").read_text(), str(_LIBRARY / "__init__.py"), "exec"))  # our own file
