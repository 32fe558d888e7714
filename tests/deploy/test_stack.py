"""The processes of docker-compose.yml, each as it stands there, do what `acmix up` does."""

import signal
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from service.store.database import connect
from tests.deploy.stack import Stack, stack
from tests.flow.service_process import wait_for
from tests.flow.test_job import (
    done,
    test_a_checkpoint_comes_down_whole_and_in_parts,
    test_a_job_cancelled_in_mid_epoch_ends_at_once_and_leaves_no_process,
    test_a_job_ends_with_results_of_its_best_checkpoint_on_test,
    test_a_stream_begins_where_the_reader_left_off_and_closes_with_the_job,
    test_events_are_numbered_without_gaps_and_end_with_the_end,
    test_logs_hold_what_the_attempt_printed,
    test_metrics_hold_every_step_once,
    test_nothing_of_a_run_is_left_on_the_machine,
    test_the_job_tells_all_about_itself,
    test_traces_are_served_for_every_layer_in_depth_order,
)

# the same tests as of `acmix up`, on this service
__all__ = [
    "done",
    "test_a_checkpoint_comes_down_whole_and_in_parts",
    "test_a_job_cancelled_in_mid_epoch_ends_at_once_and_leaves_no_process",
    "test_a_job_ends_with_results_of_its_best_checkpoint_on_test",
    "test_a_stream_begins_where_the_reader_left_off_and_closes_with_the_job",
    "test_events_are_numbered_without_gaps_and_end_with_the_end",
    "test_logs_hold_what_the_attempt_printed",
    "test_metrics_hold_every_step_once",
    "test_nothing_of_a_run_is_left_on_the_machine",
    "test_the_job_tells_all_about_itself",
    "test_traces_are_served_for_every_layer_in_depth_order",
]


@pytest.fixture(scope="module")
def service() -> Iterator[Stack]:
    with stack("cpu") as running:
        yield running


def test_from_the_first_moment_every_request_needs_a_key(service: Stack) -> None:
    url = str(service.http.base_url)
    assert httpx.get(f"{url}/v1/jobs").json()["code"] == "key_missing"
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert service.http.get("/v1/jobs").status_code == 200


def test_the_stores_ask_for_their_passwords(service: Stack) -> None:
    url = service.containers["api"].environment["DATABASE_URL"]
    engine = connect(url.replace("acmix@", "acmix:wrong@"))
    with pytest.raises(OperationalError, match="password authentication failed"):
        engine.connect()
    engine.dispose()


def test_no_password_stands_in_the_arguments_or_the_environment_of_a_process(service: Stack) -> None:
    secrets = {file.name: file.read_text().strip() for file in service.secrets.iterdir()}
    for process in service.below():
        seen = "\n".join([*process.cmdline(), *process.environ().values()])
        assert not [name for name, text in secrets.items() if text in seen], process


def test_a_second_migration_changes_nothing(service: Stack) -> None:
    service.containers["migrate"].finish()
    assert service.containers["migrate"].log.read_text().splitlines()[-1] == "the admin key is there"


def test_the_api_answers_from_both_of_its_processes(service: Stack) -> None:
    api = service.containers["api"].process
    assert api is not None
    found = {process.pid for process in service.below() if process.ppid() == api.pid}
    assert len(found) >= 2


def test_a_check_of_health_fails_where_the_process_stands_still(service: Stack) -> None:
    redis = service.containers["redis"]
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: not redis.is_healthy(), within_seconds=10)
    finally:
        redis.process.send_signal(signal.SIGCONT)
    wait_for(redis.is_healthy, within_seconds=10)


def test_a_worker_that_stands_still_is_not_healthy(service: Stack) -> None:
    worker = service.containers["worker-cpu"]
    assert worker.process is not None
    assert worker.is_healthy()
    impatient = replace(worker, check=f"{worker.check} --within 4")
    wait_for(impatient.is_healthy, within_seconds=20)
    worker.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: not impatient.is_healthy(), within_seconds=20)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    wait_for(impatient.is_healthy, within_seconds=20)
