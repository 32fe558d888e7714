"""The same processes with their files in the compose file's own store of objects."""

import hashlib
from collections.abc import Iterator

import pytest

from tests.deploy.stack import Stack, stack
from tests.flow.service_process import small_job


@pytest.fixture(scope="module")
def service() -> Iterator[Stack]:
    with stack("cpu", "s3", ARTIFACTS_URL="s3://acmix") as running:
        yield running


@pytest.mark.slow
def test_a_job_leaves_its_files_in_the_store_alone(service: Stack) -> None:
    job = service.ended(service.submit(small_job(epochs=1, limit_train_batches=4)))
    assert job["status"] == "succeeded", job["status_reason"]
    best = service.http.get(f"/v1/checkpoints/{job['best']['checkpoint']}").json()
    content = service.http.get(f"/v1/checkpoints/{best['id']}/content").content
    assert hashlib.sha256(content).hexdigest() == best["sha256"]
    assert not list(service.artifacts.iterdir())
    assert list(service.volume("s3-data").rglob("*.dat"))
