import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from acmix.events import Event, warning
from service import tails
from service.routes import events as event_routes
from service.store.rows import Outcome
from tests.service.deployed import Deployed, served
from tests.service.work import claim, let_lease_run_out, statements, until


@pytest.fixture
def job_id(api: Deployed) -> str:
    """A job that runs: events 1 and 2 are there."""
    api.enrol()
    api.submit()
    return claim(api.ledger).job.id


@pytest.fixture
def url(api: Deployed, job_id: str) -> Iterator[str]:
    """Of the events, behind a real server."""
    with served(api.app) as server:
        yield f"{server}/v1/jobs/{job_id}/events"


def say(api: Deployed, job_id: str, *messages: str) -> None:
    api.ledger.record(job_id, 1, [warning("said", message) for message in messages])


def streamed(url: str, **headers: str) -> list[dict[str, Any]]:
    """Everything that the stream tells until it is closed by the server."""
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream", **headers}, timeout=20) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def test_events_are_numbered_from_one_without_gaps(api: Deployed, job_id: str) -> None:
    say(api, job_id, "one", "two")
    page = api.get(f"/v1/jobs/{job_id}/events")
    assert [event["number"] for event in page["data"]] == [1, 2, 3, 4]
    assert set(page["data"][0]) == {"number", "at", "attempt", "type", "message", "data"}
    assert [event["data"].get("status") for event in page["data"]][:2] == ["queued", "running"]


def test_events_are_listed_a_page_at_a_time(api: Deployed, job_id: str) -> None:
    first = api.get(f"/v1/jobs/{job_id}/events?limit=1")
    assert (first["has_more"], first["next"]) == (True, "1")
    second = api.get(f"/v1/jobs/{job_id}/events?limit=1&after={first['next']}")
    assert second["data"][0]["number"] == 2
    assert (second["has_more"], second["next"]) == (False, None)


def test_events_are_chosen_by_type(api: Deployed, job_id: str) -> None:
    say(api, job_id, "look")
    assert [event["number"] for event in api.get(f"/v1/jobs/{job_id}/events?types=warning")["data"]] == [3]


def test_a_stream_tells_what_was_and_what_comes_and_closes_when_the_job_has_ended(
    api: Deployed, job_id: str, url: str
) -> None:
    told: list[dict[str, Any]] = []

    def listen() -> None:
        told.extend(streamed(url))

    listener = threading.Thread(target=listen)
    listener.start()
    say(api, job_id, "one")
    say(api, job_id, "two", "three")
    api.ledger.finish(job_id, 1, Outcome("succeeded"))
    listener.join(timeout=20)
    assert [event["number"] for event in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1]["data"]["status"] == "succeeded"


def test_a_message_of_the_stream_has_number_type_and_event(api: Deployed, job_id: str, url: str) -> None:
    say(api, job_id, "line\u2028with ends\x85 of\nlines")
    api.ledger.finish(job_id, 1, Outcome("succeeded"))
    text = httpx.get(url, headers={"Accept": "text/event-stream"}).text
    third = next(block for block in text.split("\n\n") if block.startswith("id: 3\n"))
    number, kind, data = third.split("\n")
    assert (number, kind) == ("id: 3", "event: warning")
    assert json.loads(data.removeprefix("data: "))["message"] == "line\u2028with ends\x85 of\nlines"
    assert data.isascii()


def test_a_stream_goes_on_after_the_last_event_that_was_seen(api: Deployed, job_id: str, url: str) -> None:
    say(api, job_id, "one", "two")
    api.ledger.finish(job_id, 1, Outcome("succeeded"))
    assert [event["number"] for event in streamed(url, **{"Last-Event-ID": "3"})] == [4, 5]
    assert [event["number"] for event in streamed(f"{url}?after=4")] == [5]
    assert streamed(url, **{"Last-Event-ID": "5"}) == []


def test_a_stream_of_some_types_closes_with_the_job_too(api: Deployed, job_id: str, url: str) -> None:
    say(api, job_id, "one")
    api.ledger.finish(job_id, 1, Outcome("failed"))
    assert [event["number"] for event in streamed(f"{url}?types=warning")] == [3]


def test_a_stream_tells_all_of_a_long_history_without_gaps(api: Deployed, job_id: str, url: str) -> None:
    for _ in range(3):
        api.ledger.record(job_id, 1, [Event("progress", str(number), {"phase": "x"}) for number in range(400)])
    api.ledger.finish(job_id, 1, Outcome("succeeded"))
    assert [event["number"] for event in streamed(url)] == list(range(1, 1204))


def test_a_stream_of_a_job_that_is_deleted_ends(api: Deployed, job_id: str, url: str) -> None:
    with httpx.stream("GET", f"{url}?types=trace", headers={"Accept": "text/event-stream"}, timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines) == ": here"
        api.http.post(f"/v1/jobs/{job_id}/cancel")
        api.ledger.finish(job_id, 1, Outcome("cancelled"))
        api.http.delete(f"/v1/jobs/{job_id}")
        assert list(lines) == [""]


def test_a_quiet_stream_is_kept_alive_by_comments(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_routes, "COMMENT_SECONDS", 0.2)
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=20) as response:
        assert any(line == ": still here" for line in response.iter_lines())


def test_a_last_event_id_that_is_no_number_is_refused(api: Deployed, job_id: str) -> None:
    response = api.http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/header/last-event-id"


def test_readers_that_are_cut_off_again_and_again_miss_nothing(api: Deployed, job_id: str, url: str) -> None:
    seen: list[list[int]] = [[] for _ in range(4)]

    def read(numbers: list[int], most: int) -> None:
        """Read `most` events, hang up, go on."""
        while not numbers or numbers[-1] < 43:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(numbers[-1] if numbers else 0)}
            with httpx.stream("GET", url, headers=headers, timeout=20) as response:
                ids = (int(line[4:]) for line in response.iter_lines() if line.startswith("id: "))
                numbers.extend(number for number, _ in zip(ids, range(most), strict=False))

    readers = [threading.Thread(target=read, args=(numbers, index + 3)) for index, numbers in enumerate(seen)]
    for reader in readers:
        reader.start()
    for number in range(40):
        say(api, job_id, str(number))
    api.ledger.finish(job_id, 1, Outcome("succeeded"))
    for reader in readers:
        reader.join(timeout=60)
    assert seen == [list(range(1, 44))] * 4


def test_logs_are_text_and_tell_where_they_end(api: Deployed, job_id: str) -> None:
    api.ledger.log(job_id, 1, ["one", "zwei ü", "three"])
    response = api.http.get(f"/v1/jobs/{job_id}/logs")
    assert response.text == "one\nzwei ü\nthree\n"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Acmix-Last-Line"] == "3"


def test_logs_go_on_after_a_line_or_show_the_last_ones(api: Deployed, job_id: str) -> None:
    api.ledger.log(job_id, 1, [f"line {number}" for number in range(1, 11)])
    assert api.http.get(f"/v1/jobs/{job_id}/logs?after=8").text == "line 9\nline 10\n"
    assert api.http.get(f"/v1/jobs/{job_id}/logs?tail=1").text == "line 10\n"
    after_all = api.http.get(f"/v1/jobs/{job_id}/logs?after=10")
    assert (after_all.text, after_all.headers["Acmix-Last-Line"]) == ("", "10")


def test_attempts_newest_first_tell_who_held_the_job_and_how_that_ended(api: Deployed, job_id: str) -> None:
    let_lease_run_out(api.app.state.backend.engine, job_id)
    assert api.ledger.sweep() == [job_id]
    claim(api.ledger, "worker-2")
    second, first = api.get(f"/v1/jobs/{job_id}/attempts")["data"]
    assert (first["number"], first["worker"], first["reason"]["code"]) == (1, "worker-1", "worker_lost")
    assert first["ended_at"] is not None
    assert (first["signal"], first["signal_name"]) == (None, None)
    assert (second["number"], second["worker"], second["ended_at"]) == (2, "worker-2", None)


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV"), (63, "signal 63")])
def test_an_attempt_names_the_signal_that_ended_it(api: Deployed, job_id: str, number: int, name: str) -> None:
    api.ledger.finish(job_id, 1, Outcome("lost", None, None, number))
    [attempt] = api.get(f"/v1/jobs/{job_id}/attempts")["data"]
    assert (attempt["signal"], attempt["signal_name"]) == (number, name)


@contextmanager
def listening(url: str, count: int) -> Iterator[list[list[int]]]:
    """So many listeners, there from the start; at the end of the context all have been told everything."""
    heard: list[list[int]] = [[] for _ in range(count)]
    there = threading.Barrier(count + 1)

    def listen(numbers: list[int]) -> None:
        with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines) == ": here"
            there.wait()
            numbers.extend(int(line[4:]) for line in lines if line.startswith("id: "))

    threads = [threading.Thread(target=listen, args=(numbers,)) for numbers in heard]
    for thread in threads:
        thread.start()
    there.wait()
    yield heard
    for thread in threads:
        thread.join()


def test_twenty_listeners_cost_as_many_queries_as_one(api: Deployed, job_id: str, url: str) -> None:
    with statements(api.app.state.backend.engine) as asked, listening(url, 20) as heard:
        for number in range(5):
            say(api, job_id, str(number))
        api.ledger.finish(job_id, 1, Outcome("succeeded"))
    assert heard == [list(range(1, 9))] * 20
    told = [each for each in asked if "FROM events" in each]
    assert len(told) <= 7, "one for what was there, one each time it speaks"


def test_who_comes_late_or_falls_behind_is_told_what_the_tail_has_forgotten(
    api: Deployed, job_id: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "REMEMBERED_EVENTS", 3)
    say(api, job_id, *map(str, range(20)))
    with listening(url, 2) as heard:
        for _ in range(5):
            say(api, job_id, *map(str, range(20)))
        late = threading.Thread(target=lambda: heard.append([event["number"] for event in streamed(url)]))
        late.start()
        api.ledger.finish(job_id, 1, Outcome("succeeded"))
        late.join()
    assert heard == [list(range(1, 124))] * 3


def test_a_tail_remembers_no_more_bytes_than_it_may(
    api: Deployed, job_id: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "REMEMBERED_BYTES", 100)
    say(api, job_id, "x" * 200, "y" * 200)
    with listening(url, 1) as heard:
        say(api, job_id, "z" * 200)
        api.ledger.finish(job_id, 1, Outcome("succeeded"))
    assert heard == [[1, 2, 3, 4, 5, 6]]


def test_a_tail_is_gone_with_its_last_listener(api: Deployed, job_id: str, url: str) -> None:
    running = api.app.state.tails
    first, second = (httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=20) for _ in range(2))
    with first as one:
        lines = one.iter_lines()
        next(lines)
        with second as other:
            next(other.iter_lines())
            until(lambda: len(running) == 1)
        assert "id: 1" in lines
        assert len(running) == 1
    until(lambda: len(running) == 0)


def test_a_stream_ends_once_its_key_is_revoked(
    api: Deployed, job_id: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_routes, "COMMENT_SECONDS", 0.2)
    key, text = api.app.state.backend.tenants.create_key("default", name="", scopes=["jobs:read"])
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {text}"}
    with httpx.stream("GET", url, headers=headers, timeout=20) as response:
        lines = response.iter_lines()
        assert any(line == ": still here" for line in lines)
        api.app.state.backend.tenants.revoke_key(key.id)
        assert all(line in {"", ": still here"} for line in lines), "and then it ends"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_stream_survives_a_database_that_is_away_for_a_moment(api: Deployed, job_id: str, url: str) -> None:
    numbers: list[int] = []
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=20) as response:
        told = (int(line[4:]) for line in response.iter_lines() if line.startswith("id: "))
        numbers += [next(told), next(told)]
        for _ in range(3):
            _cut_off_a_query(api.app.state.backend.engine)
        api.ledger.finish(job_id, 1, Outcome("succeeded"))
        numbers += told
    assert numbers == [1, 2, 3]


def _cut_off_a_query(engine: Engine) -> None:
    """End the connection of a reader of the jobs while it waits for its answer."""
    waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    observing = engine.execution_options(isolation_level="AUTOCOMMIT")  # in a transaction the view stands still
    with engine.begin() as blocker, observing.connect() as observer:
        blocker.exec_driver_sql("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        until(lambda: observer.exec_driver_sql(f"SELECT count(*) {waiting}").scalar_one() > 0)
        observer.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {waiting}")
