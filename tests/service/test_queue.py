import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.store.queue import Queue, celery_app


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    queue = Queue(broker_url)
    yield queue
    queue.close()


@pytest.fixture
def hung_broker_url(short_folder: Path) -> Iterator[str]:
    """A broker that takes connections and never says a word."""
    path = short_folder / "hung.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(100)
        yield f"redis+socket://{path}"
    path.unlink()


def messages(broker_url: str, queue: str) -> list[dict[str, object]]:
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        return [json.loads(message) for message in client.lrange(queue, 0, -1)]


def test_a_nudge_is_a_message_that_says_no_more_than_its_name(queue: Queue, broker_url: str) -> None:
    queue.ping()
    assert queue.nudge_train()
    [message] = messages(broker_url, "train")
    assert message["headers"]["task"] == "train"  # type: ignore[index]  # a Celery message
    assert message["content-type"] == "application/json"


@pytest.mark.parametrize("url", ["redis+socket:///nowhere/broker.sock", "redis://127.0.0.1:1/0"])
def test_a_broker_that_is_away_costs_only_the_nudge(url: str, caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(url)
    assert queue.nudge_train() is False
    assert "no nudge went out" in caplog.text
    with pytest.raises(RedisError):
        queue.ping()
    queue.close()


def test_a_broker_that_hangs_holds_nobody_up(hung_broker_url: str) -> None:
    queue = Queue(hung_broker_url)
    began = time.monotonic()
    assert queue.nudge_train() is False
    assert time.monotonic() - began < 3
    began = time.monotonic()
    with pytest.raises(RedisError):
        queue.ping()
    assert time.monotonic() - began < 3
    queue.close()


def test_workers_take_one_message_at_a_time_and_acknowledge_it_first(broker_url: str) -> None:
    settings = celery_app(broker_url).conf
    assert settings.worker_prefetch_multiplier == 1
    assert settings.worker_disable_prefetch is True
    assert settings.task_acks_late is False
    assert settings.worker_cancel_long_running_tasks_on_connection_loss is False
    assert settings.worker_enable_remote_control is False
    assert settings.accept_content == ["json"]
    assert settings.result_backend is None
