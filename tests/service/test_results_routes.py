import pytest

from acmix.events import Event
from service.store.rows import Outcome
from tests.service.deployed import Deployed
from tests.service.work import claim, evaluation, save


@pytest.fixture
def url(api: Deployed) -> str:
    """Of the results of a job that runs."""
    api.enrol()
    found: str = api.submit()["urls"]["results"]
    claim(api.ledger)
    return found


def job_id(url: str) -> str:
    return url.split("/")[3]


def test_a_job_that_has_said_nothing_has_empty_results(api: Deployed, url: str) -> None:
    response = api.http.get(url)
    assert response.json() == {"status": "running", "complete": False, "final": None, "best": None, "evaluations": []}
    assert int(response.headers["Retry-After"]) > 0


def test_the_best_is_the_last_evaluation_that_was_better_than_all_before(api: Deployed, url: str) -> None:
    said = [evaluation(10, 0.5, best=True), evaluation(20, 0.8, best=True), evaluation(30, 0.6)]
    api.ledger.record(job_id(url), 1, said)
    results = api.get(url)
    assert results["best"]["metrics"] == {"accuracy": 0.8}
    assert [each["step"] for each in results["evaluations"]] == [10, 20, 30]


def test_the_final_evaluation_carries_everything_that_was_measured(api: Deployed, url: str) -> None:
    data = {
        "epoch": 3,
        "step": 30,
        "split": "test",
        "dataset": "digits",
        "metric": "accuracy",
        "metrics": {"accuracy": 0.9, "loss": 0.3},
        "per_class": [{"class": "0", "samples": 3, "recall": 1.0, "precision": None}],
        "confusion_matrix": [[3]],
        "best": False,
        "final": True,
        "checkpoint": {"epoch": 2, "step": 20},
    }
    saved, _ = save(api.ledger, api.reader.job(job_id(url)), 20)
    api.ledger.record(job_id(url), 1, [evaluation(20, 0.8, best=True), Event("evaluation", "test", data)])
    results = api.get(url)
    expected = {**data, "checkpoint": saved.id}
    assert {key: results["final"][key] for key in data} == expected
    assert results["best"]["checkpoint"] == saved.id


def test_results_are_complete_when_the_job_has_ended(api: Deployed, url: str) -> None:
    api.ledger.finish(job_id(url), 1, Outcome("succeeded"))
    response = api.http.get(url)
    assert response.json()["complete"]
    assert response.json()["status"] == "succeeded"
    assert "Retry-After" not in response.headers
