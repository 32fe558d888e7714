"""The authors' checkpoints made files of ours: what is recognised, what is written, what is refused."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from acmix import authors, weights
from acmix.convert import convert, recognised
from acmix.errors import CheckpointIncompatible
from acmix.model import build
from acmix.weights import ABOUT

GOLDEN = Path(__file__).parent / "golden"
NARROW = {"name": "resnet", "options": {"depths": [1, 2, 1, 1], "stem": "small", "width": 0.25}}


def official(name: str) -> dict[str, Tensor]:
    """The keys and shapes of one of their checkpoints, without memory for its values."""
    shapes = json.loads((GOLDEN / f"official_{name}_acmix_state_dict.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def theirs(swaps: list[dict[str, Any]], backbone: Mapping[str, Any] = NARROW) -> dict[str, Tensor]:
    """A model of ours as they would have saved it."""
    torch.manual_seed(0)
    model = build(backbone, swaps, num_classes=6, image_px=32)
    own = model.state_dict()
    names = authors._their_names(model, own)
    return {names[key]: value for key, value in own.items()}


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "authors.pth")
    return tmp_path / "authors.pth"


def about(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()[ABOUT])
    return found


def test_their_resnet_50_is_recognised_by_its_keys_and_shapes():
    found = recognised(official("resnet50"))
    options = {"heads": 4, "kernel_att": 7, "kernel_conv": 3}
    assert found.backbone == {"name": "resnet50", "options": {}}
    assert found.swaps == [{"layers": "*", "mixer": {"name": "acmix", "options": options}}]
    assert found.num_classes == 1000
    with torch.device("meta"):
        model = build(found.backbone, found.swaps, num_classes=1000, image_px=224)
    own = model.state_dict()
    names = authors._their_names(model, own)
    assert {names[key]: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in official("resnet50").items()
    }


@pytest.mark.parametrize(("file", "name"), [("swin_t", "swin_tiny"), ("swin_s", "swin_small")])
def test_their_swins_are_recognised_by_their_keys_and_shapes(file: str, name: str):
    found = recognised(official(file))
    assert found.backbone == {"name": name, "options": {}}
    assert found.swaps == [{"layers": "*", "mixer": {"name": "acmix", "options": {"kernel_conv": 3}}}]
    with torch.device("meta"):
        model = build(found.backbone, found.swaps, num_classes=1000, image_px=found.image_px)
    own = model.state_dict()
    names = authors._their_names(model, own)
    remade = ("attn_mask", "relative_position_index")
    expected = {key: value.shape for key, value in official(file).items() if not key.endswith(remade)}
    assert {names[key]: value.shape for key, value in own.items()} == expected


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("model_swin_*")), ids=lambda path: path.stem)
def test_a_small_swin_of_theirs_starts_a_model_of_the_same_logits(golden: Path, tmp_path: Path):
    recorded = load_file(golden)
    state = {key.removeprefix("state."): value for key, value in recorded.items() if key.startswith("state.")}
    found = convert(saved(tmp_path, {"model": state, "epoch": 300}), tmp_path / "ours.safetensors")
    assert found.backbone["name"] == "swin"
    given = weights.read(tmp_path / "ours.safetensors")
    assert given["head.weight"].dtype == torch.float64
    side = recorded["x"].shape[-1]
    model = build(found.backbone, num_classes=5, image_px=side).double()
    fit = weights.load(model, given, found.swaps)
    assert (fit.missing, fit.unexpected, fit.reshaped) == ([], [], {})
    assert torch.allclose(model.eval()(recorded["x"]), recorded["logits"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "swaps",
    [
        [],
        [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 2}}}],
        [{"layers": "layer2.1.*"}, {"layers": "layer4.*", "mixer": {"name": "acmix", "options": {"kernel_conv": 5}}}],
    ],
)
def test_a_resnet_of_theirs_becomes_a_file_that_starts_the_same_model(swaps: list[dict[str, Any]], tmp_path: Path):
    source = saved(tmp_path, {"state_dict": {f"module.{key}": value for key, value in theirs(swaps).items()}})
    found = convert(source, tmp_path / "ours.safetensors")
    assert found.backbone == NARROW
    spec = about(tmp_path / "ours.safetensors")["spec"]
    given = weights.read(tmp_path / "ours.safetensors")
    model, fit = weights.start(spec["backbone"], spec["swaps"], given, num_classes=6, image_px=32)
    torch.manual_seed(0)
    expected = build(NARROW, swaps, num_classes=6, image_px=32)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), expected.eval()(images))
    assert (fit.missing, fit.unexpected, fit.reshaped) == ([], [], {})


def test_settings_that_scripts_leave_beside_the_weights_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Swin's scripts save a yacs.config.CfgNode along, others their argparse.Namespace; neither is imported again."""
    import argparse

    config = ModuleType("yacs.config")
    config.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    node = config.CfgNode({"MODEL": config.CfgNode({"TYPE": "swin"})})
    node.__dict__["_immutable"] = True
    args = argparse.Namespace(lr=0.1)
    source = saved(tmp_path, {"model": theirs([]), "config": node, "args": args, "optimizer": {"state": {}}})
    monkeypatch.undo()
    assert convert(source, tmp_path / "ours.safetensors").backbone == NARROW


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(__file__).parent / "executed",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"model": Evil()}, "cannot be read as a checkpoint of torch.save"),
        ({"encoder.weight": torch.ones(2, 2)}, "neither a ResNet of bottlenecks nor a Swin"),
        (torch.ones(3), "holds no weights by name"),
        ({"epoch": 3}, "holds no weights by name"),
        ({"layer1.0.conv3.weight": torch.ones(4, 4)}, "lacks a part"),
    ],
)
def test_what_is_neither_is_refused_and_nothing_is_written(content: Any, sentence: str, tmp_path: Path):
    source = saved(tmp_path, content)
    with pytest.raises(CheckpointIncompatible, match=sentence):
        convert(source, tmp_path / "ours.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert not (Path(__file__).parent / "executed").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of a byte that says which
def test_a_file_damaged_by_whatever_seed_is_refused_by_a_sentence(tmp_path: Path):
    """Of both forms of torch.save: bytes changed, the end cut off."""
    chance, whole = random.Random(1), {"model": {"a.weight": torch.ones(3, 3)}, "epoch": 3, "names": [1, "x", None]}
    for number in range(300):
        torch.save(whole, tmp_path / "authors.pth", _use_new_zipfile_serialization=number % 3 == 0)
        content = bytearray((tmp_path / "authors.pth").read_bytes())
        for _ in range(chance.choice([1, 2, 5, 20])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if number % 4 == 0:
            del content[chance.randrange(len(content)) :]
        (tmp_path / "authors.pth").write_bytes(content)
        with pytest.raises(CheckpointIncompatible):
            convert(tmp_path / "authors.pth", tmp_path / "ours.safetensors")


def test_a_part_that_is_missing_or_too_much_is_named(tmp_path: Path):
    whole = theirs([{"layers": "*"}])
    for changed, sentence in (
        ({key: value for key, value in whole.items() if key != "bn1.bias"}, "missing: bn1.bias"),
        (whole | {"extra.weight": torch.ones(1)}, "unexpected: extra.weight"),
    ):
        with pytest.raises(CheckpointIncompatible, match=sentence):
            convert(saved(tmp_path, changed), tmp_path / "ours.safetensors")


def test_a_backbone_that_was_asked_for_must_be_the_one_that_is_there(tmp_path: Path):
    source = saved(tmp_path, theirs([]))
    with pytest.raises(CheckpointIncompatible, match=r'holds \{"name": "resnet", .*\}, not a resnet50'):
        convert(source, tmp_path / "ours.safetensors", backbone="resnet50")
    assert convert(source, tmp_path / "ours.safetensors", backbone="resnet").num_classes == 6


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        convert(saved(tmp_path, theirs([])), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authors.pth", "folder"]


def test_by_hand_it_prints_what_was_found_or_a_sentence(tmp_path: Path):
    source = saved(tmp_path, theirs([]))
    command = [sys.executable, "-m", "acmix", "convert", str(source), str(tmp_path / "ours.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == about(tmp_path / "ours.safetensors")
    refused = subprocess.run([*command, "--backbone", "swin_tiny"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "not a swin_tiny" in refused.stderr
    assert "Traceback" not in refused.stderr
