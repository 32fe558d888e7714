"""`python -m worker train`: a node's worker; `python -m worker housekeeping`: what runs once beside all of them."""

import argparse

from service import logs, settings
from service.store.backend import open_backend
from service.store.vitals import REGISTRY
from worker import app, driver, vitals
from worker.gpus import Gpus
from worker.housekeeping import Housekeeper
from worker.node import Node, card_of_this_machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("role", choices=["train", "housekeeping"])
    role = parser.parse_args().role
    logs.begin("worker" if role == "train" else "housekeeper")
    _train() if role == "train" else _housekeeping()


def _train() -> None:
    backend = open_backend(settings.load())
    found = driver.of_this_machine()
    node = Node(backend, card_of_this_machine(found), found)
    if found:
        REGISTRY.register(Gpus(found))
    vitals.serve(backend.settings)
    app.serve(backend.settings, node, queues=["train"], threads=node.slots.count)


def _housekeeping() -> None:
    backend = open_backend(settings.load())
    vitals.serve(backend.settings)
    app.serve(backend.settings, Housekeeper(backend), queues=["plans", "light"], threads=2)


if __name__ == "__main__":
    main()
