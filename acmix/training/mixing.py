"""Mixup and CutMix: pairs of a batch's images mixed, and their labels with them.

Source: Zhang et al., ICLR 2018, and Yun et al., ICCV 2019; computed by torchvision.
"""

# Shapes: B batch, H W image, C classes

from dataclasses import dataclass

import torch
from torch import Tensor

from acmix.errors import OptionInvalid
from acmix.spec import Training
from acmix.tasks._contract import Task

_SALT = 0x85EBCA6B  # lest a batch draw like its first image


@dataclass(frozen=True)
class Mixing:
    """Mixes a batch by one of the two; where both are on, either every other time by chance."""

    mixup: float
    cutmix: float
    num_classes: int

    def __call__(self, images_B3HW: Tensor, labels_B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mixed images, and the share of every class in each, float32 (B, C). The caller's generator is not used."""
        from torchvision.transforms import v2

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed ^ _SALT)
            use_cutmix = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
            kind, strength = (v2.CutMix, self.cutmix) if use_cutmix else (v2.MixUp, self.mixup)
            mixed: tuple[Tensor, Tensor] = kind(alpha=strength, num_classes=self.num_classes)(images_B3HW, labels_B)
        return mixed


def mixing_of(training: Training, task: Task) -> Mixing | None:
    """What a spec asks for; None where it mixes nothing. OptionInvalid where the task has no labels to mix."""
    if not (training.mixup or training.cutmix):
        return None
    if task.num_outputs is None:
        raise OptionInvalid(f"mixup and cutmix mix labels of whole images, which {task.name} has not; 0 would do")
    return Mixing(training.mixup, training.cutmix, task.num_outputs)
