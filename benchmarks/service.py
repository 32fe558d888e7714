"""How fast the service answers, beside MLflow's tracking server doing the like, by turns in one run.

    python -m benchmarks.service [--mlflow V/bin/mlflow] [--clients 4] [--rounds 3] [--seconds 5] [--jobs 10000]

One PostgreSQL of the pgserver wheel with its usual durability has a database for each; both run two processes. The
API is called with a key, has a real Valkey, and the menu of a real worker. MLflow is not among our dependencies:
`python3 -m venv V && V/bin/pip install mlflow psycopg2-binary` makes what `--mlflow` or MLFLOW names; without it the
service is measured alone. What is compared:

- submit: POST of a spec with one swap; of a run with its name, its start and a label
- read: a job or run of all there are
- list: the newest 100
- record: 100 points, four curves of 25 steps. A worker has no way in over HTTP but the database, so ours is
  `Ledger.record` as the worker calls it, in as many processes as there are clients; MLflow's is runs/log-batch
- series: a curve of 10,000 points, whole; MLflow's by metrics/get-history
- thinned: the same curve cut down to 500 points; MLflow's by metrics/get-history-bulk-interval, its own page's way
- million: a curve of 1,000,000 points cut down to 500; ours alone

`client` is the processor time that a call costs the clients themselves, which are processes of this machine too.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.clients import Measured, measure
from benchmarks.rivals import Side, mlflows, ours
from benchmarks.stack import MLFLOW, postgresql


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlflow", default=os.environ.get("MLFLOW"), help=f"its executable; {MLFLOW}")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of call in a round")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--queued", type=int, default=1_000, help="how many of these wait for a worker")
    parser.add_argument("--no-million", action="store_true", help="leave out the curve of 1,000,000 points")
    parser.add_argument("--only", help="kinds of calls, with commas between")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-load-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        server = stack.enter_context(postgresql(Path(folder)))
        Path(folder).chmod(0o755)
        sides = [
            stack.enter_context(
                ours(server, Path(folder), jobs=given.jobs, queued=given.queued, million=not given.no_million)
            )
        ]
        if given.mlflow:
            sides.append(stack.enter_context(mlflows(given.mlflow, server, Path(folder), runs=given.jobs)))
        else:
            print(f"without MLflow; {MLFLOW}")
        found = compare(sides, given)
    print_table(found)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(as_json(found, given), indent=1) + "\n")


def compare(sides: list[Side], given: argparse.Namespace) -> dict[str, dict[str, Measured]]:
    """By kind of call and side; in every round each kind by turns, and who is first changes."""
    kinds = [kind for kind in sides[0].work if not given.only or kind in given.only.split(",")]
    found: dict[str, dict[str, Measured]] = {kind: {side.name: Measured() for side in sides} for kind in kinds}
    for number in range(-1, given.rounds):  # the first warms up
        for kind in kinds:
            for side in sides if number % 2 else reversed(sides):
                if kind in side.work:
                    seconds = given.seconds if number >= 0 else min(1.0, given.seconds)
                    measured = measure(side.work[kind], clients=given.clients, seconds=seconds)
                    side.settle()
                    if number >= 0:
                        found[kind][side.name].add(measured)
    return found


def print_table(found: Mapping[str, Mapping[str, Measured]]) -> None:
    print(f"{'':8} {'':7} {'a second':>9} {'median':>9} {'p95':>9} {'client':>9}  times MLflow's rate")
    for kind, sides in found.items():
        for name, measured in sides.items():
            if measured.rates:
                print(f"{kind:8} {name:7} {_told(measured)}  {_ratio(sides) if name == 'acmix' else ''}")


def _told(measured: Measured) -> str:
    median, late = 1e3 * measured.percentile(0.5), 1e3 * measured.percentile(0.95)
    own = 1e3 * measured.client_seconds / len(measured.latencies)
    return f"{measured.rate:9.1f} {median:6.1f} ms {late:6.1f} ms {own:6.2f} ms"


def _ratio(sides: Mapping[str, Measured]) -> str:
    """The median of the rounds' ratios, and the range they lie in."""
    if "mlflow" not in sides or not sides["mlflow"].rates:
        return ""
    pairs = zip(sides["acmix"].rates, sides["mlflow"].rates, strict=True)
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    return f"{ratios[len(ratios) // 2]:.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"


def as_json(found: Mapping[str, Mapping[str, Measured]], given: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, and of each kind of call and side the rates of the rounds and the latencies."""
    options = {name: value for name, value in vars(given).items() if name not in {"json", "mlflow"}}
    figures = {
        kind: {
            name: {
                "rates": each.rates,
                "median_seconds": each.percentile(0.5),
                "p95_seconds": each.percentile(0.95),
                "client_seconds": each.client_seconds / len(each.latencies),
            }
            for name, each in sides.items()
            if each.rates
        }
        for kind, sides in found.items()
    }
    return {"cores": os.cpu_count(), **options, "figures": figures}


if __name__ == "__main__":
    main()
