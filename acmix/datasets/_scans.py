"""scikit-learn's scans of handwritten digits."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path("datasets", "data", "digits.csv.gz")


def digit_scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scans (1797, 8, 8) from 0, paper, to 16, ink; and labels (1797,).

    Read from scikit-learn's file: importing scikit-learn takes 3 s. Where it keeps them elsewhere, it is asked.
    """
    package = find_spec("sklearn")
    file = Path(package.origin).parent / FILE if package and package.origin else None
    if file and file.is_file():
        rows: NDArray[np.float64] = np.loadtxt(file, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return found.images, found.target.astype(np.int64)
