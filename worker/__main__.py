"""`python -m worker train`: a node's worker; `python -m worker housekeeping`: what runs once beside all of them."""

import argparse
import logging
import sys

from service import settings
from service.store.artifacts import Artifacts
from service.store.database import connect
from service.store.ledger import Ledger
from service.store.reading import Reader
from worker import app, housekeeping
from worker.node import Node, card_of_this_machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("role", choices=["train", "housekeeping"])
    role = parser.parse_args().role
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _train() if role == "train" else _housekeeping()


def _train() -> None:
    config = settings.load()
    node = Node(config, *_store(config), card_of_this_machine())
    app.serve(config, node, queues=["train"], threads=node.slots)


def _housekeeping() -> None:
    config = settings.load()
    housekeeper = housekeeping.Housekeeper(config, *_store(config))
    app.serve(config, housekeeper, queues=["plans", "light"], threads=2)


def _store(config: settings.Settings) -> tuple[Ledger, Reader, Artifacts]:
    engine = connect(config.database_url)
    ledger = Ledger(
        engine,
        lease_seconds=config.lease_seconds,
        max_failures=config.max_failures,
        max_losses=config.max_losses,
    )
    return ledger, Reader(engine), Artifacts(config.artifacts_url)


if __name__ == "__main__":
    main()
