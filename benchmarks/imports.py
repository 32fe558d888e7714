"""What an import costs: the median of fresh interpreters, the empty interpreter taken off.

python -m benchmarks.imports [--rounds 9]
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import acmix", "import acmix.spec", "import service.app", "import service.cli", "import torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {statement: [] for statement in ("pass", *STATEMENTS)}
    for _ in range(rounds):
        for statement, column in seconds.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            column.append(time.perf_counter() - began)
    empty = statistics.median(seconds["pass"])
    for statement in STATEMENTS:
        print(f"{statement}: {statistics.median(seconds[statement]) - empty:.3f} s")


if __name__ == "__main__":
    main()
