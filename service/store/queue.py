"""The broker. A message says no more than "there is work": losing one or doubling it does no harm."""

import logging

from celery import Celery
from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store import vitals

SOCKET_SECONDS = 2.0
CONNECTIONS = 10  # of a process, to publish with
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
        self._app = celery_app(broker_url)
        pool = BlockingConnectionPool.from_url(
            broker_url.replace("redis+socket://", "unix://", 1),
            max_connections=2,
            timeout=SOCKET_SECONDS,
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
        self._app.close()
        self._redis.close()

    def _nudge(self, task: str) -> bool:
        try:
            self._app.send_task(task, queue=task)
        except Exception as error:  # whatever ails the broker, the row stands
            logger.warning("no nudge went out: %s", error)
            vitals.NUDGES.labels(task, "failed").inc()
            return False
        vitals.NUDGES.labels(task, "sent").inc()
        return True
