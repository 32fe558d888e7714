"""Ready specs: the rows of the paper's classification table and its two ablations, to post as they are or to change.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022, tables 2, 6 and 7; recipes from
the released code, which covers ResNet and Swin. SAN takes ResNet's recipe here, PVT takes Swin's.
Deviation from the authors' code: one GPU, so that a Swin's batch of 1,024 is gathered from eight of 128.
"""

from collections.abc import Iterator
from typing import Any

from acmix.catalog import Preset

# ImageNet in its own layout (train/<class>/<image>, val/<class>/<image>), in the folder `imagenet` of the data root
IMAGENET = {"name": "image_folder", "options": {"folder": "imagenet"}}
COMBINES = {
    "convolution": "the convolution alone",
    "attention": "the attention alone",
    "sum": "both paths at 1",
    "complement": "alpha and 1 - alpha",
    "alpha_beta": "alpha and beta, both learned",
}
SHIFTS = {
    "tensor": "tensor shifts",
    "depthwise_fixed": "a depthwise convolution with fixed shift kernels",
    "grouped_fixed": "one grouped convolution with frozen shift kernels",
    "grouped_learned": "one grouped convolution with learned kernels, initialised as shifts",
    "full_group": "learned kernels for every head, initialised as shifts",
}
ROWS = {
    "resnet26": "ResNet-26",
    "resnet38": "ResNet-38",
    "resnet50": "ResNet-50",
    "san10": "SAN-10",
    "san15": "SAN-15",
    "san19": "SAN-19",
    "pvt_tiny": "PVT-T",
    "pvt_small": "PVT-S",
    "swin_tiny": "Swin-T",
    "swin_small": "Swin-S",
}
_DROP_PATH = {"pvt_tiny": 0.1, "pvt_small": 0.1, "swin_tiny": 0.2, "swin_small": 0.3}


def presets() -> list[Preset]:
    """Every preset, rows first."""
    return [*_rows(), *_combinations(), *_shifts()]


def _rows() -> Iterator[Preset]:
    for backbone, title in ROWS.items():
        yield _preset(f"{backbone}-plain", f"{title} as it is: the baseline of its row", backbone)
        yield _preset(f"{backbone}-acmix", f"{title} with ACmix in every slot: the paper's row", backbone, {})


def _combinations() -> Iterator[Preset]:
    """The ablation of how the two paths are combined."""
    for combine, how in COMBINES.items():
        what = f"Ablation of the combination on Swin-T: {how}"
        yield _preset(f"ablation-combine-{combine}", what, "swin_tiny", {"combine": combine})


def _shifts() -> Iterator[Preset]:
    """The ablation of how the convolution path shifts."""
    for shift, how in SHIFTS.items():
        what = f"Ablation of the shift on Swin-T: {how}"
        yield _preset(f"ablation-shift-{shift}", what, "swin_tiny", {"shift": shift})


def _preset(name: str, what: str, backbone: str, mixer: dict[str, Any] | None = None) -> Preset:
    """`mixer` holds the options of ACmix in every slot; None leaves the backbone plain."""
    swaps = [] if mixer is None else [{"layers": "*", "mixer": {"name": "acmix", "options": mixer}}]
    drop_path = {"drop_path": _DROP_PATH[backbone]} if backbone in _DROP_PATH else {}
    spec = {
        "name": name,
        "backbone": {"name": backbone, "options": drop_path},
        "swaps": swaps,
        "dataset": IMAGENET,
        "training": _TRANSFORMER if drop_path else _CONVOLUTIONAL,
    }
    return Preset(name=name, what=what, spec=spec)


_CONVOLUTIONAL: dict[str, Any] = {
    "epochs": 90,
    "batch_size": 256,
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "warmup_epochs": 5},
    "label_smoothing": 0.1,
}
_TRANSFORMER: dict[str, Any] = {
    "epochs": 300,
    "batch_size": 128,
    "accumulate_batches": 8,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "schedule": {"name": "cosine", "warmup_epochs": 20},
    "label_smoothing": 0.1,
    "clip_norm": 5.0,
    "augment": {"name": "randaugment", "magnitude": 9, "erase": 0.25},
    "mixup": 0.8,
    "cutmix": 1.0,
}
