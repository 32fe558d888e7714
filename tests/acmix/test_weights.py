"""Weights to start from: what of a file has a place in a model, and what a run says of it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acmix import pretrained, registry, spec, weights
from acmix.errors import CheckpointIncompatible, LayerNotFound, OptionInvalid, SpecInvalid, WeightsMissing
from acmix.model import build
from acmix.spec import JobSpec
from acmix.training import checkpoint
from acmix.training.run import run
from tests.acmix.small import of_type, points, run_all, small_spec

TINY = {"name": "resnet", "options": {"depths": [1, 1, 1, 1], "stem": "small", "width": 0.125}}
EVERY = [{"layers": "*"}]


def state(*, swaps: Any = (), num_classes: int = 10, seed: int = 1, **options: Any) -> dict[str, Tensor]:
    """The weights of a tiny ResNet, drawn from a seed."""
    torch.manual_seed(seed)
    backbone = {**TINY, "options": {**TINY["options"], **options}}
    return build(backbone, swaps, num_classes=num_classes, image_px=8).state_dict()


def started(given: dict[str, Tensor], *, swaps: Any = (), num_classes: int = 10) -> tuple[nn.Module, weights.Fit]:
    torch.manual_seed(2)
    return weights.start(TINY, swaps, given, num_classes=num_classes, image_px=8)


def test_a_file_of_the_same_model_is_loaded_whole():
    for swaps in ((), EVERY):
        given = state(swaps=swaps)
        model, fit = started(given, swaps=swaps)
        assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())
        assert (fit.missing, fit.unexpected, fit.reshaped) == ([], [], {})
        assert fit.kept == list(given)
        assert str(fit) == f"{len(given)} of the model's {len(given)} tensors kept"


def test_a_classifier_of_other_classes_is_left_as_it_was_drawn():
    given = state(num_classes=7)
    model, fit = started(given)
    torch.manual_seed(2)
    drawn = build(TINY, num_classes=10, image_px=8).state_dict()
    assert fit.reshaped == {"fc.weight": ([7, 256], [10, 256]), "fc.bias": ([7], [10])}
    assert torch.equal(model.state_dict()["fc.weight"], drawn["fc.weight"])
    assert torch.equal(model.state_dict()["layer3.0.conv1.weight"], given["layer3.0.conv1.weight"])
    assert "2 of another shape (fc.weight, fc.bias)" in str(fit)


def test_a_swap_into_a_pretrained_model_keeps_all_but_the_layers_that_it_replaces():
    given = state()
    model, fit = started(given, swaps=[{"layers": "layer[34].*"}])
    gone = ["layer3.0.conv2.weight", "layer4.0.conv2.weight"]
    assert fit.unexpected == gone
    assert all(name.startswith(("layer3.0.conv2.", "layer4.0.conv2.")) for name in fit.missing)
    assert fit.missing[0] == "layer3.0.conv2.alpha"
    own = model.state_dict()
    assert sorted(fit.kept) == sorted(given.keys() - set(gone))
    assert all(torch.equal(own[name], given[name]) for name in fit.kept)


def test_what_a_file_holds_of_swapped_layers_goes_where_the_same_layers_are_swapped():
    given = state(swaps=EVERY)
    model, fit = started(given, swaps=[{"layers": "layer1.*"}])
    own = model.state_dict()
    assert torch.equal(own["layer1.0.conv2.q_proj.weight"], given["layer1.0.conv2.q_proj.weight"])
    assert fit.missing == [f"layer{stage}.0.conv2.weight" for stage in (2, 3, 4)]
    assert "layer2.0.conv2.q_proj.weight" in fit.unexpected


def test_weights_of_another_precision_are_cast():
    model, fit = started({name: value.to(torch.float16) for name, value in state().items() if value.ndim})
    assert model.state_dict()["fc.weight"].dtype == torch.float32
    assert len(fit.missing) == len([name for name in fit.missing if name.endswith("num_batches_tracked")]) > 0


def test_a_file_of_which_no_weight_fits_changes_nothing_and_names_the_nearest():
    model = build(TINY, num_classes=10, image_px=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    others = {
        "conv1.weight is [4, 3, 3, 3], nearest in the model: conv1.weight [8, 3, 3, 3]": state(width=0.0625),
        "layer9.conv1.weight is [2, 2], nearest in the model: layer": {"layer9.conv1.weight": torch.ones(2, 2)},
        "zzz is [2], the model has none like it": {"zzz": torch.ones(2)},
        "none of the file's 0 tensors fits": {},
    }
    for sentence, given in others.items():
        with pytest.raises(CheckpointIncompatible, match="none of the file's") as caught:
            weights.load(model, given, EVERY)
        assert sentence in str(caught.value)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_swap_that_cannot_be_is_told_as_ever():
    with pytest.raises(LayerNotFound, match="matches no slot"):
        started(state(), swaps=[{"layers": "layer9.*"}])


def test_only_safetensors_are_opened(tmp_path: Path):
    torch.save(state(), tmp_path / "model.pth")
    with pytest.raises(CheckpointIncompatible, match=r"model\.pth is no safetensors file"):
        weights.read(tmp_path / "model.pth")
    with pytest.raises(WeightsMissing, match=r"gone\.safetensors is not there"):
        weights.read(tmp_path / "gone.safetensors")


def test_a_window_that_is_swapped_keeps_its_projections_and_position_bias():
    swin = {"name": "swin", "options": {"embed_dim": 4, "depths": [2], "heads": [2], "window": 3, "patch_px": 1}}
    torch.manual_seed(1)
    given = build(swin, num_classes=10, image_px=8).state_dict()
    model, fit = weights.start(swin, EVERY, given, num_classes=10, image_px=8)
    assert (fit.unexpected, fit.reshaped) == ([], {})
    assert {name.split(".attn.")[1].split(".")[0] for name in fit.missing} == {"alpha", "beta", "fc", "dep_conv"}
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in given.items())


# A run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Saved:
    """The newest checkpoint of a run."""
    folder = tmp_path_factory.mktemp("first")
    run_all(small_spec(epochs=1), folder)
    return checkpoint.verified(checkpoint.listed(folder / "checkpoints")[0])


def started_from(job: JobSpec, folder: Path, file: Path) -> list[Any]:
    return list(run(job, folder, weights_file=file))


def test_a_run_starts_from_the_weights_that_another_ended_with(first: checkpoint.Saved, tmp_path: Path):
    file = first.folder / checkpoint.MODEL
    events = started_from(small_spec(epochs=1, ema={"decay": 0.5}), tmp_path / "second", file)
    begin = of_type(events, "trace")[0]
    ended = load_file(file)
    assert begin.data["step"] == 0
    for index, layer in enumerate(begin.data["layers"]):
        assert begin.data["alpha"][index] == ended[f"{layer}.alpha"].item() != 0.5
    told = next(event for event in events if "weights" in event.data)
    assert told.type == "progress"
    assert told.data["weights"] == {
        "source": str(file),
        "kept": len(ended),
        "missing": 0,
        "unexpected": 0,
        "reshaped": 0,
    }
    assert not of_type(events, "warning")


def test_a_moving_average_starts_from_the_weights_too(first: checkpoint.Saved, tmp_path: Path):
    """At a learning rate of next to nothing the average after an epoch is still what was loaded."""
    file = first.folder / checkpoint.MODEL
    job = small_spec(epochs=1, ema={"decay": 0.5}, optimizer={"name": "sgd", "lr": 1e-30, "weight_decay": 0.0})
    started_from(job, tmp_path / "second", file)
    averaged = load_file(checkpoint.listed(tmp_path / "second" / "checkpoints")[0] / checkpoint.MODEL)
    assert all(torch.equal(averaged[name], value) for name, value in load_file(file).items() if "conv" in name)


def test_what_was_left_out_is_named_in_a_warning(first: checkpoint.Saved, tmp_path: Path):
    plain = JobSpec.model_validate({**small_spec(epochs=1).dump(), "swaps": []})
    events = started_from(plain, tmp_path / "second", first.folder / checkpoint.MODEL)
    [warned] = of_type(events, "warning")
    assert warned.data["code"] == "weights_left_out"
    assert warned.data["missing"] == [f"layer{stage}.0.conv2.weight" for stage in (1, 2, 3, 4)]
    assert warned.data["counts"]["unexpected"] == len(warned.data["unexpected"]) == 48
    assert warned.data["reshaped"] == []
    json.dumps(warned.data)


def test_a_resumed_run_reads_no_weights_and_equals_one_that_never_stopped(first: checkpoint.Saved, tmp_path: Path):
    job, file = small_spec(epochs=2), first.folder / checkpoint.MODEL
    whole = points(started_from(job, tmp_path / "whole", file))
    events = run(job, tmp_path / "halved", weights_file=file)
    told = []
    for event in events:
        told.append(event)
        if event.type == "checkpoint":
            break
    events.close()  # type: ignore[attr-defined]  # a generator
    resumed = list(run(job, tmp_path / "halved", weights_file=tmp_path / "gone by now"))
    assert points([*told, *resumed]) == whole


def test_an_id_without_its_file_is_told_and_so_is_a_file_that_fits_nothing(tmp_path: Path):
    job = small_spec().dump()
    job["backbone"]["weights"] = "ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
    with pytest.raises(WeightsMissing, match="ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC is a file of the service") as caught:
        list(run(spec.parse(job), tmp_path / "run"))
    assert caught.value.reason().hint == "name the file by --weights"
    save_file({"other": torch.ones(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointIncompatible, match="none of the file's 1 tensors fits the model; other is"):
        list(run(spec.parse(job), tmp_path / "run", weights_file=tmp_path / "other.safetensors"))


# What a spec may name


@pytest.mark.parametrize("value", ["timm", "ckpt_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "wts_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", None])
def test_a_spec_names_weights(value: str | None):
    raw = {"backbone": {"name": "resnet50", "weights": value}, "dataset": {"name": "digits"}}
    assert spec.parse(raw).dump()["backbone"]["weights"] == value


@pytest.mark.parametrize(
    "value", ["resnet50.pt", "", "TIMM", "timm\n", "ckpt_1", "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", 3, [], True]
)
def test_anything_else_is_refused_with_what_would_do(value: Any):
    with pytest.raises(SpecInvalid) as caught:
        spec.parse({"backbone": {"name": "resnet50", "weights": value}, "dataset": {"name": "digits"}})
    [problem] = caught.value.problems
    assert problem.pointer == "/backbone/weights"
    assert problem.message.startswith('weights must be null, "timm", the id of a checkpoint (ckpt_...)')


# timm's


def test_every_counterpart_is_a_model_that_timm_has_weights_for_and_of_the_same_shapes():
    import timm

    for name, backbone in registry.entries("backbones").items():
        counterpart = getattr(backbone, "timm_counterpart", None)
        if counterpart is None:
            continue
        assert pretrained.has_weights(counterpart), name
        with torch.device("meta"):
            ours = build(name, num_classes=1000, image_px=224).state_dict()
            theirs = timm.create_model(counterpart).state_dict()
        rename = getattr(backbone, "name_of_timm", str)
        assert {rename(key): value.shape for key, value in theirs.items()} == {
            key: value.shape for key, value in ours.items()
        }


@pytest.mark.parametrize("variant", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_model_of_timms_own_has_their_names_and_shapes(variant: str):
    import timm

    with torch.device("meta"):
        ours = build(f"timm/{variant}", num_classes=1000, image_px=224).state_dict()
        theirs = timm.create_model(variant).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert pretrained.counterpart(f"timm/{variant}") == variant


def test_timms_weights_that_lie_at_hand_are_loaded_without_a_network(tmp_path: Path):
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model("resnet50").state_dict()
    place = tmp_path / "weights" / "timm" / "resnet50.a1_in1k.safetensors"
    place.parent.mkdir(parents=True)
    save_file(theirs, place)
    before = torch.get_rng_state()
    given = pretrained.timm_weights("resnet50", tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    model, fit = weights.start("resnet50", [{"layers": "layer4.*"}], given, num_classes=5, image_px=64)
    assert torch.equal(model.state_dict()["layer3.5.conv2.weight"], theirs["layer3.5.conv2.weight"])
    assert list(fit.reshaped) == ["fc.weight", "fc.bias"]
    assert fit.unexpected == [f"layer4.{block}.conv2.weight" for block in range(3)]
    place.write_bytes(b"no such file")
    with pytest.raises(CheckpointIncompatible, match="does not hold timm's weights of resnet50"):
        pretrained.timm_weights("resnet50", tmp_path)


def test_without_a_network_the_file_and_its_place_are_named_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No name of this domain is ever resolved."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    began = time.monotonic()
    with pytest.raises(WeightsMissing, match=r"model\.safetensors of timm/resnet50\.a1_in1k") as caught:
        pretrained.timm_weights("resnet50", tmp_path)
    assert time.monotonic() - began < 20
    assert str(tmp_path / "weights" / "timm" / "resnet50.a1_in1k.safetensors") in str(caught.value.hint)


def test_a_backbone_that_timm_has_no_weights_for_is_told_which_have():
    with pytest.raises(OptionInvalid, match="timm has no weights for resnet26; it has for: resnet50"):
        pretrained.timm_weights("resnet26", Path())
