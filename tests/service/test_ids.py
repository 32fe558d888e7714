import time

import pytest

from service.store.ids import ALPHABET, LENGTH, new_id
from tests.service.work import at_once


def test_an_id_is_its_prefix_and_a_ulid() -> None:
    prefix, _, ulid = new_id("job").partition("_")
    assert prefix == "job"
    assert len(ulid) == LENGTH
    assert set(ulid) <= set(ALPHABET)


def test_ids_of_one_process_rise() -> None:
    made = [new_id("job") for _ in range(10_000)]
    assert made == sorted(set(made))


def test_ids_made_by_many_threads_differ() -> None:
    made = at_once(*[lambda: [new_id("job") for _ in range(1000)]] * 8)
    assert len({one for several in made for one in several}) == 8000


def test_ids_rise_though_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id("job")
    yesterday = time.time_ns() - 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    assert before < new_id("job") < new_id("job")
