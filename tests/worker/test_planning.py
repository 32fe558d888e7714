"""The housekeeper makes plans: one warm child, and what becomes of requests that it does not survive."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from acmix import plan_request
from acmix.plan import plan as plan_here
from service.store.backend import Backend
from service.store.rows import Asked
from service.store.tables import plans as table
from tests.scrapes import Counted
from tests.service.work import until
from tests.worker.housekeepers import children, housekeeping
from tests.worker.runs import is_gone
from worker import answering, planning

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
REQUEST: dict[str, Any] = {
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.125}},
    "swaps": [{"layers": "layer4.*"}],
    "training": {"batch_size": 4},
    "assume": {"num_classes": 3, "image_px": 16},
}
# answers each request as that asks: {"do": "die" or "hang" or "babble" or "err" or anything else}
SERVER = """
import json, os, signal, sys, time
print(json.dumps({"ready": True, "library": LIBRARY, "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    do = json.loads(line)["do"]
    if do == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "hang":
        time.sleep(1000)
    said = {"babble": "no JSON", "err": json.dumps({"error": {"code": "internal", "message": "a fault of ours"}})}
    kept = sorted(name for name in os.environ if name.endswith("_URL"))
    print(said.get(do, json.dumps({"plan": do, "pid": os.getpid(), "kept": kept})), flush=True)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(answering, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(answering, "FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A short script in the library's place: `python -m acmix` looks for it in the working folder first."""
    package = tmp_path / "server" / "acmix"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()  # without it one on PYTHONPATH would go first
    monkeypatch.chdir(package.parent)

    def write(library: str) -> None:
        (package / "__main__.py").write_text(SERVER.replace("LIBRARY", repr(library)))

    write("a" * 64)
    return write


def ask(backend: Backend, do: str) -> Asked:
    return backend.plans.ask({"do": do}, version="1")


def answered(backend: Backend, plan: Asked) -> Asked:
    def found() -> Asked:
        row = backend.plans.find(plan.id)
        assert row is not None
        return row

    until(lambda: found().answered_at is not None, seconds=120)
    return found()


@on_sqlite
def test_a_request_is_planned_as_the_library_plans_it_and_the_next_by_the_same_child(backend: Backend) -> None:
    request = plan_request.parse(REQUEST)
    with housekeeping(backend):
        first = answered(backend, backend.plans.ask(REQUEST, version="1"))
        [child] = children()
        assert first.answer is not None
        assert first.answer["plan"] == plan_here(request, **REQUEST["assume"])
        bad = {**REQUEST, "swaps": [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 3}}}]}
        second = answered(backend, backend.plans.ask(bad, version="1"))
        assert second.answer is not None
        assert second.answer["problems"][0]["pointer"] == "/swaps/0/mixer/options/heads"
        assert [each.pid for each in children()] == [child.pid]
        assert first.library == second.library
    assert is_gone(child.pid)


@pytest.mark.usefixtures("server")
def test_a_message_rings_for_it_and_without_one_it_looks_by_itself(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with housekeeping(backend) as housekeeper:
        answered(backend, ask(backend, "unrung"))
        monkeypatch.setattr(answering, "LOOK_SECONDS", 1000.0)
        housekeeper.ring()
        asked = ask(backend, "rung")

        def is_answered() -> bool:
            housekeeper.ring()
            row = backend.plans.find(asked.id)
            return row is not None and row.answered_at is not None

        until(is_answered)


@on_sqlite
@pytest.mark.usefixtures("server")
def test_plans_are_counted_by_what_became_of_them(backend: Backend) -> None:
    counted = Counted()
    with housekeeping(backend):
        for do in ("one", "err", "die"):
            answered(backend, ask(backend, do))
        until(lambda: counted("acmix_answers_total", kind="plan") >= 3)
    assert counted("acmix_answers_total", kind="plan", result="answered") == 1
    assert counted("acmix_answers_total", kind="plan", result="failed") >= 1
    assert counted("acmix_answers_total", kind="plan", result="lost") >= 1
    assert counted("acmix_answer_seconds_count", kind="plan") >= 2


@on_sqlite
@pytest.mark.usefixtures("server")
def test_the_api_rings_where_the_housekeeper_listens(backend: Backend) -> None:
    assert backend.queue.nudge_plans()
    with Redis(unix_socket_path=backend.settings.broker_url.removeprefix("redis+socket://")) as broker:
        [message] = broker.lrange("plans", 0, -1)
        assert json.loads(message)["headers"]["task"] == "plans"


@on_sqlite
@pytest.mark.usefixtures("server")
def test_the_child_has_no_credentials(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "ARTIFACTS_URL"):
        monkeypatch.setenv(name, "secret")
    with housekeeping(backend):
        row = answered(backend, ask(backend, "tell"))
    assert row.answer is not None
    assert row.answer["kept"] == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("do", "why"),
    [
        ("die", "this cannot be planned: the process that makes plans ended with SIGSEGV"),
        ("hang", "this cannot be planned: it takes longer than 0.3 s"),
        ("err", "this cannot be planned: a fault of ours"),
    ],
)
@on_sqlite
def test_a_request_that_it_does_not_survive_is_tried_twice_then_answered_so(
    do: str, why: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PLAN_SECONDS", 0.3)
    with housekeeping(backend):
        bad = ask(backend, do)
        good = [ask(backend, f"good {number}") for number in range(3)]
        row = answered(backend, bad)
        assert row.failure is not None
        assert row.failure["message"] == why
        assert (row.claims, row.failures, row.answer) == (2, 2, None)
        assert [(answered(backend, each).answer or {})["plan"] for each in good] == [f"good {n}" for n in range(3)]
        assert len(children()) == 1


@on_sqlite
@pytest.mark.usefixtures("server")
def test_a_child_that_babbles_is_ended(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with housekeeping(backend):
        row = answered(backend, ask(backend, "babble"))
        assert row.failure is not None
        assert answered(backend, ask(backend, "good")).answer is not None


@on_sqlite
@pytest.mark.usefixtures("server")
def test_a_child_killed_while_idle_is_started_again(backend: Backend) -> None:
    with housekeeping(backend):
        before = answered(backend, ask(backend, "before")).answer
        assert before is not None
        os.kill(before["pid"], signal.SIGKILL)
        after = answered(backend, ask(backend, "after")).answer
        assert after is not None
        assert after["pid"] != before["pid"]


@on_sqlite
@pytest.mark.usefixtures("server")
def test_what_a_housekeeper_had_begun_is_free_again_when_it_ends(backend: Backend) -> None:
    with housekeeping(backend) as housekeeper:
        asked = ask(backend, "hang")

        def is_claimed() -> bool:
            row = backend.plans.find(asked.id)
            return row is not None and row.claims == 1

        until(is_claimed)
        [child] = children()
        housekeeper.drain()
        housekeeper.stop()
    again = backend.plans.claim()
    assert again is not None
    assert (again.id, again.failures) == (asked.id, 0)
    assert is_gone(child.pid)


@on_sqlite
@pytest.mark.usefixtures("server")
def test_what_a_killed_housekeeper_had_begun_is_made_by_another_once_its_claim_ran_out(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.requests.LEASE_SECONDS", 0.3)
    asked = ask(backend, "again")
    assert backend.plans.claim() is not None, "by one that never comes back"
    with housekeeping(backend):
        row = answered(backend, asked)
    assert (row.claims, row.failures) == (2, 0)


@pytest.mark.usefixtures("server")
def test_two_housekeepers_make_each_plan_once(backend: Backend) -> None:
    asked = [ask(backend, str(number)) for number in range(20)]
    with housekeeping(backend), housekeeping(backend):
        rows = [answered(backend, each) for each in asked]
    assert [(row.claims, (row.answer or {})["plan"]) for row in rows] == [(1, str(number)) for number in range(20)]


@on_sqlite
def test_answers_of_another_library_are_made_anew(backend: Backend, server: Callable[[str], None]) -> None:
    with housekeeping(backend):
        first = answered(backend, ask(backend, "same"))
        waiting = answered(backend, ask(backend, "same"))
        assert waiting.answered_at == first.answered_at
    server("b" * 64)
    with housekeeping(backend):
        until(lambda: backend.plans.find(first.id) is None)
        second = answered(backend, ask(backend, "same"))
    assert (first.library, second.library) == ("a" * 64, "b" * 64)


@on_sqlite
def test_a_child_that_cannot_start_is_tried_again_and_nothing_is_claimed_for_it(
    backend: Backend, server: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "server" / "acmix" / "__main__.py"
    working = script.read_text()
    script.write_text("raise SystemExit(3)")
    with housekeeping(backend):
        asked = ask(backend, "patient")
        until(lambda: "ended with exit status 3" in caplog.text)
        row = backend.plans.find(asked.id)
        assert row is not None
        assert row.claims == 0
        script.write_text(working)
        assert answered(backend, asked).claims == 1


@on_sqlite
@pytest.mark.usefixtures("server")
def test_the_database_may_be_away_for_a_while(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with housekeeping(backend):
        answered(backend, ask(backend, "before"))
        rename(backend, "plans", "plans_away")
        until(lambda: caplog.text.count("the database does not answer") >= 2)
        rename(backend, "plans_away", "plans")
        assert answered(backend, ask(backend, "after")).failures == 0


def rename(backend: Backend, name: str, to: str) -> None:
    with backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO {to}")


@on_sqlite
@pytest.mark.usefixtures("server")
def test_rows_that_are_old_go(backend: Backend) -> None:
    with housekeeping(backend) as housekeeper:
        row = answered(backend, ask(backend, "old"))
        with backend.engine.execution_options(writes=True).begin() as connection:
            assert row.answered_at is not None
            long_ago = row.answered_at.replace(year=2020)
            connection.execute(table.update().where(table.c.id == row.id).values(answered_at=long_ago))
        housekeeper._expire_from = 0.0
        housekeeper.look()
        assert backend.plans.find(row.id) is None
