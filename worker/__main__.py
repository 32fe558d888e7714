"""`python -m worker train`: a node's worker; `python -m worker housekeeping`: what runs once beside all of them."""

import argparse
import logging
import sys

from service import settings
from service.store.backend import open_backend
from worker import app
from worker.housekeeping import Housekeeper
from worker.node import Node, card_of_this_machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("role", choices=["train", "housekeeping"])
    role = parser.parse_args().role
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _train() if role == "train" else _housekeeping()


def _train() -> None:
    backend = open_backend(settings.load())
    node = Node(backend, card_of_this_machine())
    app.serve(backend.settings, node, queues=["train"], threads=node.slots)


def _housekeeping() -> None:
    backend = open_backend(settings.load())
    app.serve(backend.settings, Housekeeper(backend), queues=["plans", "light"], threads=2)


if __name__ == "__main__":
    main()
