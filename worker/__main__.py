"""`python -m worker train`: a node's worker; `housekeeping`: what runs once beside all; `healthy ROLE`: a check."""

import argparse
import math
import sys

from service import settings
from service.settings import Settings
from worker.alive import SignOfLife

# What a role needs is imported where it begins: the check runs every few seconds, and would take a second of a core.

ROLES = ("train", "housekeeping")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for role in ROLES:
        commands.add_parser(role)
    check = commands.add_parser("healthy", help="exit status 0 if the process of a role on this machine is alive")
    check.add_argument("role", choices=ROLES)
    check.add_argument("--within", type=float, metavar="SECONDS", help="how old its last sign of life may be")
    asked = parser.parse_args()
    if asked.command == "healthy":
        _check(asked.role, asked.within)
        return
    from service import logs

    given = settings.load()
    logs.begin(given, "worker" if asked.command == "train" else "housekeeper")
    _train(given) if asked.command == "train" else _housekeeping(given)


def _train(given: Settings) -> None:
    from service.store.backend import open_backend
    from service.store.vitals import REGISTRY
    from worker import app, gpus, vitals
    from worker.node import Node, card_of_this_machine

    backend = open_backend(given)
    node = Node(backend, card_of_this_machine())
    if found := gpus.of_this_machine():
        REGISTRY.register(found)
    vitals.serve(backend.settings)
    app.serve(backend.settings, node, queues=["train"], threads=node.slots)


def _housekeeping(given: Settings) -> None:
    from service.store.backend import open_backend
    from worker import app, vitals
    from worker.housekeeping import Housekeeper

    backend = open_backend(given)
    vitals.serve(backend.settings)
    app.serve(backend.settings, Housekeeper(backend), queues=["plans", "light"], threads=2)


def _check(role: str, within_seconds: float | None) -> None:
    sign = SignOfLife(settings.load(), role)
    age_seconds = sign.age_seconds()
    if age_seconds == math.inf:
        sys.exit(f"{role} has given no sign of life yet")
    if age_seconds > (within_seconds or sign.patience_seconds):
        sys.exit(f"{role} gave its last sign of life {age_seconds:.0f} s ago")


if __name__ == "__main__":
    main()
