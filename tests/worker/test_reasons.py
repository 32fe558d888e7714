"""Every reason that an attempt can end for, really provoked, as its job tells it."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from acmix.errors import Reason
from service.store.backend import Backend
from service.store.rows import Attempt, Job
from tests.disks import small_disk
from tests.flow.service_process import small_job
from tests.service.work import claim, let_lease_run_out, submit, until
from tests.worker.runs import Attempts, is_gone, runs
from worker import exits

StandIn = Callable[[str], None]
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ADDRESS_SPACE_BYTES = 4 * 2**30  # torch alone maps over three
WITHOUT_DEVICE_MEMORY = """
import runpy
import torch
from acmix.training import loop

def descend(*_):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.00 GiB"
    )

loop._descend = descend
runpy.run_module("acmix", run_name="__main__", alter_sys=True)
"""


# The library's own run


def test_a_loss_that_is_not_finite_names_layer_step_and_what_to_try(backend: Backend, attempts: Attempts) -> None:
    spec = small_job(epochs=20, optimizer={"name": "sgd", "lr": 1e6}, schedule={"name": "constant"}, precision="bf16")
    reason, _ = reason_of(backend, attempts, spec)
    assert (reason.code, reason.blame, reason.retryable) == ("diverged", "user", False)
    assert_matches(r"the loss is nan at step \d+: [\w.]+ produced (nan|-?inf), the first layer to", reason.message)
    assert reason.hint == "precision is bf16; try a lower learning rate or clip_norm"


def test_data_that_are_not_there_are_named(backend: Backend, attempts: Attempts) -> None:
    spec = {**small_job(), "dataset": {"name": "image_folder", "options": {"folder": "nowhere"}}}
    reason, _ = reason_of(backend, attempts, spec)
    assert (reason.code, reason.blame, reason.retryable) == ("dataset_missing", "data", False)
    assert "nowhere" in reason.message


def test_a_truncated_image_is_named(backend: Backend, attempts: Attempts) -> None:
    broken = image_tree(backend.settings.data_root / "pets")
    spec = {
        **small_job(batch_size=4),
        "dataset": {"name": "image_folder", "options": {"folder": "pets", "image_px": 8}},
    }
    broken.write_bytes(broken.read_bytes()[:-40])
    reason, _ = reason_of(backend, attempts, spec)
    assert (reason.code, reason.blame, reason.retryable) == ("dataset_corrupt", "data", False)
    assert str(broken.relative_to(backend.settings.data_root)) in reason.message


def test_sizes_that_do_not_go_together_are_named(backend: Backend, attempts: Attempts) -> None:
    """The service would refuse it; a worker of another version might not."""
    mixer = {"name": "acmix", "options": {"heads": 3}}
    reason, _ = reason_of(backend, attempts, {**small_job(), "swaps": [{"layers": "*", "mixer": mixer}]})
    assert (reason.code, reason.blame, reason.retryable) == ("shape_mismatch", "user", False)
    assert "heads=3 does not divide" in reason.message


def test_memory_that_does_not_suffice_blames_the_spec(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    """The library's run, in an address space that is bounded."""
    bound = f"resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE_BYTES}, {ADDRESS_SPACE_BYTES}))"
    library = "os.chdir('/')\nos.execv(sys.executable, [sys.executable, '-m', 'acmix', *sys.argv[1:]])"
    stand_in(f"import resource\n{bound}\n{library}")
    spec = small_job(batch_size=1257, epochs=1)
    spec["backbone"]["options"]["width"] = 2.0
    reason, attempt = reason_of(backend, attempts, spec)
    assert (reason.code, reason.blame, reason.retryable) == ("out_of_memory_host", "user", False)
    assert reason.hint == "a smaller batch_size"
    assert (attempt.exit_code, attempt.signal) == (1, None)


def test_a_gpu_that_runs_out_of_memory_blames_the_spec(
    stand_in: StandIn, backend: Backend, attempts: Attempts, tmp_path: Path
) -> None:
    """The library's run, with torch's word for it in the place of a GPU."""
    (tmp_path / "run.py").write_text(WITHOUT_DEVICE_MEMORY)
    stand_in(f"os.chdir('/')\nos.execv(sys.executable, [sys.executable, {str(tmp_path / 'run.py')!r}, *sys.argv[1:]])")
    reason, attempt = reason_of(backend, attempts, small_job(epochs=1))
    assert (reason.code, reason.blame, reason.retryable) == ("out_of_memory_device", "user", False)
    assert reason.message == "CUDA out of memory. Tried to allocate 20.00 GiB"
    assert reason.hint == "a smaller batch_size, or accumulate_batches to keep its effect"
    assert (attempt.exit_code, attempt.signal) == (1, None)


def test_a_full_disk_is_tried_again_later(tmp_path: Path, backend: Backend, attempts: Attempts) -> None:
    with small_disk(backend.settings.data_folder / "attempts", size_bytes=50 * 2**20):
        job = submit(backend.ledger, **small_job(epochs=1, limit_train_batches=2))
        attempts.see_through(claim(backend.ledger))
        after, reason, _ = how_it_ended(backend, job)
    assert (reason.code, reason.blame, reason.retryable) == ("disk_full", "platform", True)
    assert (after.status, after.failures) == ("queued", 1)
    assert reason.hint is not None
    assert_matches(r"free some space and resume: [\d,]+ bytes would do", reason.hint)


def test_a_store_that_is_full_fails_the_job_at_its_last_checkpoint_alone(backend: Backend, attempts: Attempts) -> None:
    with small_disk(backend.settings.data_folder / "artifacts", size_bytes=100_000):
        job = submit(backend.ledger, **small_job(epochs=3, limit_train_batches=2, checkpoints={"keep_latest": 3}))
        attempts.see_through(claim(backend.ledger))
        assert [path for path in (backend.settings.data_folder / "artifacts").rglob("*") if path.is_file()] == []
    after, reason, _ = how_it_ended(backend, job)
    assert (reason.code, reason.retryable, after.status) == ("disk_full", True, "queued")
    warned = backend.reader.events(job.id, types=["warning"])
    assert [(event.data["code"], event.data["step"]) for event in warned] == [("disk_full", 2), ("disk_full", 4)]
    assert backend.reader.metrics(job.id, ["train/loss"])[0].step == list(range(1, 7))


def test_weights_that_are_not_as_stored_are_refused(backend: Backend, attempts: Attempts) -> None:
    job = submit(backend.ledger, **small_job(epochs=1, limit_train_batches=1))
    attempts.see_through(claim(backend.ledger))
    [kept] = backend.reader.checkpoints(job.id)
    weights = backend.settings.data_folder / "artifacts" / kept.key / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    spec = small_job()
    spec["backbone"]["weights"] = kept.id
    reason, _ = reason_of(backend, attempts, spec)
    assert (reason.code, reason.blame) == ("checkpoint_incompatible", "user")
    assert kept.id in reason.message

    backend.artifacts.delete_prefix(kept.key)
    reason, _ = reason_of(backend, attempts, spec)
    assert reason.code == "weights_missing"
    assert kept.id in reason.message


def test_a_run_that_hangs_is_ended_and_tells_where_it_stood(backend: Backend, attempts: Attempts) -> None:
    """The process that loads its data stands still."""
    impatient = replace(backend, settings=replace(backend.settings, stall_seconds=12.0))
    job = submit(backend.ledger, **small_job(epochs=1, batch_size=4, loader_workers=1))
    attempt_under_way = attempts.begin(claim(backend.ledger), impatient)
    until(lambda: bool(backend.reader.metrics(job.id)), seconds=60)
    [run] = runs()
    [loader] = psutil.Process(run).children()
    loader.suspend()
    attempt_under_way.result(60)
    after, reason, attempt = how_it_ended(backend, job)
    assert (reason.code, reason.blame, reason.retryable) == ("stalled", "platform", True)
    assert (after.status, after.failures, after.losses) == ("queued", 1, 0)
    assert attempt.signal == signal.SIGKILL
    assert any("most recent call first" in line for _, line in backend.reader.log_lines(job.id))
    until(lambda: is_gone(loader.pid))


# Scripts in its place


def test_a_run_that_works_slowly_is_not_ended(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    """One of these says nothing and touches its pulse, the other only says something."""
    impatient = replace(backend, settings=replace(backend.settings, stall_seconds=1.0))
    for sign in ("(folder / 'pulse').touch()", "tell('progress', phase='training')"):
        stand_in(f"for _ in range(4):\n    {sign}\n    time.sleep(0.5)\ntell('status', status='succeeded')")
        job = submit(backend.ledger)
        attempts.begin(claim(backend.ledger), impatient).result(60)
        assert backend.reader.job(job.id).status == "succeeded"


def test_a_run_that_hangs_before_it_listens_has_stalled_too(
    stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    stand_in("sleep()")
    job = submit(backend.ledger)
    attempts.begin(
        claim(backend.ledger), replace(backend, settings=replace(backend.settings, stall_seconds=1.0))
    ).result(30)
    after, reason, attempt = how_it_ended(backend, job)
    assert (reason.code, after.failures, after.losses) == ("stalled", 1, 0)
    assert attempt.signal == signal.SIGUSR1


def test_a_run_that_the_kernel_kills_for_its_memory_is_no_loss(
    stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    with memory_group(100 * 2**20) as members:
        stand_in(f"Path({str(members)!r}).write_text(str(os.getpid()))\nkept = bytearray(300 * 2**20)\nsleep()")
        reason, attempt = reason_of(backend, attempts, small_job())
    assert (reason.code, reason.blame, reason.retryable) == ("out_of_memory_host", "user", True)
    assert attempt.signal == signal.SIGKILL


@pytest.mark.parametrize(
    ("seconds_ago", "code"), [(3.5, "out_of_memory_host"), (0, "worker_lost")], ids=["of a rank", "of something else"]
)
def test_a_kill_for_memory_counts_from_when_the_first_rank_died(
    stand_in: StandIn,
    backend: Backend,
    attempts: Attempts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_ago: float,
    code: str,
) -> None:
    """The other ranks took three seconds and a half to end."""
    kernel_has_killed = tmp_path / "killed"
    monkeypatch.setattr(exits, "kills_for_memory", kernel_has_killed.exists)
    stand_in(
        f"time.sleep(0.2)\nPath({str(kernel_has_killed)!r}).touch()\ntime.sleep(3.5)\n"
        f"tell('warning', code='rank_died', seconds_ago={seconds_ago})\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    reason, attempt = reason_of(backend, attempts, small_job())
    assert (reason.code, attempt.signal) == (code, signal.SIGKILL)


def test_a_crash_tells_where_it_stood(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in("import faulthandler\nfaulthandler.enable()\nos.kill(os.getpid(), signal.SIGSEGV)")
    job = submit(backend.ledger)
    attempts.see_through(claim(backend.ledger))
    after, reason, attempt = how_it_ended(backend, job)
    assert (reason.code, reason.message) == ("worker_lost", "the run was ended by SIGSEGV")
    assert reason.hint == "the job's log says where it stood"
    assert (after.failures, after.losses, attempt.signal) == (0, 1, signal.SIGSEGV)
    assert any("Segmentation fault" in line for _, line in backend.reader.log_lines(job.id))


def test_a_worker_that_is_not_heard_of_is_lost(backend: Backend) -> None:
    job = submit(backend.ledger)
    claim(backend.ledger)
    let_lease_run_out(backend.engine, job.id)
    backend.ledger.sweep()
    _, reason, _ = how_it_ended(backend, job)
    assert (reason.code, reason.blame, reason.retryable) == ("worker_lost", "platform", True)


def test_what_leaves_without_a_word_is_internal(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in("sys.exit(3)")
    reason, attempt = reason_of(backend, attempts, small_job())
    assert (reason.code, reason.blame, reason.retryable) == ("internal", "platform", True)
    assert attempt.exit_code == 3


def test_the_runtime_of_all_attempts_counts(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in("tell('progress', phase='training')\nsleep()")
    job = submit(backend.ledger, resources={"max_runtime_seconds": 2.0})
    drained = attempts.begin(claim(backend.ledger))
    until(lambda: backend.reader.job(job.id).phase == "training")
    until(lambda: seconds_held(backend, job) > 1.2)
    attempts.draining.set()
    drained.result(30)
    attempts.draining.clear()
    attempts.see_through(claim(backend.ledger))
    _, reason, attempt = how_it_ended(backend, job)
    assert (reason.code, reason.blame, reason.retryable) == ("max_runtime_exceeded", "user", False)
    assert attempt.ended_at is not None
    assert attempt.number == 2
    assert (attempt.ended_at - attempt.started_at).total_seconds() < 1.8


def test_a_user_cancels(stand_in: StandIn, backend: Backend, attempts: Attempts) -> None:
    stand_in("tell('progress', phase='training')\nsleep()")
    job = submit(backend.ledger)
    attempt = attempts.begin(claim(backend.ledger))
    backend.ledger.request_cancel(job.id)
    attempt.result(30)
    after, reason, _ = how_it_ended(backend, job)
    assert (after.status, reason.code, reason.blame) == ("cancelled", "cancelled_by_user", "user")


def reason_of(backend: Backend, attempts: Attempts, spec: dict[str, Any]) -> tuple[Reason, Attempt]:
    """Why the first attempt of such a job ended."""
    job = submit(backend.ledger, **spec)
    attempts.see_through(claim(backend.ledger))
    _, reason, attempt = how_it_ended(backend, job)
    return reason, attempt


def how_it_ended(backend: Backend, job: Job) -> tuple[Job, Reason, Attempt]:
    after, attempt = backend.reader.job(job.id), backend.reader.attempts(job.id)[0]
    assert attempt.reason is not None
    assert after.status_reason is not None
    assert after.status_reason["code"] == attempt.reason["code"]
    return after, Reason(**attempt.reason), attempt


def seconds_held(backend: Backend, job: Job) -> float:
    attempt = backend.reader.attempts(job.id)[0]
    return (attempt.heartbeat_at - attempt.started_at).total_seconds()


def image_tree(folder: Path) -> Path:
    """Twenty small images of two classes; returns the last."""
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(10):
            Image.effect_noise((16, 16), 80).convert("RGB").save(folder / "train" / name / f"{index}.png")
    return folder / "train" / "dog" / "9.png"


@contextmanager
def memory_group(most_bytes: int) -> Iterator[Path]:
    """A control group with so much memory; yields the file in which a process writes its number to join it."""
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = root / f"acmix-test-{os.getpid()}"
    with ExitStack() as made:
        try:
            group.mkdir()
            made.callback(lambda: until(lambda: _is_removed(group)))
            (group / limit).write_text(str(most_bytes))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield group / "cgroup.procs"


def _is_removed(group: Path) -> bool:
    """It goes once the last of its processes is gone."""
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
