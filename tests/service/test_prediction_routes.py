"""POST /v1/checkpoints/{id}/predict. The housekeeper is made of the store's calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import func, select, update

from acmix.errors import Reason
from service import predictions as service_predictions
from service.store.database import clock
from service.store.predictions import Predictions
from service.store.rows import Asked
from service.store.tables import predictions as table
from tests.service.deployed import Deployed
from tests.service.work import at_once, claim, meanwhile, save

IMAGE = b"\x89PNG, say"
SAID = {"task": "classification", "image": {"width": 3, "height": 2}, "classes": [{"class": "7", "probability": 0.5}]}
RUNS = {"size": [2, 3], "counts": "06"}
ABSENT = "ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
Answer = Callable[[Asked], dict[str, Any]]


@pytest.fixture
def checkpoint(api: Deployed) -> str:
    api.enrol()
    api.submit()
    saved, _ = save(api.ledger, claim(api.ledger).job, 10, 0.75)
    return saved.id


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_predictions, "WAIT_SECONDS", 0.2)


def store(api: Deployed) -> Predictions:
    found: Predictions = api.app.state.backend.predictions
    return found


def post(api: Deployed, checkpoint: str, content: bytes = IMAGE, query: str = "", **headers: str) -> Response:
    given = {"Content-Type": "image/png", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return api.http.post(f"/v1/checkpoints/{checkpoint}/predict{query}", content=content, headers=given)


@contextmanager
def answering(api: Deployed, answer: Answer = lambda _: {"prediction": SAID}) -> Iterator[list[tuple[Asked, bytes]]]:
    """Answers what is asked for; yields the requests with their images."""
    asked: list[tuple[Asked, bytes]] = []

    def answer_all() -> None:
        while row := store(api).claim():
            asked.append((row, store(api).image(row) or b""))
            drawn = b"a picture" if row.request["drawn"] else None
            store(api).answer(row, answer(row), library="a" * 64, drawn=drawn)

    with meanwhile(answer_all):
        yield asked


def count(api: Deployed) -> int:
    with api.app.state.backend.engine.connect() as connection:
        found: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return found


def test_the_image_reaches_the_housekeeper_and_its_words_come_back(api: Deployed, checkpoint: str) -> None:
    with answering(api) as asked:
        response = post(api, checkpoint, query="?min_score=0.25")
    assert response.status_code == 200, response.text
    assert response.json() == {"checkpoint": checkpoint, **SAID}
    [(row, image)] = asked
    assert image == IMAGE
    assert row.request["checkpoint"] == checkpoint
    assert (row.request["min_score"], row.request["drawn"]) == (0.25, False)


@pytest.mark.parametrize(
    "said",
    [
        {"classes": [{"class": "sky", "share": 0.5, "mask": RUNS}]},
        {"objects": [{"class": "7", "score": 0.9, "box": [0.0, 1.0, 2.0, 3.5]}]},
        {
            "objects": [
                {"class": "7", "score": 0.9, "box": [0.0, 1.0, 2.0, 3.5], "mask": {"size": [2, 3], "counts": "0"}}
            ]
        },
        {"objects": []},
    ],
)
def test_what_other_tasks_name_comes_back_as_it_was_said(said: Any, api: Deployed, checkpoint: str) -> None:
    told = {"task": "any", "image": {"width": 3, "height": 2}, **said}
    with answering(api, lambda _: {"prediction": told}):
        assert post(api, checkpoint).json() == {"checkpoint": checkpoint, **told}


def test_by_accept_it_is_a_picture(api: Deployed, checkpoint: str) -> None:
    with answering(api) as asked:
        response = post(api, checkpoint, Accept="image/png")
        assert post(api, checkpoint).json()["task"] == "classification"
    assert (response.status_code, response.content) == (200, b"a picture")
    assert response.headers["Content-Type"] == "image/png"
    assert [row.request["drawn"] for row, _ in asked] == [True, False]


def test_the_same_again_is_answered_from_the_row_which_keeps_no_image(api: Deployed, checkpoint: str) -> None:
    with answering(api) as asked:
        answers = at_once(*[lambda: post(api, checkpoint)] * 4)
    assert {answer.status_code for answer in answers} == {200}
    assert post(api, checkpoint).json() == answers[0].json(), "no housekeeper is there any longer"
    [(row, _)] = asked
    assert store(api).image(row) is None


def test_another_image_score_or_checkpoint_is_another_row(api: Deployed, checkpoint: str) -> None:
    other, _ = save(api.ledger, api.reader.job(api.get("/v1/jobs")["data"][0]["id"]), 20, 0.5)
    with answering(api) as asked:
        for response in (
            post(api, checkpoint),
            post(api, checkpoint, b"another"),
            post(api, checkpoint, query="?min_score=0.1"),
            post(api, other.id),
        ):
            assert response.status_code == 200, response.text
    assert len(asked) == count(api) == 4


@pytest.mark.usefixtures("impatient")
def test_without_a_housekeeper_it_is_a_503_and_the_same_again_has_its_answer(api: Deployed, checkpoint: str) -> None:
    response = post(api, checkpoint)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert int(response.headers["Retry-After"]) >= 1
    with answering(api) as asked:
        assert post(api, checkpoint).json()["checkpoint"] == checkpoint
    assert [image for _, image in asked] == [IMAGE]
    assert count(api) == 1


def test_an_image_that_cannot_be_read_is_a_422_that_says_what_would_do(api: Deployed, checkpoint: str) -> None:
    reason = Reason("image_unreadable", "what was sent is no image", "user", hint="formats: JPEG, PNG").as_json()
    with answering(api, lambda _: {"error": reason}):
        response = post(api, checkpoint, b"text")
    assert (response.status_code, response.json()["code"]) == (422, "image_unreadable")
    assert response.json()["detail"] == "what was sent is no image; formats: JPEG, PNG"


def test_a_prediction_that_failed_twice_is_a_422_that_says_why(api: Deployed, checkpoint: str) -> None:
    def fail_all() -> None:
        while row := store(api).claim():
            store(api).fail(row, "it takes longer than 60 s")

    with meanwhile(fail_all):
        response = post(api, checkpoint)
    assert (response.status_code, response.json()["code"]) == (422, "prediction_failed")
    assert response.json()["detail"] == "nothing could be predicted: it takes longer than 60 s"


@pytest.mark.parametrize("media_type", ["", "application/json", "multipart/form-data; boundary=x", "text/plain"])
def test_what_says_that_it_is_no_image_is_a_415(media_type: str, api: Deployed, checkpoint: str) -> None:
    response = post(api, checkpoint, Content_Type=media_type)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: image/jpeg" in response.json()["detail"]
    assert count(api) == 0


@pytest.mark.parametrize("media_type", ["image/jpeg", "application/octet-stream", "IMAGE/PNG; q=1"])
def test_an_image_by_any_of_its_names_is_taken(media_type: str, api: Deployed, checkpoint: str) -> None:
    with answering(api):
        assert post(api, checkpoint, Content_Type=media_type).status_code == 200


def test_an_image_that_is_too_large_is_a_413_and_no_row(api: Deployed, checkpoint: str) -> None:
    most = api.settings.max_image_bytes
    response = post(api, checkpoint, bytes(most + 1))
    assert (response.status_code, response.json()["errors"][0]["limit"]) == (413, most)
    assert count(api) == 0


@pytest.mark.parametrize("query", ["?min_score=1.5", "?min_score=low", "?min_scores=0.5"])
def test_a_parameter_that_cannot_be_is_named(query: str, api: Deployed, checkpoint: str) -> None:
    response = post(api, checkpoint, query=query)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"].startswith("/query/min_score")


@pytest.mark.parametrize("checkpoint_id", [ABSENT, "ckpt_1", "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"])
def test_a_checkpoint_that_is_not_there_is_a_404_and_no_row(checkpoint_id: str, api: Deployed) -> None:
    assert post(api, checkpoint_id).status_code == 404
    assert count(api) == 0


def test_answers_go_after_a_while(api: Deployed, checkpoint: str) -> None:
    with answering(api):
        post(api, checkpoint)
    assert store(api).expire() == 0
    engine = api.app.state.backend.engine
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(update(table).values(answered_at=clock(connection) - timedelta(minutes=11)))
    assert (store(api).expire(), count(api)) == (1, 0)
