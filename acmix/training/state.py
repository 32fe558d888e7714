"""All that a run must remember to go on exactly where it stopped."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from acmix.errors import CheckpointIncompatible


@dataclass
class State:
    """Weights, optimizer, schedule, scaler, moving average, position and best so far."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    average: AveragedModel | None = None
    epoch: int = 0  # epochs finished
    batch: int = 0  # batches done of the epoch under way
    step: int = 0  # optimizer steps done
    evaluated: int = 0  # the last epoch that was evaluated
    metrics: dict[str, float] | None = None  # of that evaluation
    best: dict[str, Any] | None = None  # metric, value, epoch, step

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint's model file holds."""
        return self.judged.state_dict()

    def tree(self, random_of_others: Sequence[Any] = ()) -> dict[str, Any]:
        """Everything else, for `checkpoint.save`. The raw weights are in it only where an average is judged.

        Args:
            random_of_others: the `random_state` of every rank but the first, which this one is.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else {"n_averaged": self.average.n_averaged},
            "raw_weights": None if self.average is None else self.model.state_dict(),
            "position": {"epoch": self.epoch, "batch": self.batch, "step": self.step, "evaluated": self.evaluated},
            "metrics": self.metrics,
            "best": self.best,
            "random": random_state(),
            **({"random_of_others": list(random_of_others)} if random_of_others else {}),
        }

    def restore(self, weights: dict[str, Tensor], tree: dict[str, Any], rank: int = 0, ranks: int = 1) -> None:
        """Become what `weights` and `tree` say; the random generators last, which are those of this rank.

        Raises:
            CheckpointIncompatible: the checkpoint belongs to another model, or to another number of ranks.
        """
        generators = [tree["random"], *tree.get("random_of_others", ())]
        if len(generators) != ranks:
            raise CheckpointIncompatible(
                f"the checkpoint was made by {len(generators)} processes that trained together, and the spec now has "
                f"{ranks}; as many as then would do"
            )
        try:
            self.judged.load_state_dict(weights)
            if self.average is not None:
                self.model.load_state_dict(tree["raw_weights"])
                self.average.n_averaged.copy_(tree["average"]["n_averaged"])
            self.optimizer.load_state_dict(tree["optimizer"])
            self.scaler.load_state_dict(tree["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointIncompatible(f"the checkpoint does not fit this spec: {error}") from error
        self._restore_schedule(tree["schedule"]["last_epoch"])
        position = tree["position"]
        self.epoch, self.batch, self.step = position["epoch"], position["batch"], position["step"]
        self.evaluated, self.metrics, self.best = position["evaluated"], tree["metrics"], tree["best"]
        set_random_state(generators[rank])

    def _restore_schedule(self, last_epoch: int) -> None:
        """A schedule is a closed form of its step count; the optimizer's groups already hold their learning rates."""
        self.schedule.last_epoch = last_epoch
        self.schedule._step_count = last_epoch + 1
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def seed_everything(seed: int) -> None:
    """Every generator that training draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # libraries draw from the global generator


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as a tree for `checkpoint.save`."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }


def as_json(random: dict[str, Any]) -> dict[str, Any]:
    """A `random_state` as JSON values, which `set_random_state` takes as well."""
    name, keys, *rest = random["numpy"]
    cuda = [each.tolist() for each in random["cuda"]]
    return {**random, "torch": random["torch"].tolist(), "cuda": cuda, "numpy": [name, keys.tolist(), *rest]}


def set_random_state(tree: dict[str, Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    version, words, gauss = tree["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = tree["numpy"]
    np.random.set_state((name, np.asarray(keys).astype(np.uint32), position, has_gauss, cached))
    if tree["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.as_tensor(tree["cuda"][0], dtype=torch.uint8))
    torch.set_rng_state(torch.as_tensor(tree["torch"], dtype=torch.uint8))
