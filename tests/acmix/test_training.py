"""Training as an iterator of events: the same again, stopped and resumed, traced, and refused."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from acmix import spec
from acmix.errors import CheckpointIncompatible, Diverged, OptionInvalid
from acmix.events import Event
from acmix.spec import JobSpec
from acmix.training import checkpoint
from acmix.training.optimizer import OPTIMIZERS
from acmix.training.run import run
from acmix.training.schedule import SCHEDULES
from tests.acmix.small import few_digits_judged, of_type, points, run_all, small_spec

EVERY_STEP = {"every_seconds": 1e-6, "keep_latest": 2}  # a checkpoint after every step


@pytest.fixture(scope="module", autouse=True)
def few_are_judged() -> Iterator[None]:
    with few_digits_judged(20):
        yield


@pytest.fixture(scope="module")
def once(few_are_judged: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A whole run of the small spec: its folder, only to be read, and its events."""
    folder = tmp_path_factory.mktemp("once")
    return folder, run_all(small_spec(), folder)


def test_the_same_spec_gives_the_same_losses_to_the_last_bit(once: tuple[Path, list[Event]], tmp_path: Path) -> None:
    first, second = once[1], run_all(small_spec(), tmp_path / "again")
    assert points(first) == points(second)
    assert ("train/loss", 8) in points(first)
    other = next(event for event in run(small_spec(seed=1), tmp_path / "other") if event.type == "metrics")
    assert points([other])["train/loss", 1] != points(first)["train/loss", 1]


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"ema": {"decay": 0.9}, "augment": {"name": "shift"}},
        {"precision": "bf16", "clip_norm": 1.0},
        {"precision": "fp16", "accumulate_batches": 2},
        {"optimizer": {"name": "adamw"}, "schedule": {"name": "linear"}, "loader_workers": 2},
        {"mixup": 0.8, "cutmix": 1.0},
    ],
    ids=["plain", "ema+augment", "bf16+clip", "fp16+accumulate", "adamw+workers", "mixup+cutmix"],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the scaler may skip the first step
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_run_broken_off_in_mid_epoch_and_begun_again_equals_an_unbroken_one(tmp_path: Path, training: dict) -> None:
    job = small_spec(checkpoints=EVERY_STEP, limit_train_batches=3, **training)
    unbroken = run_all(job, tmp_path / "unbroken")
    before = []
    for event in (broken := run(job, tmp_path / "broken")):
        before.append(event)
        if event.type == "checkpoint" and event.data["kind"] == "time":
            break
    broken.close()  # as a kill would: nothing after the checkpoint counts
    after = run_all(job, tmp_path / "broken")

    at = of_type(before, "checkpoint")[-1].data["step"]
    assert after[0].data["resumed_from"]["step"] == at
    assert min(step for _, step in points(after)) == at + 1
    assert {**points(before), **points(after)} == points(unbroken)
    assert of_type(after, "evaluation")[-1].data == of_type(unbroken, "evaluation")[-1].data
    assert _last_files(tmp_path / "broken") == _last_files(tmp_path / "unbroken")


def test_a_run_asked_to_stop_saves_and_says_so(tmp_path: Path) -> None:
    stop = threading.Event()
    events = []
    for event in run(small_spec(epochs=50), tmp_path, stop=stop):
        events.append(event)
        if event.type == "trace" and event.data["step"] == 6:
            stop.set()
    assert [event.type for event in events[-2:]] == ["checkpoint", "status"]
    assert events[-2].data["kind"] == "stop"
    assert events[-1].data["status"] == "stopped"
    assert max(step for _, step in points(events)) == events[-2].data["step"] == 6


def test_a_run_that_has_ended_only_tests_its_best_again(once: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder, events = once
    again = run_all(small_spec(), shutil.copytree(folder, tmp_path / "copy"))
    assert not of_type(again, "trace")
    assert of_type(again, "evaluation")[-1].data == of_type(events, "evaluation")[-1].data


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    job = small_spec(checkpoints={"keep_latest": 2})
    run_all(job, tmp_path)
    newest, before = checkpoint.listed(tmp_path / "checkpoints")[:2]
    with (newest / checkpoint.STATE).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(CheckpointIncompatible, match=f"{newest.name}/state.safetensors"):
        checkpoint.verified(newest)
    events = run_all(job, tmp_path)
    assert events[0].data["resumed_from"]["step"] == checkpoint.verified(before).step
    assert newest.name in of_type(events, "warning")[0].message


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_all(small_spec(epochs=1), tmp_path)
    with pytest.raises(CheckpointIncompatible, match="does not fit this spec"):
        run_all(small_spec(epochs=3, options={"width": 0.25}), tmp_path)


def test_a_checkpoint_from_beyond_a_shorter_epoch_is_refused(tmp_path: Path) -> None:
    for event in (broken := run(small_spec(checkpoints=EVERY_STEP), tmp_path)):
        if event.type == "checkpoint" and event.data["step"] == 3:
            break
    broken.close()
    with pytest.raises(CheckpointIncompatible, match="batch 3 of an epoch, and the spec now has 2"):
        run_all(small_spec(limit_train_batches=2), tmp_path)


def test_a_run_that_cannot_read_its_best_tests_its_last_and_says_so(tmp_path: Path) -> None:
    """The warm-up leads to a learning rate so high that the loss is beyond all bounds after the last epoch."""
    growing = {"optimizer": {"name": "sgd", "lr": 2.0}, "schedule": {"name": "constant", "warmup_epochs": 3}}
    job = small_spec(limit_train_batches=2, **growing)
    job = job.model_copy(update={"evaluation": job.evaluation.model_copy(update={"metric": "loss"})})
    told = of_type(run_all(job, tmp_path), "checkpoint")
    best = [event.data["folder"] for event in told if event.data["best"]][-1]
    assert best != told[-1].data["folder"]
    (tmp_path / "checkpoints" / best / checkpoint.MODEL).write_bytes(b"")
    again = run_all(job, tmp_path)
    assert best in of_type(again, "warning")[0].message
    assert of_type(again, "evaluation")[-1].data["checkpoint"]["folder"] == told[-1].data["folder"]


def test_only_best_and_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    events = run_all(small_spec(epochs=5, checkpoints={"keep_best": 1, "keep_latest": 2}), tmp_path)
    told = of_type(events, "checkpoint")
    best = [event.data["folder"] for event in told if event.data["best"]][-1]
    kept = {folder.name for folder in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, *(event.data["folder"] for event in told[-2:])}


def test_the_resolved_spec_travels_in_the_weights_file(once: tuple[Path, list[Event]]) -> None:
    from safetensors import safe_open

    newest = checkpoint.listed(once[0] / "checkpoints")[0]
    with safe_open(newest / checkpoint.MODEL, "pt") as file:
        assert JobSpec.model_validate(json.loads(file.metadata()["acmix"])["spec"]) == small_spec()


def test_traces_come_at_step_0_every_so_many_and_the_last_one_event_each(once: tuple[Path, list[Event]]) -> None:
    folder, events = once
    traces = of_type(events, "trace")
    assert [event.data["step"] for event in traces] == [0, 3, 6, 8]
    assert traces[0].data["layers"] == [f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)]
    assert traces[0].data["alpha"] == traces[0].data["beta"] == [0.5] * 4
    weights = load_file(checkpoint.listed(folder / "checkpoints")[0] / checkpoint.MODEL)
    for index, layer in enumerate(traces[-1].data["layers"]):
        for name in ("alpha", "beta"):
            assert traces[-1].data[name][index] == weights[f"{layer}.{name}"].item() != 0.5
    for name in ("attention_rms", "convolution_rms"):
        assert all(value > 0 for event in traces for value in event.data[name])


def test_tracing_changes_no_loss(once: tuple[Path, list[Event]], tmp_path: Path) -> None:
    job = small_spec()
    seldom = job.model_copy(update={"trace": job.trace.model_copy(update={"every_steps": 1000})})
    assert points(once[1]) == points(run_all(seldom, tmp_path))


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    events = run_all(small_spec(accumulate_batches=3), tmp_path)
    assert max(step for _, step in points(events)) == 4  # 2 epochs of ceil(4 / 3)


def test_divergence_names_the_layer_and_the_step(tmp_path: Path) -> None:
    job = small_spec(optimizer={"name": "sgd", "lr": 1e6}, schedule={"name": "constant"}, epochs=20)
    with pytest.raises(Diverged, match=r"the loss is \w+ at step \d+: [\w.]+ produced -?\w+, the first") as caught:
        run_all(job, tmp_path)
    assert "clip_norm" in str(caught.value.hint)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_and_resumes(tmp_path: Path, name: str) -> None:
    job = small_spec(optimizer={"name": name, "lr": 1e-3}, epochs=2, limit_train_batches=2)
    losses = points(run_all(job, tmp_path / "a"))
    for event in (broken := run(job, tmp_path / "b")):
        if event.type == "checkpoint":
            break
    broken.close()
    resumed = points(run_all(job, tmp_path / "b"))
    assert resumed["train/loss", 4] == losses["train/loss", 4]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_and_stays_within_the_learning_rate(tmp_path: Path, name: str) -> None:
    options = {"at_epochs": [2]} if name == "milestones" else {}
    job = small_spec(schedule={"name": name, "warmup_epochs": 1, **options}, epochs=3)
    rates = [value for (metric, _), value in sorted(points(run_all(job, tmp_path)).items()) if metric == "train/lr"]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert all(0 <= rate <= 0.05 for rate in rates)


def test_norms_biases_alpha_and_beta_are_spared_weight_decay_unless_asked() -> None:
    from acmix import build
    from acmix.training.optimizer import parameter_groups

    model = build("resnet26", [{"layers": "*"}], num_classes=10, image_px=8)
    weights, spared = parameter_groups(model, "weights")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert spared["weight_decay"] == 0
    assert {"layer1.0.conv2.alpha", "layer1.0.conv2.beta", "layer1.0.conv2.q_proj.bias", "bn1.weight"} <= spared_names
    assert all(names[id(parameter)].endswith("weight") for parameter in weights["params"])
    assert len(parameter_groups(model, "all")) == 1


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    job = small_spec()
    with pytest.raises(OptionInvalid, match="this machine has none"):
        run_all(job.model_copy(update={"resources": job.resources.model_copy(update={"gpus": 1})}), tmp_path)


def _last_files(folder: Path) -> dict[str, object]:
    """The newest checkpoint: the hash of its weights, every tensor of its state, and the rest."""
    newest = checkpoint.verified(checkpoint.listed(folder / "checkpoints")[0])
    state = {name: tensor.tolist() for name, tensor in load_file(newest.folder / checkpoint.STATE).items()}
    return {
        "sha256": newest.sha256,
        "state": state,
        "record": json.loads((newest.folder / checkpoint.RECORD).read_text()),
    }


def test_an_evaluation_is_of_the_same_classes_in_the_same_order(tmp_path: Path) -> None:
    """A data set of clothing has as many classes as digits have, and a model would name them all the same."""
    least = {
        "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.0625}},
        "dataset": {"name": "digits"},
    }
    train = {**least, "training": {"epochs": 1, "batch_size": 64, "limit_train_batches": 1}}
    told = list(run(spec.parse(train), tmp_path / "run"))
    weights = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "model.safetensors"
    judged = spec.parse({**train, "kind": "evaluate"})
    again = list(run(judged, tmp_path / "again", weights_file=weights))
    assert of_type(again, "evaluation")[-1].data["metrics"] == of_type(told, "evaluation")[-1].data["metrics"]
    place = tmp_path / "photos/train"
    for name in "012345678x":
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(place / name / f"{number}.png")
    other = {**train, "kind": "evaluate", "dataset": {"name": "image_folder", "options": {"folder": "photos"}}}
    with pytest.raises(CheckpointIncompatible, match="of the 10 there number 9 is '9', of the 10 here it is 'x'"):
        list(run(spec.parse(other), tmp_path / "other", weights_file=weights, data_root=tmp_path))
