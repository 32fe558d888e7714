"""Ready specs: the paper's rows in classification, its pairs of head and backbone in detection and segmentation, and
its two ablations, to post as they are or to change.

Source: "On the Integration of Self-Attention and Convolution", Pan et al., CVPR 2022; recipes of classification from
the released code, which covers ResNet and Swin. SAN takes ResNet's recipe here, PVT takes Swin's. Nothing was released
for the other tasks: the sizes of the backbones are a choice, and the recipes those of RetinaNet, PVT and Swin.
Deviation from all of them: one GPU, so that a batch of 1,024 is gathered from eight of 128, and one of 16 from four of
4. A pair starts from a row of classification: put the id of its checkpoint in `backbone.weights`.
"""

from collections.abc import Iterator
from typing import Any

from acmix.catalog import Preset

# ImageNet in its own layout (train/<class>/<image>, val/<class>/<image>), in the folder `imagenet` of the data root
IMAGENET = {"name": "image_folder", "options": {"folder": "imagenet"}}
COCO = {"name": "coco", "options": {"folder": "coco"}}
ADE20K = {"name": "ade20k", "options": {"folder": "ade20k"}}
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
PAIRS = (
    ("resnet50", "retinanet"),
    ("pvt_tiny", "retinanet"),
    ("pvt_small", "retinanet"),
    ("swin_tiny", "mask_rcnn"),
    ("swin_tiny", "cascade_mask_rcnn"),
    ("swin_small", "cascade_mask_rcnn"),
    ("pvt_small", "semantic_fpn"),
    ("swin_tiny", "upernet"),
    ("swin_small", "upernet"),
)
HEADS = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "semantic_fpn": "Semantic FPN",
    "upernet": "UPerNet",
}
_DROP_PATH = {"pvt_tiny": 0.1, "pvt_small": 0.1, "swin_tiny": 0.2, "swin_small": 0.3}


def presets() -> list[Preset]:
    """Every preset, rows first."""
    return [*_rows(), *_pairs(), *_combinations(), *_shifts()]


def _rows() -> Iterator[Preset]:
    for backbone, title in ROWS.items():
        yield _preset(f"{backbone}-plain", f"{title} as it is: the baseline of its row", backbone)
        yield _preset(f"{backbone}-acmix", f"{title} with ACmix in every slot: the paper's row", backbone, {})


def _pairs() -> Iterator[Preset]:
    for backbone, head in PAIRS:
        name, title = f"{backbone}-{head.replace('_', '-')}", f"{HEADS[head]} on {ROWS[backbone]}"
        dense = _dense(backbone, head)
        yield _preset(f"{name}-plain", f"{title} as it is: the baseline of its pair", backbone, **dense)
        yield _preset(f"{name}-acmix", f"{title} with ACmix in every slot: a pair of the paper", backbone, {}, **dense)


def _dense(backbone: str, head: str) -> dict[str, Any]:
    """Task, data set and training of a head on a backbone."""
    if head in ("semantic_fpn", "upernet"):
        options = {"head": head, **({"auxiliary": True} if head == "upernet" else {})}
        training = _UPERNET if head == "upernet" else _SEMANTIC_FPN
        return {"task": {"name": "segmentation", "options": options}, "dataset": ADE20K, "training": training}
    options = {"head": head}
    if backbone in _DROP_PATH:
        training = _SWIN_DETECTION if backbone.startswith("swin") else _PVT_DETECTION
    else:
        options["frozen_norm"], training = True, _RESNET_DETECTION
    if head == "cascade_mask_rcnn":
        options["box_convolutions"] = True
    return {"task": {"name": "detection", "options": options}, "dataset": COCO, "training": training}


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


def _preset(name: str, what: str, backbone: str, mixer: dict[str, Any] | None = None, **dense: Any) -> Preset:
    """`mixer` holds the options of ACmix in every slot; None leaves the backbone plain. `dense` overrides the rest."""
    swaps = [] if mixer is None else [{"layers": "*", "mixer": {"name": "acmix", "options": mixer}}]
    drop_path = {"drop_path": _DROP_PATH[backbone]} if backbone in _DROP_PATH else {}
    spec = {
        "name": name,
        "backbone": {"name": backbone, "options": drop_path},
        "swaps": swaps,
        "dataset": IMAGENET,
        "training": _TRANSFORMER if drop_path else _CONVOLUTIONAL,
        **dense,
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
_SIXTEEN: dict[str, Any] = {"batch_size": 4, "accumulate_batches": 4}
_ONCE: dict[str, Any] = {
    **_SIXTEEN,
    "epochs": 12,
    "schedule": {"name": "milestones", "at_epochs": [8, 11], "warmup_epochs": 0.07},  # 500 steps of COCO
}
_RESNET_DETECTION: dict[str, Any] = {
    **_ONCE,
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
}
_PVT_DETECTION: dict[str, Any] = {**_ONCE, "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 1e-4}}
_SWIN_DETECTION: dict[str, Any] = {
    **_SIXTEEN,
    "epochs": 36,
    "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
    "schedule": {"name": "milestones", "at_epochs": [27, 33], "warmup_epochs": 0.07},
    "augment": {"name": "multi_scale"},
}
_SEMANTIC_FPN: dict[str, Any] = {
    **_SIXTEEN,
    "epochs": 64,  # 80,000 steps of ADE20K
    "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 1e-4},
    "schedule": {"name": "polynomial", "power": 0.9, "warmup_epochs": 0},
}
_UPERNET: dict[str, Any] = {
    **_SIXTEEN,
    "epochs": 127,  # 160,000 steps of ADE20K
    "optimizer": {"name": "adamw", "lr": 6e-5, "weight_decay": 0.01},
    "schedule": {"name": "linear", "warmup_epochs": 1.2},
    "augment": {"name": "scale_crop", "distort": True},
}
