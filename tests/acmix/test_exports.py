"""Whole models with swaps through torch.compile, torch.export and ONNX: same numbers, no graph breaks."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from acmix.mixers import ACmixConv2d, ACmixLayer, layers_of
from acmix.model import build

IMAGE_PX = 20  # odd maps on the way down
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "resnet26": {"stem": "small", "width": 0.125},
    "swin": {"embed_dim": 8, "depths": [2, 1], "heads": [2, 4], "window": 3, "patch_px": 1},
    "pvt_tiny": {"patch_px": 1, "width": 0.0625},
    "san10": {"stem": "small", "width": 0.05},
}
LAYERS = {"resnet26": 8, "swin": 3, "pvt_tiny": 8, "san10": 10}
ALL = [{"layers": "*"}]


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    """What torch has for each of its operations in ONNX is parsed anew at every export, the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def a_model(name: str, *, swaps: Sequence[Mapping[str, Any]] = ALL) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build({"name": name, "options": BACKBONES[name]}, swaps, num_classes=5, image_px=IMAGE_PX)
    return model, torch.randn(3, 3, IMAGE_PX, IMAGE_PX)


@torch.no_grad()
def drawn(model: nn.Module, images: Tensor) -> nn.Module:
    """Every parameter random: fresh blocks of a SAN are the identity, and no other form's would weigh much."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1)
        else:
            nn.init.kaiming_normal_(parameter)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    model.train()(images)
    return model.eval()


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    """For any number of images."""
    shapes = ({0: torch.export.Dim("batch")}, *[None] * (len(inputs) - 1))
    return torch.export.export(model, inputs, dynamic_shapes=shapes)


def a_layer(name: str, *, swaps: Sequence[Mapping[str, Any]] = ALL) -> tuple[nn.Module, tuple[Any, ...]]:
    """A layer in the place of a slot, and what its block might call it with."""
    place, inputs = {
        "resnet26": ("layer2.0.conv2", (torch.randn(2, 16, 11, 14),)),
        "swin": ("layers.0.blocks.1.attn", (torch.randn(2, 11, 14, 8),)),
        "pvt_tiny": ("block3.0.attn", (torch.randn(2, 11 * 14 + 1, 20), 11, 14)),
        "san10": ("stages.1.0.attention", (torch.randn(2, 32, 11, 14),)),
    }[name]
    layer = a_model(name, swaps=swaps)[0].get_submodule(place)
    assert isinstance(layer, ACmixLayer) == bool(swaps)
    return layer, inputs


def outputs_and_gradients_of(model: nn.Module, *inputs: Any) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    out = model(*inputs)
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("name", BACKBONES)
def test_it_compiles_to_one_graph_with_the_same_gradients(name: str):
    layer, inputs = a_layer(name)
    expected = outputs_and_gradients_of(layer, *inputs)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outputs_and_gradients_of(compiled, *inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_compiles_it_too():
    layer = a_model("resnet26")[0].get_submodule("layer2.0.conv2")
    assert isinstance(layer, ACmixConv2d)
    x = torch.randn(2, layer.in_channels, 11, 14)
    expected = outputs_and_gradients_of(layer, x)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(outputs_and_gradients_of(compiled, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "swaps"), [*((name, ALL) for name in BACKBONES), ("san10", [])])
def test_programs_of_a_layer_for_any_batch_compute_the_same(
    name: str, swaps: Sequence[Mapping[str, Any]], tmp_path: Path
):
    layer, inputs = a_layer(name, swaps=swaps)
    assert_programs_compute_the_same(layer.eval(), inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet26", "san10"])
def test_programs_of_a_whole_model_do_too(name: str, tmp_path: Path):
    assert_programs_of_the_whole_compute_the_same(name, tmp_path)


@pytest.mark.release
@pytest.mark.parametrize("name", ["swin", "pvt_tiny"])
def test_programs_of_the_other_whole_models_do_too(name: str, tmp_path: Path):
    assert_programs_of_the_whole_compute_the_same(name, tmp_path)


def assert_programs_of_the_whole_compute_the_same(name: str, folder: Path) -> None:
    """Rounding grows with depth: random weights, and nothing is trained to dampen it."""
    model, images = a_model(name)
    assert len(layers_of(model)) == LAYERS[name]
    assert_programs_compute_the_same(drawn(model, images), (images,), folder, rtol=1e-3, atol=1e-4)


def assert_programs_compute_the_same(
    model: nn.Module, inputs: tuple[Any, ...], folder: Path, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """An exported program, which holds torch's own operations alone, and what ONNX makes of it."""
    program = exported(model, inputs)
    assert not [node for node in program.graph.nodes if "acmix" in str(node.target)]
    more = torch.cat([inputs[0], -inputs[0]])
    expected = model(more, *inputs[1:])
    torch.testing.assert_close(program.module()(more, *inputs[1:]), expected, rtol=rtol, atol=atol)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=rtol, atol=atol)
