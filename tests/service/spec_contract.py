"""What a spec may hold by the contract's words, and not by the product's models: for those who judge what it takes."""

import json
import math
from typing import Any

# Bounds as the contract has them, and not as the product's models say
INTEGERS: dict[str, tuple[int, int]] = {
    "/training/epochs": (1, 100_000),
    "/training/batch_size": (1, 65_536),
    "/training/accumulate_batches": (1, 65_536),
    "/training/seed": (0, 2**32 - 1),
    "/training/limit_train_batches": (1, 10**9),
    "/training/loader_workers": (0, 64),
    "/evaluation/every_epochs": (1, 100_000),
    "/checkpoints/every_epochs": (1, 100_000),
    "/checkpoints/keep_best": (0, 100),
    "/checkpoints/keep_latest": (1, 100),
    "/trace/every_steps": (1, 10**9),
    "/priority": (-100, 100),
}
# least and most, both within
FRACTIONS: dict[str, tuple[float, float]] = {
    "/training/label_smoothing": (0, 0.999),
    "/training/clip_norm": (1e-9, 1e9),
    "/training/mixup": (0, 10),
    "/training/cutmix": (0, 10),
    "/checkpoints/every_seconds": (1e-9, 1e7),
    "/resources/max_runtime_seconds": (1e-9, 1e9),
    "/training/ema/decay": (1e-6, 0.999999),
    "/training/optimizer/lr": (1e-9, 1e6),
    "/training/optimizer/momentum": (0, 0.999),
    "/backbone/options/width": (0.5, 8),
}
WORDS: dict[str, list[str]] = {
    "/kind": ["train"],
    "/task/name": ["classification"],
    "/backbone/name": ["resnet26", "resnet50"],
    "/backbone/options/stem": ["imagenet", "small"],
    "/swaps/0/mixer/name": ["acmix"],
    "/swaps/0/mixer/options/combine": ["alpha_beta"],
    "/dataset/name": ["digits"],
    "/training/optimizer/name": ["sgd"],
    "/training/schedule/name": ["cosine"],
    "/training/augment/name": ["default", "crop"],
    "/training/precision": ["float32", "bf16", "fp16"],
    "/training/weight_decay_on": ["weights", "all"],
    "/evaluation/metric": ["auto", "accuracy", "top5_accuracy", "loss"],
    "/evaluation/split": ["train", "val", "test"],
}
OBJECTS = [
    "/metadata",
    "/task",
    "/backbone",
    "/backbone/options",
    "/swaps/0",
    "/swaps/0/mixer",
    "/swaps/0/mixer/options",
    "/dataset",
    "/dataset/options",
    "/training",
    "/training/optimizer",
    "/training/schedule",
    "/training/augment",
    "/training/ema",
    "/evaluation",
    "/checkpoints",
    "/trace",
    "/resources",
]
FIELDS = {
    "": "kind name metadata task backbone swaps dataset checkpoint training evaluation checkpoints trace resources "
    "priority",
    "/task": "name options",
    "/backbone": "name options weights",
    "/backbone/options": "stem width",
    "/swaps/0": "layers mixer",
    "/swaps/0/mixer": "name options",
    "/swaps/0/mixer/options": "heads kernel_att kernel_conv combine",
    "/dataset": "name options id sha256",
    "/dataset/options": "image_px",
    "/training": "epochs batch_size accumulate_batches optimizer schedule weight_decay_on precision label_smoothing "
    "seed clip_norm ema augment mixup cutmix limit_train_batches loader_workers",
    "/training/optimizer": "name lr weight_decay momentum nesterov",
    "/training/schedule": "name warmup_epochs final_factor",
    "/training/augment": "name padding_px fill",
    "/training/ema": "decay",
    "/evaluation": "split every_epochs metric",
    "/checkpoints": "every_epochs every_seconds keep_best keep_latest",
    "/trace": "every_steps",
    "/resources": "gpus max_runtime_seconds",
}
# a transplant may name another entry, whose options these are not
OF_ANOTHER_NAME = {"/backbone/options", "/training/optimizer", "/training/schedule", "/training/augment"}


def flaw(body: bytes) -> str | None:
    """Why no such body may be taken, by the contract's words alone; None where nothing tells."""
    try:
        spec = json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    return _flaw_of(spec, "") if isinstance(spec, dict) else "no object"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a field twice")
    return dict(pairs)


def _refuse(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _flaw_of(value: Any, path: str) -> str | None:
    """The first flaw of a value at a place of the spec."""
    if isinstance(value, str) and any(each < " " or "\ud800" <= each <= "\udfff" or each == "\x7f" for each in value):
        return f"{path} holds what cannot be printed"
    if path in INTEGERS and value not in (None, "auto"):
        least, most = INTEGERS[path]
        if type(value) is not int or not least <= value <= most:
            return f"{path} is no integer of {least} to {most}"
    if path in FRACTIONS and value not in (None, "auto") and (type(value) not in (int, float) or value < 0):
        return f"{path} is no number"
    if isinstance(value, dict):
        unknown = set(value) - set(FIELDS[path].split()) if path in FIELDS else set()
        if unknown and path not in OF_ANOTHER_NAME:
            return f"{path} has {unknown}"
        return next((told for name, item in value.items() if (told := _flaw_of(item, f"{path}/{name}"))), None)
    if isinstance(value, list):
        return next((told for index, item in enumerate(value) if (told := _flaw_of(item, f"{path}/{index}"))), None)
    return None
