"""Processes that train together: as one with a larger batch, to the same evaluation, and gone on after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from acmix import spec
from acmix.errors import CheckpointIncompatible, OptionInvalid
from acmix.events import Event
from acmix.spec import JobSpec
from acmix.training import checkpoint
from acmix.training.launch import RankDied
from acmix.training.run import _device, run
from acmix.uncompiled import COMPILER
from tests.acmix.small import of_type, points, run_all, small_spec
from tests.service.work import until
from tests.worker.runs import is_gone

SWIN = {"name": "swin", "options": {"embed_dim": 8, "depths": [2, 1], "heads": [1, 2], "window": 4, "patch_px": 2}}
TWO = {"processes": 2}


def job(*, resources: dict[str, Any] | None = None, **parts: Any) -> JobSpec:
    return spec.parse({"dataset": {"name": "digits"}, "resources": resources or {}, **parts})


def swin(batch_size: int, processes: int, *, drop_path: float = 0.0, **training: Any) -> JobSpec:
    """On digits of 16 px, in float64, with nothing by chance unless a path is dropped."""
    return job(
        backbone={"name": "swin", "options": {**SWIN["options"], "drop_path": drop_path}},
        swaps=[{"layers": "*"}],
        dataset={"name": "digits", "options": {"image_px": 16}},
        training={"batch_size": batch_size, "epochs": 1, "precision": "float64", **training},
        resources={"processes": processes},
    )


def command_of(raw: dict[str, Any], folder: Path) -> list[str]:
    """What runs a spec in a folder."""
    (folder / "spec.json").write_text(json.dumps(raw))
    return [sys.executable, "-m", "acmix", "run", str(folder / "spec.json"), "--folder", str(folder / "run")]


def until_step(happening: Iterator[Event], step: int) -> list[Event]:
    """What happens until that optimizer step is told of."""
    told = []
    for event in happening:
        told.append(event)
        if event.type == "progress" and event.data.get("step", 0) >= step:
            return told
    raise AssertionError(f"it ended before step {step}")


@pytest.mark.parametrize("accumulate_batches", [1, pytest.param(3, marks=pytest.mark.release)])
def test_two_ranks_train_as_one_with_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate_batches: int
) -> None:
    """1,257 samples are 19 batches of 64 and one of 41, which two ranks share as 21 and 20."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # so that the logs of the ranks say what they load
    training = {"optimizer": {"name": "adamw", "lr": 2e-3}, "accumulate_batches": accumulate_batches}
    alone, together = (
        run_all(swin(batch_size, processes, **training), tmp_path / str(processes))
        for batch_size, processes in ((64, 1), (32, 2))
    )
    mine, theirs = points(alone), points(together)
    assert mine.keys() == theirs.keys()
    assert len([name for name, _ in mine if name == "train/loss"]) == -(-20 // accumulate_batches)
    for name, value in mine.items():
        assert theirs[name] == pytest.approx(value, rel=0, abs=1e-9), name
    for one, other in zip(of_type(alone, "trace"), of_type(together, "trace"), strict=True):
        for figure in ("alpha", "beta", "attention_rms", "convolution_rms"):
            assert other.data[figure] == pytest.approx(one.data[figure], rel=1e-5), (one.message, figure)
    logs = [file.read_text() for file in (tmp_path / "2" / "ranks" / "logs").rglob("stderr.log")]
    assert [("torch.nn.parallel.distributed" in log, COMPILER in log) for log in logs] == [(True, False)] * 2
    assert together[0].data["ranks"] == 2
    assert together[0].data["devices"] == ["cpu", "cpu"]


@pytest.mark.release  # tests/flow/test_evaluate.py has one by two ranks over HTTP
@pytest.mark.parametrize("batch_size", [7, 359])
def test_an_evaluation_by_two_ranks_is_that_by_one_to_the_last_sample(tmp_path: Path, batch_size: int) -> None:
    """360 samples are 51 batches of 7 and one of 3; or one of 359, and one of 1 for the second rank."""
    trained = small_spec(epochs=1)
    run_all(trained, tmp_path / "trained")
    weights = checkpoint.path_of(tmp_path / "trained" / "checkpoints", 4) / checkpoint.MODEL
    judged = []
    for processes in (1, 2):
        asked = trained.model_copy(
            update={
                "kind": "evaluate",
                "training": trained.training.model_copy(update={"batch_size": batch_size}),
                "resources": trained.resources.model_copy(update={"processes": processes}),
            }
        )
        told = list(run(asked, tmp_path / str(processes), weights_file=weights))
        judged += [event.data for event in of_type(told, "evaluation")]
    assert judged[0] == judged[1]
    assert judged[0]["samples"] == 360


@pytest.mark.parametrize(
    "asked",
    [
        swin(16, 2, drop_path=0.3, ema={"decay": 0.9}, limit_train_batches=9, augment={"name": "shift"}),
        pytest.param(
            small_spec(options={"width": 0.5}, epochs=1, limit_train_batches=9, accumulate_batches=2).model_copy(
                update={"resources": spec.parse_as(spec.Resources, {"processes": 3})}  # of two, any order sums the same
            ),
            marks=pytest.mark.release,
        ),
    ],
    ids=["swin, paths dropped, averaged", "resnet, batch norm, accumulated, three"],
)
def test_a_rank_killed_in_mid_epoch_ends_the_run_which_goes_on_to_the_last_bit(tmp_path: Path, asked: JobSpec) -> None:
    """Every step is saved, so that it goes on in mid-epoch from wherever it was."""
    ranks = asked.resources.processes
    saved = spec.parse_as(spec.Checkpoints, {"every_seconds": 1e-6, "keep_latest": 2})
    asked = asked.model_copy(update={"checkpoints": saved})
    run_all(asked, tmp_path / "unbroken")
    broken = tmp_path / "broken"
    happening = run(asked, broken)
    until_step(happening, 3)
    killed_at = time.time()
    os.kill(int((broken / "ranks" / "1.pid").read_text()), signal.SIGKILL)
    with pytest.raises(RankDied, match=rf"rank 1 of {ranks} was ended by SIGKILL") as died:
        list(happening)
    assert (died.value.rank, died.value.signal) == (1, signal.SIGKILL)
    assert killed_at <= died.value.at <= time.time()
    told = run_all(asked, broken)
    assert 2 <= told[0].data["resumed_from"]["step"] < 9
    assert told[-1].data["status"] == "succeeded"
    for one in checkpoint.listed(tmp_path / "unbroken" / "checkpoints"):
        for name in (checkpoint.MODEL, checkpoint.STATE, checkpoint.RECORD):
            assert (one / name).read_bytes() == (broken / "checkpoints" / one.name / name).read_bytes(), name
    alone = asked.model_copy(update={"resources": spec.Resources()})
    with pytest.raises(
        CheckpointIncompatible, match=f"made by {ranks} processes that trained together, and the spec now has 1"
    ):
        run_all(alone, broken)


@pytest.mark.release  # tests/flow/test_ranks.py has a cancel over HTTP
def test_ranks_asked_to_stop_do_so_after_the_same_step_go_on_from_there_and_leave_with_the_run(tmp_path: Path) -> None:
    asked, stop = swin(32, 2, epochs=50, lr_rule="linear", optimizer={"name": "sgd", "lr": 0.25}), threading.Event()
    happening = run(asked, tmp_path, stop=stop)
    told = until_step(happening, 1)
    stop.set()
    assert list(happening)[-1].data["status"] == "stopped"
    saved = checkpoint.verified(checkpoint.listed(tmp_path / "checkpoints")[0])
    assert saved.kind == "stop"
    assert points(told)["train/lr", 1] == 0.5 / 20  # of two ranks, in the first of twenty steps of warm-up
    happening = run(asked, tmp_path)
    assert next(happening).data["resumed_from"]["step"] == saved.step
    ranks = [psutil.Process(int((tmp_path / "ranks" / f"{rank}.pid").read_text())) for rank in range(2)]
    happening.close()
    until(lambda: not any(rank.is_running() for rank in ranks))


@pytest.mark.parametrize("killed", ["the run", "the agent"])
def test_no_rank_outlives_what_has_started_it(tmp_path: Path, killed: str) -> None:
    """Nor one that stands still, whatever in."""
    command = command_of(swin(32, 2, epochs=5000).dump(), tmp_path)
    happening = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        files = [tmp_path / "run" / "ranks" / f"{rank}.pid" for rank in range(2)]
        until(lambda: all(file.exists() for file in files), seconds=60)
        (agent,) = psutil.Process(happening.pid).children()
        pids = [agent.pid, *(int(file.read_text()) for file in files)]
        os.kill(pids[-1], signal.SIGSTOP)
        os.kill(agent.pid if killed == "the agent" else happening.pid, signal.SIGKILL)
        until(lambda: all(is_gone(pid) for pid in pids))
        assert happening.wait(30) == -signal.SIGKILL
    finally:
        happening.kill()
        happening.wait()


@pytest.mark.release
def test_a_run_interrupted_while_its_ranks_start_stops_as_asked(tmp_path: Path) -> None:
    """As a terminal does it: every process of its group is sent SIGINT."""
    command = command_of(swin(32, 2, epochs=5000).dump(), tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as run_:
        try:
            until(lambda: bool(psutil.Process(run_.pid).children()), seconds=60)
            os.killpg(run_.pid, signal.SIGINT)
            told, _ = run_.communicate(timeout=120)
        finally:
            run_.kill()
    assert run_.returncode == 0
    assert json.loads(told.splitlines()[-1])["data"]["status"] == "stopped"


def test_what_one_rank_fails_of_is_what_the_run_fails_of(tmp_path: Path) -> None:
    """Sixteen photos, one of them no image: the rank whose share it is in says so, and the other goes with it."""
    for number in range(16):
        for split in ("train", "val", "test"):
            place = tmp_path / "data" / "photos" / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(place / f"{number:02}.png")
    (tmp_path / "data" / "photos" / "train" / "a" / "04.png").write_bytes(b"no image")
    asked = small_spec(epochs=1, batch_size=8)
    raw = {**asked.dump(), "resources": TWO, "dataset": {"name": "image_folder", "options": {"folder": "photos"}}}
    raw["dataset"]["options"]["image_px"] = 16
    answer = subprocess.run(
        [*command_of(raw, tmp_path), "--data-root", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    last = json.loads(answer.stdout.splitlines()[-1])
    assert answer.returncode == 1
    assert (last["data"]["status"], last["data"]["reason"]["code"]) == ("failed", "dataset_corrupt")
    assert last["message"].startswith(f"rank {last['data']['rank']}: ")
    assert "04.png" in last["message"]
    said = [line for line in answer.stderr.splitlines() if line.startswith(f"[rank {last['data']['rank']}] ")]
    assert any("ERROR" in line and "04.png" in line for line in said)


@pytest.fixture
def second_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second rank of two, on a machine of two GPUs."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, answer in {"is_available": True, "device_count": 2, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


@pytest.mark.usefixtures("second_of_two_gpus")
@pytest.mark.parametrize(
    ("resources", "device"), [({"processes": 2}, "cpu"), ({"gpus": 0, "processes": 2}, "cpu"), ({"gpus": 2}, "cuda:1")]
)
def test_several_processes_are_on_the_cpu_whatever_gpus_there_are(resources: dict[str, Any], device: str) -> None:
    assert _device(job(backbone={"name": "resnet26"}, resources=resources)) == torch.device(device)


@pytest.mark.usefixtures("second_of_two_gpus")
@pytest.mark.parametrize("gpus", [1, 2])
def test_processes_beside_gpus_are_refused(gpus: int) -> None:
    asked = job(backbone={"name": "resnet26"}, resources={"gpus": gpus, "processes": 2})
    with pytest.raises(OptionInvalid, match=r"resources\.processes=2 is for the CPU.*; 1 would do"):
        _device(asked)


def test_synchronised_batch_norm_is_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(OptionInvalid, match="sync_batch_norm=true needs GPUs"):
        run_all(small_spec(sync_batch_norm=True), tmp_path)
