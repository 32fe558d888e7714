"""Batch norms that are synchronised: what a model computes by its running figures stays the same."""

from typing import Any

import pytest
import torch
from torch import nn

from acmix.errors import OptionInvalid
from acmix.model import build
from acmix.training.setup import synchronised


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "timm/efficientnet_b0"},
        {"name": "timm/mobilenetv3_small_100"},
        {"name": "timm/regnety_002"},
        {"name": "resnet26", "options": {"width": 0.25}},
    ],
    ids=lambda backbone: backbone["name"],
)
def test_a_model_with_synchronised_batch_norms_answers_as_before(backbone: dict[str, Any]) -> None:
    """timm's norms hold an activation, which goes on being applied."""
    torch.manual_seed(0)
    model = build(backbone, num_classes=4, image_px=32).eval()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    images_B3HW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before_BO = model(images_B3HW)
        model = synchronised(model)
        assert torch.equal(model(images_B3HW), before_BO)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)] == norms != []


@pytest.mark.parametrize("swaps", [[], [{"layers": "*"}]])
def test_patchwise_attention_is_refused_synchronised_batch_norms(swaps: Any) -> None:
    model = build({"name": "san10", "options": {"stem": "small", "width": 0.05}}, swaps, num_classes=4, image_px=16)
    with pytest.raises(OptionInvalid, match="sync_batch_norm=true is not for patchwise attention"):
        synchronised(model)
