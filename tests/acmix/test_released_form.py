"""The benchmarks' peer computes what the authors' module computes, or its times would prove nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from acmix import authors
from acmix.mixers import ACmixConv2d
from benchmarks.released_form import released

GOLDEN = sorted(Path(__file__).with_name("golden").glob("resnet_*.safetensors"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_it_equals_the_golden_vectors(path: Path):
    with safe_open(path, framework="pt") as file:
        options = {name: json.loads(value) for name, value in file.metadata().items() if name != "family"}
        recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
    layer = ACmixConv2d(options.pop("in_channels"), options.pop("out_channels"), **options).double()
    authors.load(layer, {name[6:]: value for name, value in recorded.items() if name.startswith("state.")})
    x = recorded["x"].requires_grad_()
    out = released(layer)(x)
    out.backward(recorded["grad_out"])
    torch.testing.assert_close(out, recorded["out"], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, recorded["grad_x"], rtol=0, atol=1e-10)
