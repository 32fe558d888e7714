"""What a submit costs in processor time: of the API, of PostgreSQL and of the broker; of MLflow's tracking server, too.

    python -m benchmarks.submits [--mlflow V/bin/mlflow] [--rounds 3] [--calls 300]

Rates depend on whoever else uses the machine; processor time a call does so far less. The calls are those of
`benchmarks.service`, one client after the other's answer, by turns with MLflow's.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rivals import Side, mlflows, ours
from benchmarks.stack import MLFLOW, postgresql

Seconds = dict[str, float]  # of processor time, by part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlflow", default=os.environ.get("MLFLOW"), help=f"its executable; {MLFLOW}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=300, help="of each side in a round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-load-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        server = stack.enter_context(postgresql(Path(folder)))
        Path(folder).chmod(0o755)
        known: set[psutil.Process] = set()
        sides: list[tuple[Side, set[psutil.Process]]] = []
        for opened in _sides(given.mlflow, server, Path(folder)):
            side = stack.enter_context(opened)
            own = set(psutil.Process().children(recursive=True)) - known
            known |= own
            sides.append((side, own))
        postmaster = psutil.Process(int((Path(folder) / "postgresql" / "postmaster.pid").read_text().split()[0]))
        found: dict[str, list[Seconds]] = {side.name: [] for side, _ in sides}
        for number in range(-1, given.rounds):  # the first warms up
            for side, own in sides:
                cost = _cost(side, own, postmaster, given.calls)
                if number >= 0:
                    found[side.name].append(cost)
    for name, costs in found.items():
        each = {part: statistics.median(cost[part] for cost in costs) for part in costs[0]}
        parts = ", ".join(f"{part} {1e3 * seconds:.2f} ms" for part, seconds in each.items())
        print(f"{name:7} {parts}; all {1e3 * sum(each.values()):.2f} ms")


def _sides(executable: str | None, server: Any, folder: Path) -> Iterator[Any]:
    yield ours(server, folder, jobs=10_000, queued=1_000, million=False)
    if executable:
        yield mlflows(executable, server, folder, runs=10_000)


def _cost(side: Side, own: set[psutil.Process], postmaster: psutil.Process, calls: int) -> Seconds:
    """Of one call."""
    call = side.work["submit"](0)
    call(0)  # what it takes to connect
    before = _seconds(own, postmaster)
    for number in range(calls):
        call(number)
    after = _seconds(own, postmaster)
    side.settle()
    return {part: (after[part] - before[part]) / calls for part in before}


def _seconds(own: set[psutil.Process], postmaster: psutil.Process) -> Seconds:
    parts: dict[str, set[psutil.Process]] = {"server": set(), "broker": set(), "postgresql": set()}
    for process in own:
        parts["broker" if "valkey" in process.name() else "server"].add(process)
    parts["postgresql"] = {postmaster, *postmaster.children(recursive=True)}
    return {part: sum(sum(each.cpu_times()[:2]) for each in some) for part, some in parts.items()}


if __name__ == "__main__":
    main()
