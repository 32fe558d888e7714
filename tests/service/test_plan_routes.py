"""POST /v1/plans, and the jobs whose swaps only a plan can check. The housekeeper is made of the store's calls."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import func, select

from acmix.catalog import Device
from service import planning
from service.store.rows import WorkerCard
from service.store.tables import plans
from tests.service.deployed import PLAN, Deployed, spec
from tests.service.menu import catalog
from tests.service.work import at_once, until

ASSUMED = {"num_classes": 10, "image_px": 32}
NO_SUCH_SIZE = {
    "pointer": "/assume/image_px",
    "code": "image_size",
    "message": "resnet26 cannot take images of 32 px; 64 px would do",
    "actual": 32,
    "fixes": [64],
}


def planned(_request: dict[str, Any]) -> dict[str, Any]:
    return {"plan": PLAN}


def refused(*problems: dict[str, Any]) -> Any:
    return lambda _request: {"problems": list(problems)}


@pytest.fixture(autouse=True)
def _worker(api: Deployed) -> None:
    api.enrol()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "WAIT_SECONDS", 0.2)


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in spec().items() if name not in names} | more


def faults(response: Any, status: int = 422) -> list[dict[str, Any]]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    found: list[dict[str, Any]] = response.json()["errors"]
    return found


def test_the_body_of_a_job_is_planned_and_no_job_comes_of_it(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        response = api.plan(spec())
    assert response.status_code == 200, response.text
    workers = [{"id": "worker-1", "host": "host", "can_run": True, "why": None, "free_slots": 1}]
    assert response.json() == {"resolved_spec": api.submit()["resolved_spec"], **PLAN, "workers": workers}
    assert len(api.get("/v1/jobs")["data"]) == 1
    [request] = asked
    assert request["assume"] == {"num_classes": 10, "image_px": 8}
    assert request["backbone"]["options"] == {"stem": "small", "width": 0.25}
    assert set(request) == {"task", "backbone", "swaps", "training", "assume"}


def test_what_is_assumed_goes_before_what_the_data_set_gives(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        assert api.plan(spec() | {"assume": {"image_px": 224}}).status_code == 200
        folder = {"name": "image_folder", "options": {"folder": "mine"}}
        assert api.plan(spec() | {"dataset": folder, "assume": ASSUMED}).status_code == 200
    assert [request["assume"] for request in asked] == [{"num_classes": 10, "image_px": 224}, ASSUMED]


def test_with_all_assumed_the_data_set_may_be_left_out(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        response = api.plan(without("dataset", assume=ASSUMED))
    assert response.status_code == 200, response.text
    assert asked[0]["assume"] == ASSUMED
    assert "dataset" not in response.json()["resolved_spec"]
    assert "assume" not in response.json()["resolved_spec"]
    assert response.json()["resolved_spec"]["training"]["seed"] == 0


@pytest.mark.parametrize("assume", [{}, {"num_classes": 10}, {"image_px": 32}, {"num_classes": 10, "image_px": None}])
def test_with_less_assumed_it_is_missed(assume: dict[str, Any], api: Deployed) -> None:
    [fault] = faults(api.plan(without("dataset", assume=assume)))
    assert (fault["pointer"], fault["code"]) == ("/dataset", "missing")
    assert "assume" in fault["message"]


def test_classes_that_only_files_tell_are_asked_for(api: Deployed) -> None:
    folder = {"name": "image_folder", "options": {"folder": "mine"}}
    found = faults(api.plan(spec() | {"dataset": folder, "assume": {"image_px": 64}}))
    assert [(fault["pointer"], fault["code"]) for fault in found] == [("/dataset/name", "num_classes_unknown")]
    assert "assume.num_classes" in found[0]["message"]


@pytest.mark.parametrize(
    ("assume", "pointer"),
    [
        ({"num_classes": 0}, "/assume/num_classes"),
        ({"num_classes": 100_001}, "/assume/num_classes"),
        ({"num_classes": True}, "/assume/num_classes"),
        ({"num_classes": 10.0}, "/assume/num_classes"),
        ({"image_px": 10**30}, "/assume/image_px"),
        ({"image_px": "32"}, "/assume/image_px"),
        ({"image_pixels": 32}, "/assume/image_pixels"),
        ([], "/assume"),
        (None, "/assume"),
    ],
)
def test_what_cannot_be_assumed_is_refused_where_it_stands(assume: Any, pointer: str, api: Deployed) -> None:
    found = faults(api.plan(spec() | {"assume": assume}))
    assert [fault["pointer"] for fault in found] == [pointer]


def test_a_field_nearly_right_is_named(api: Deployed) -> None:
    [fault] = faults(api.plan(spec() | {"assumes": ASSUMED}))
    assert fault["fixes"][0] == "assume"


def test_a_spec_that_no_worker_could_run_is_the_same_422_as_for_a_job_and_waits_for_nobody(api: Deployed) -> None:
    for change in (
        {"backbone": {"name": "resnet27"}},
        {"swaps": [{"layers": "layer9.*"}]},
        {"swaps": [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 5}}}]},
        {"dataset": {"name": "digit"}},
        {"resources": {"gpus": 3}},
    ):
        began = time.monotonic()
        assert faults(api.plan(spec() | change)) == faults(api.post(spec() | change))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"assume": {"image_px": 32}}, "/assume/image_px"),
        ({}, "/dataset/options/image_px"),
        ({"dataset": {"name": "image_folder", "options": {"folder": "mine"}}, "assume": ASSUMED}, "/assume/image_px"),
    ],
)
def test_images_of_an_impossible_size_point_at_where_the_size_came_from(
    change: dict[str, Any], pointer: str, api: Deployed
) -> None:
    with api.housekeeper(refused(NO_SUCH_SIZE)):
        [fault] = faults(api.plan(spec() | change))
    assert fault == NO_SUCH_SIZE | {"pointer": pointer}


def test_impossible_geometry_is_told_with_what_would_do(api: Deployed) -> None:
    fault = {"pointer": "/swaps/0/mixer/options/heads", "code": "does_not_divide", "message": "5", "fixes": [4]}
    with api.housekeeper(refused(fault)):
        assert faults(api.plan(spec())) == [fault]


def test_what_a_plan_does_not_depend_on_is_answered_from_the_row(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        first = api.plan(spec())
    changes: list[dict[str, Any]] = [
        {"name": "another", "metadata": {}, "priority": 3},
        {"training": {**spec()["training"], "epochs": 99, "seed": 7, "schedule": {"name": "cosine"}}},
        {"checkpoints": {"keep_best": 3}, "trace": {"every_steps": 1}, "evaluation": {"metric": "loss"}},
        {"assume": {"num_classes": 10, "image_px": 8}},
    ]
    for change in changes:  # no housekeeper is there any longer
        again = api.plan(spec() | change)
        assert again.status_code == 200, again.text
        assert again.json()["layers"] == first.json()["layers"]
    assert len(asked) == 1


def test_what_it_depends_on_is_another_row(api: Deployed) -> None:
    training = spec()["training"]
    changes: list[dict[str, Any]] = [
        {},
        {"training": {**training, "batch_size": 32}},
        {"training": {**training, "optimizer": {"name": "adamw"}}},
        {"training": {**training, "precision": "bf16"}},
        {"swaps": []},
        {"backbone": {"name": "resnet50"}},
        {"assume": {"image_px": 16}},
        {"assume": {"num_classes": 11}},
    ]
    with api.housekeeper(planned) as asked:
        for change in changes:
            assert api.plan(spec() | change).status_code == 200
    assert len(asked) == len(changes)


def test_many_who_ask_the_same_at_once_have_it_made_once(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        answers = at_once(*[lambda: api.plan(spec())] * 6)
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == 1


@pytest.mark.usefixtures("impatient")
def test_without_a_housekeeper_it_is_a_503_that_says_when_to_try_again(api: Deployed, broker_url: str) -> None:
    response = api.plan(spec())
    assert faults(response, 503) == []
    assert int(response.headers["Retry-After"]) > 0
    assert "housekeeper" in response.json()["detail"]
    with Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as broker:
        assert broker.llen("plans") == 1
    with api.housekeeper(planned):
        until(lambda: api.plan(spec()).status_code == 200)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_more_may_wait_than_there_are_threads_and_keep_nobody_else_waiting(api: Deployed) -> None:
    def asking(number: int) -> Any:
        return lambda: api.plan(spec() | {"assume": {"image_px": 16 + number}}).status_code

    def answer_once_all_wait() -> int:
        until(lambda: waiting(api) == 60)
        api.get("/v1/jobs")
        with api.housekeeper(planned) as asked:
            until(lambda: len(asked) == 60)
        return 200

    assert set(at_once(*map(asking, range(60)), answer_once_all_wait)) == {200}


def waiting(api: Deployed) -> int:
    with api.app.state.backend.engine.connect() as connection:
        unanswered = select(func.count()).select_from(plans).where(plans.c.answered_at.is_(None))
        return connection.execute(unanswered).scalar_one()


@pytest.mark.usefixtures("impatient")
def test_a_plan_that_its_maker_twice_did_not_survive_is_a_problem(api: Deployed) -> None:
    assert api.plan(spec()).status_code == 503
    for _ in range(2):
        claimed = api.plans.claim()
        assert claimed is not None
        assert api.plans.fail(claimed, "it takes longer than 30 s")
    [fault] = faults(api.plan(spec()))
    assert fault == {
        "pointer": "",
        "code": "plan_failed",
        "message": "this cannot be planned: it takes longer than 30 s",
    }


def test_without_a_catalog_it_is_a_503(api: Deployed) -> None:
    with api.app.state.backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("DELETE FROM workers")
    assert faults(api.plan(spec()), 503) == []


# Jobs whose swaps the catalog cannot check

FAMILY = {"backbone": {"name": "zoo/lion"}, "dataset": {"name": "digits"}, "swaps": [{"layers": "stages.*"}]}


def test_a_job_of_a_backbone_without_listed_layers_is_checked_by_a_plan(api: Deployed) -> None:
    with api.housekeeper(planned) as asked:
        response = api.post(FAMILY)
        assert response.status_code == 201, response.text
    assert [request["backbone"]["name"] for request in asked] == ["zoo/lion"]
    assert asked[0]["assume"] == {"num_classes": 10, "image_px": 8}


def test_where_only_files_tell_its_classes_a_thousand_are_assumed(api: Deployed) -> None:
    folder = {"name": "image_folder", "options": {"folder": "mine"}}
    with api.housekeeper(planned) as asked:
        assert api.post(FAMILY | {"dataset": folder}).status_code == 201
    assert asked[0]["assume"] == {"num_classes": 1000, "image_px": 224}


def test_what_its_plan_is_refused_for_the_job_is_refused_for(api: Deployed) -> None:
    slots = {"pointer": "/swaps/0/layers", "code": "layers_invalid", "message": "matches no slot", "allowed": ["a"]}
    with api.housekeeper(refused(slots, NO_SUCH_SIZE)):
        found = faults(api.post(FAMILY))
    assert found == [slots, NO_SUCH_SIZE | {"pointer": "/dataset/options/image_px"}]
    assert api.get("/v1/jobs")["data"] == []


@pytest.mark.usefixtures("impatient")
def test_it_is_a_503_without_a_housekeeper_and_no_other_job_waits_for_one(api: Deployed) -> None:
    response = api.post(FAMILY)
    assert faults(response, 503) == []
    assert "Retry-After" in response.headers
    assert api.get("/v1/jobs")["data"] == []
    api.submit()


def test_a_body_that_no_job_could_have_is_refused_before_anything_is_looked_up(api: Deployed) -> None:
    response = api.http.post("/v1/plans", content=b"{", headers={"Content-Type": "application/json"})
    assert faults(response, 400)[0]["code"] == "malformed"
    response = api.http.post("/v1/plans", content=json.dumps(spec()), headers={"Content-Type": "text/plain"})
    assert faults(response, 415) == []


def planned_workers(api: Deployed, **changes: Any) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
    """By id whether each could run such a job, why not, and its free slots; and what is warned of."""
    with api.housekeeper(planned):
        answered = api.plan({**spec(), **changes})
    assert answered.status_code == 200, answered.text
    told = {each["id"]: (each["can_run"], each["why"], each["free_slots"]) for each in answered.json()["workers"]}
    return told, [warning for warning in answered.json()["warnings"] if warning not in PLAN["warnings"]]


def card_of(worker: str, menu: Any = None, *, gpus: int = 0, labels: Sequence[str] = ()) -> WorkerCard:
    cards = [Device(index=index, name="NVIDIA H200", memory_bytes=2**37) for index in range(gpus)]
    return WorkerCard(worker, f"host of {worker}", max(1, gpus), cards, {}, menu or catalog(), labels, 8)


def test_a_plan_tells_who_could_run_the_job_and_why_others_could_not(api: Deployed) -> None:
    api.ledger.enrol(card_of("worker-2", gpus=4))
    api.ledger.enrol(card_of("worker-3", catalog().model_copy(update={"mixers": []}), gpus=4))
    api.ledger.seen("worker-2", 1, {"free_slots": 2, "devices": [], "cpu": None})
    told, warnings = planned_workers(api, resources={"gpus": 2})
    assert told == {
        "worker-1": (False, "it has 0 GPUs and 2 are asked for", 1),
        "worker-2": (True, None, 2),
        "worker-3": (False, "its catalog has no acmix", 4),
    }
    assert warnings == []


def test_a_plan_warns_where_nobody_who_is_there_could_run_the_job(api: Deployed) -> None:
    api.ledger.enrol(card_of("worker-2", gpus=4, labels=["shared"]))
    api.ledger.enrol(card_of("worker-3", gpus=4))
    told, warnings = planned_workers(api, resources={"gpus": 1})
    assert (told["worker-2"][0], told["worker-3"][0], warnings) == (False, True, [])
    api.http.post("/v1/workers/worker-3/drain")
    told, [warning] = planned_workers(api, resources={"gpus": 1})
    assert told["worker-3"] == (False, "it is being drained and takes on nothing more", 0)
    assert warning.startswith(
        "no worker that is there now could run it: it has 0 GPUs and 1 are asked for; its GPUs are"
    )
    for worker in ("worker-1", "worker-2", "worker-3"):
        api.ledger.leave(worker)
    assert planned_workers(api, resources={"gpus": 1}) == ({}, ["no worker is there now to run it"])


def test_a_plan_without_a_data_set_tells_it_too(api: Deployed) -> None:
    with api.housekeeper(planned):
        answered = api.plan(without("dataset", assume=ASSUMED))
    assert [each["can_run"] for each in answered.json()["workers"]] == [True]
