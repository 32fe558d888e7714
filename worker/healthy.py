"""`python -m worker.healthy ROLE`: exit status 0 if that process is alive. For a container's own check of itself.

It is not part of `python -m worker`: that imports what works, and this runs every few seconds.
"""

import argparse
import math
import sys

from service import settings
from worker.alive import SignOfLife


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.healthy", description=__doc__)
    parser.add_argument("role", choices=["train", "housekeeping"])
    parser.add_argument("--within", type=float, metavar="SECONDS", help="how old its last sign of life may be")
    given = parser.parse_args()
    sign = SignOfLife(settings.load(), given.role)
    age_seconds = sign.age_seconds()
    if age_seconds == math.inf:
        sys.exit(f"{given.role} has given no sign of life yet")
    if age_seconds > (given.within or sign.patience_seconds):
        sys.exit(f"{given.role} gave its last sign of life {age_seconds:.0f} s ago")


if __name__ == "__main__":
    main()
