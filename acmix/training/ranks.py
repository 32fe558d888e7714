"""The processes that train together, each a rank of its own: what they agree on, sum up and tell each other."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from acmix.training.launch import is_rank

SEED_STRIDE = 0x9E3779B1  # odd, so that no two ranks of a seed meet
LONGEST_WAIT = timedelta(minutes=30)  # for the others: a rank may have to read a large data set before it trains


@dataclass(frozen=True)
class Ranks:
    """Which of them this process is. What they exchange goes over the CPU; gradients are DistributedDataParallel's.

    Every method has to be called by all of them, in the same order. Alone, they cost nothing.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """The first tells events and writes checkpoints."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """What this rank's generators start from: the first's are those of a run that is alone."""
        return (seed + SEED_STRIDE * self.rank) % 2**32

    def agree(self, *claims: bool) -> tuple[bool, ...]:
        """Of each claim, whether any rank makes it."""
        if self.size == 1:
            return claims
        made = torch.tensor(claims, dtype=torch.uint8)
        dist.all_reduce(made, dist.ReduceOp.MAX, group=self.group)
        return tuple(made.bool().tolist())

    def total(self, figures: Tensor) -> Tensor:
        """The sum over all ranks, float64 on the CPU."""
        summed = figures.detach().to("cpu", torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(summed, group=self.group)
        return summed

    def gather(self, said: Any) -> list[Any]:
        """What each rank says, JSON values, by rank."""
        if self.size == 1:
            return [said]
        mine = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self.group)
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: len(mine)] = mine
        all_said = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(all_said, padded, group=self.group)
        pairs = zip(all_said, lengths, strict=True)
        return [json.loads(each[: int(length)].numpy().tobytes()) for each, length in pairs]

    def first_says(self, said: Any) -> Any:
        """What the first rank says; what others say is not heard."""
        return self.gather(said if self.is_first else None)[0]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Make these tensors, on whatever device, those of the first rank."""
        if self.size == 1:
            return
        for tensor in tensors:
            on_host = tensor.detach().cpu()
            dist.broadcast(on_host, 0, group=self.group)
            tensor.detach().copy_(on_host)


ALONE = Ranks()


def local_rank() -> int:
    """Which of the ranks on this machine, and so which of its GPUs."""
    return int(os.environ["LOCAL_RANK"]) if is_rank() else 0


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Within, this process is one of those that it was started with, or alone."""
    if not is_rank():
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT, device_id=device if on_gpu else None)
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if on_gpu else None
    yield Ranks(dist.get_rank(), dist.get_world_size(), group)
    dist.destroy_process_group()  # not after an error: others may never come to it
