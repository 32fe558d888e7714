"""The broker. A message says no more than "there is work": losing one or doubling it does no harm."""

import json
import logging
from functools import cache
from typing import Any
from uuid import uuid4

from celery import Celery
from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store import vitals

SOCKET_SECONDS = 2.0
CONNECTIONS = 10  # of a process, to publish with
WAIT_SECONDS = 0.5  # for one of them to become free
MOST_MESSAGES = 1000  # in a queue; so many unheard rings say all there is to say
TRAIN, PLANS, LIGHT = "train", "plans", "light"  # tasks, each with the queue of its name

logger = logging.getLogger(__name__)


def celery_app(broker_url: str) -> Celery:
    """Celery with the settings that every process shares; docs/decisions.md has the reason for each."""
    app = Celery("acmix", broker=broker_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_pool_limit=CONNECTIONS,
        broker_transport_options={
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
            "max_retries": 0,  # a publisher would try again for as long as the broker hangs
        },
        # a URL's ssl_* replace this; without either, Celery would take any certificate
        broker_use_ssl={"ssl_cert_reqs": "required"} if broker_url.startswith("rediss:") else None,
        accept_content=["json"],
        result_backend=None,
        task_acks_late=False,
        task_ignore_result=True,
        task_default_queue=TRAIN,
        task_publish_retry=False,
        task_serializer="json",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
    )
    return app


class Queue:
    """Rings workers and housekeeper. It never raises: who was not rung looks at the ledger by itself."""

    def __init__(self, broker_url: str) -> None:
        pool = BlockingConnectionPool.from_url(
            broker_url.replace("redis+socket://", "unix://", 1),
            max_connections=CONNECTIONS,
            timeout=WAIT_SECONDS,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)

    def nudge_train(self) -> bool:
        """There is a job to claim. Whether the message went out."""
        return self._nudge(TRAIN)

    def nudge_plans(self) -> bool:
        """There is a plan to make. Whether the message went out."""
        return self._nudge(PLANS)

    def nudge_light(self) -> bool:
        """There is a data set to check. Whether the message went out."""
        return self._nudge(LIGHT)

    def ping(self) -> None:
        """Raises if the broker does not answer within 2 seconds."""
        self._redis.ping()

    def close(self) -> None:
        self._redis.close()

    def _nudge(self, task: str) -> bool:
        try:
            if self._redis.lpush(task, _message(task)) > MOST_MESSAGES:
                self._redis.ltrim(task, 0, MOST_MESSAGES // 2)
        except Exception as error:  # whatever ails the broker, the row stands
            logger.warning("no nudge went out: %s", error)
            vitals.NUDGES.labels(task, "failed").inc()
            return False
        vitals.NUDGES.labels(task, "sent").inc()
        return True


def _message(task: str) -> str:
    """As Celery itself would put it in the queue; only the ids are fresh.

    Celery takes a millisecond of processor time to make and send one, which every job that comes would pay.
    """
    template, *old_ids = _template(task)
    for old in old_ids:
        template = template.replace(old, str(uuid4()))
    return template


@cache
def _template(task: str) -> tuple[str, str, str]:
    """A message of a task, by this version of Celery; its task's id and its delivery's, which no two may share."""
    app = celery_app("memory://")
    with app.connection_for_write() as connection:
        app.send_task(task, queue=task, connection=connection)
        channel: Any = connection.default_channel
        made = channel._get(task)
    app.close()
    return json.dumps(made), made["headers"]["id"], made["properties"]["delivery_tag"]
