import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.store.queue import MOST_MESSAGES, Queue, celery_app


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


def messages(broker_url: str, queue: str, *, most: int = 10) -> list[dict[str, Any]]:
    """The newest first."""
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        return [json.loads(message) for message in client.lrange(queue, 0, most - 1)]


def ids_of(message: dict[str, Any]) -> set[str]:
    """The task's and the delivery's."""
    return {message["headers"]["id"], message["properties"]["delivery_tag"]}


def shape_of(message: dict[str, Any]) -> str:
    """All of it but who sent it and its ids."""
    of_sender = {message["headers"]["origin"], message["properties"]["reply_to"]}
    text = json.dumps(message, sort_keys=True)
    for own in ids_of(message) | of_sender:
        text = text.replace(own, "ID")
    return text


def test_a_nudge_is_a_message_that_says_no_more_than_its_name(queue: Queue, broker_url: str) -> None:
    queue.ping()
    assert queue.nudge_train()
    [message] = messages(broker_url, "train")
    assert message["headers"]["task"] == "train"
    assert message["content-type"] == "application/json"


def test_a_nudge_is_the_message_that_celery_would_send(queue: Queue, broker_url: str) -> None:
    app = celery_app(broker_url)
    app.send_task("train", queue="train")
    app.close()
    assert queue.nudge_train()
    assert queue.nudge_train()
    second, first, celerys = messages(broker_url, "train")
    assert shape_of(first) == shape_of(second) == shape_of(celerys)
    assert ids_of(first).isdisjoint(ids_of(second))
    assert first["headers"]["id"] == first["properties"]["correlation_id"]


def test_unheard_nudges_do_not_fill_the_broker_up(queue: Queue, broker_url: str) -> None:
    assert queue.nudge_train()
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        client.lpush("train", *["unheard"] * MOST_MESSAGES)
        assert queue.nudge_train()
        assert MOST_MESSAGES // 2 <= client.llen("train") < MOST_MESSAGES
    assert messages(broker_url, "train", most=1)[0]["headers"]["task"] == "train"


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
