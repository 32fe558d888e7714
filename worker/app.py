"""The Celery side of worker and housekeeper: a message means "look at the ledger", no more."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from celery import signals
from celery.apps import worker as celery_worker

from service import logs
from service.settings import Settings
from service.store.queue import celery_app


class Service(Protocol):
    """What a process does beside Celery and when a message rings."""

    def start(self) -> None:
        """Celery begins, its broker there or not: begin the threads that work without messages."""

    def ring(self) -> None:
        """A message came."""

    def drain(self) -> None:
        """SIGTERM came: begin nothing new, end what runs. Called from a signal handler: it only sets a flag."""

    def stop(self) -> None:
        """Celery is done: wait for what still runs."""


def serve(settings: Settings, service: Service, *, queues: Sequence[str], threads: int) -> None:
    """Consume the queues until SIGTERM, ringing `service` at every message."""
    app = celery_app(settings.broker_url)
    for queue in queues:
        app.task(name=queue, ignore_result=True)(service.ring)

    def on_setup(**_: Any) -> None:
        service.start()

    def on_shutting_down(**_: Any) -> None:
        service.drain()

    _leave_celery_to_its_settings()

    def on_logging(**_: Any) -> None:
        """The root logger is ours; Celery sets up none where somebody answers this."""

    signals.setup_logging.connect(on_logging)
    signals.celeryd_after_setup.connect(on_setup)  # worker_ready would wait for the broker
    signals.worker_shutting_down.connect(on_shutting_down)
    try:
        command = ["worker", "--queues", ",".join(queues), "--pool", "threads", "--concurrency", str(threads)]
        command += ["--hostname", f"{queues[0]}-{os.getpid()}@%h", "--loglevel", "INFO"]
        app.worker_main([*_quietly(), *command, "--without-gossip", "--without-mingle", "--without-heartbeat"])
    finally:
        service.drain()
        service.stop()


def _leave_celery_to_its_settings() -> None:
    """Its command line would take a broker from BROKER_URL, past the password that ours is given besides."""
    for name in ("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND"):
        os.environ.pop(name, None)
        os.environ.pop(f"CELERY_{name}", None)


def _quietly() -> list[str]:
    """Words for a Celery that prints nothing beside the log, if that is for machines."""
    if not logs.is_json():
        return []
    celery_worker.safe_say = lambda *_: None  # what it says from its signal handlers, past every logger
    return ["--quiet"]
