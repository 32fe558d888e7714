"""Detection and segmentation from spec to test: exact after a stop, whoever loads the data, from whatever weights."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acmix import spec
from acmix.errors import OptionInvalid
from acmix.training.run import run
from tests.acmix.small import of_type
from tests.acmix.small_scenes import HEADS as DETECTORS
from tests.acmix.small_scenes import dense_spec

HEADS = (*DETECTORS, "semantic_fpn", "upernet")


def _weights(folder: Path) -> Mapping[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "model.safetensors")


def _assert_equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("head", HEADS)
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path, head: str):
    raw = dense_spec(head, limit_train_batches=3)
    whole = list(run(spec.parse(raw), tmp_path / "whole"))
    stop = threading.Event()
    for event in run(spec.parse(raw), tmp_path / "cut", stop=stop):
        if event.type == "trace" and event.data["step"] >= 2:
            stop.set()
    rest = list(run(spec.parse(raw), tmp_path / "cut"))
    assert rest[0].data["resumed_from"]["step"] < 6
    _assert_equal(_weights(tmp_path / "whole"), _weights(tmp_path / "cut"))
    assert of_type(rest, "evaluation")[-1].data["metrics"] == of_type(whole, "evaluation")[-1].data["metrics"]
    assert of_type(whole, "trace")[-1].data["layers"] == ["layer4.0.conv2"]
    final = of_type(whole, "evaluation")[-1].data
    assert (final["split"], final["samples"], final["final"]) == ("test", 2, True)
    json.dumps(final, allow_nan=False)


@pytest.mark.parametrize("head", ["mask_rcnn", "semantic_fpn"])
def test_loader_workers_change_nothing(tmp_path: Path, head: str):
    for workers in (0, 2):
        list(run(spec.parse(dense_spec(head, epochs=1, loader_workers=workers)), tmp_path / str(workers)))
    _assert_equal(_weights(tmp_path / "0"), _weights(tmp_path / "2"))


@pytest.mark.parametrize("head", ["retinanet", "upernet"])
def test_bf16_and_a_moving_average_train(tmp_path: Path, head: str):
    raw = dense_spec(head, epochs=1, precision="bf16", ema={"decay": 0.9}, accumulate_batches=2, clip_norm=5.0)
    events = list(run(spec.parse(raw), tmp_path))
    assert events[-1].data["status"] == "succeeded"


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_is_judged_in_float64(tmp_path: Path, head: str):
    raw = dense_spec(head, epochs=1, precision="float64", limit_train_batches=1)
    events = list(run(spec.parse(raw), tmp_path))
    assert events[-1].data["status"] == "succeeded"
    assert {weight.dtype for weight in _weights(tmp_path).values() if weight.is_floating_point()} == {torch.float64}


def test_a_detector_starts_from_a_classifier_and_from_a_detector(tmp_path: Path):
    """The backbone's weights count whatever stood on them; a head's where it is the same one."""
    classifier = dense_spec("retinanet") | {"task": {"name": "classification"}, "dataset": {"name": "digits"}}
    classifier["backbone"] = {"name": "resnet26", "options": {"width": 0.0625}}
    classifier["training"] = {"epochs": 1, "batch_size": 128, "limit_train_batches": 1}
    list(run(spec.parse(classifier), tmp_path / "classifier"))
    raw = dense_spec("retinanet", epochs=1, optimizer={"name": "sgd", "lr": 1e-9, "weight_decay": 0.0})
    kinds = {}
    for name, source in (("first", "classifier"), ("second", "first")):
        newest = sorted((tmp_path / source / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
        events = list(run(spec.parse(raw), tmp_path / name, weights_file=newest))
        kinds[name] = next(event.data["weights"] for event in events if "weights" in event.data)
    before = load_file(sorted((tmp_path / "classifier" / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    after = _weights(tmp_path / "first")
    assert torch.allclose(after["backbone.body.layer1.0.conv1.weight"], before["layer1.0.conv1.weight"], atol=1e-6)
    assert kinds["first"]["unexpected"] == 2  # the classifier
    assert kinds["first"]["missing"] > 0  # the head
    assert kinds["second"]["missing"] == kinds["second"]["unexpected"] == kinds["second"]["reshaped"] == 0
    head = "head.classification_head.cls_logits.weight"
    assert torch.allclose(_weights(tmp_path / "second")[head], after[head], atol=1e-6)


def test_mixing_and_absent_metrics_are_refused_with_what_would_do(tmp_path: Path):
    with pytest.raises(OptionInvalid, match="which segmentation has not; 0 would do"):
        list(run(spec.parse(dense_spec("semantic_fpn", mixup=0.2)), tmp_path / "mixed"))
    raw = dense_spec("retinanet", epochs=1) | {"evaluation": {"metric": "box_ap_large"}}
    with pytest.raises(OptionInvalid, match="box_ap_large has no value on val here; these have: box_ap, box_ap50"):
        list(run(spec.parse(raw), tmp_path / "large"))
