"""Whole models with swaps through torch.compile, torch.export and ONNX: same numbers, no graph breaks."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from acmix.mixers import ACmixConv2d, layers_of
from acmix.model import build

SMALL = {"name": "resnet26", "options": {"stem": "small", "width": 0.125}}
IMAGE_PX = 20  # odd maps on the way down


def a_model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return build(SMALL, [{"layers": "*"}], num_classes=5, image_px=IMAGE_PX), torch.randn(3, 3, IMAGE_PX, IMAGE_PX)


def gradients_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    model(images).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_it_compiles_to_one_graph_with_the_same_gradients():
    model, _ = a_model()
    layer = model.get_submodule("layer2.0.conv2")
    assert isinstance(layer, ACmixConv2d)
    x = torch.randn(2, layer.in_channels, 11, 14)
    expected = gradients_of(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients_of(compiled, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_inductor_compiles_it_too():
    layer = a_model()[0].get_submodule("layer2.0.conv2")
    assert isinstance(layer, ACmixConv2d)
    x = torch.randn(2, layer.in_channels, 11, 14)
    expected = gradients_of(layer, x)
    torch.testing.assert_close(gradients_of(torch.compile(layer, fullgraph=True), x), expected, rtol=1e-3, atol=1e-4)


def test_an_exported_program_takes_any_batch_and_holds_torchs_operations_alone():
    model, images = a_model()
    program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert len(layers_of(model)) == 8
    assert not [node for node in program.graph.nodes if "acmix" in str(node.target)]
    more = torch.cat([images, -images])
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)


def test_onnx_gives_the_same_logits(tmp_path: Path):
    model, images = a_model()
    program = torch.onnx.export(model.eval(), (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-5)
