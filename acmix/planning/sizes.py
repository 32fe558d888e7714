"""What a training step of a model takes, read from a step on tensors without memory."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from acmix.model import trunk_of
from acmix.planning.hollow import HollowMode
from acmix.planning.meters import LayerMeter
from acmix.spec import JobSpec
from acmix.training import optimizer
from acmix.training.loop import dtype_of, to_device
from acmix.training.setup import task_of

# What a step makes and frees leaves holes in the allocator, which what comes next does not fit. How much is measured,
# not derived: with glibc's, python -m benchmarks.memory finds 0.45 to 0.72 of the passing bytes for ResNets; single
# runs of twelve models of timm found 0.13 (pvt_v2_b0) to 0.97 (vgg11). 0.4 was chosen after seeing these; it predicts
# each of their peaks within a quarter, and says nothing about others or about the allocator of a graphics card.
HOLES = 0.4


@dataclass(frozen=True)
class LayerSize:
    """One layer: parameters, multiply-adds of one image, bytes that it keeps of a batch for the backward pass.

    What it keeps counts once, its input included where it needs that, whether or not a neighbour keeps the same.
    """

    params: int
    macs: int
    activation_bytes: int
    input_shape: Sequence[int]


@dataclass(frozen=True)
class StepSize:
    """A whole model: parameters, multiply-adds of one image, and the bytes of a training step.

    `activation_bytes` is what the forward pass keeps; `lasting_bytes` are weights, optimizer state, moving average and
    batch; `passing_bytes` is the most that activations, gradients and temporaries ever take together.
    """

    layers: Mapping[str, LayerSize]
    params: int
    macs: int
    activation_bytes: int
    lasting_bytes: int
    passing_bytes: int

    @property
    def tensor_bytes(self) -> int:
        """The most that tensors ever take."""
        return self.lasting_bytes + self.passing_bytes

    @property
    def peak_memory_bytes(self) -> int:
        """The most that the process takes for them: tensors, and the holes between them."""
        return self.lasting_bytes + round(self.passing_bytes * (1 + HOLES))


def measure(model: nn.Module, job: JobSpec, *, num_classes: int, image_px: int, layers: Sequence[str]) -> StepSize:
    """Sizes under the job's task, batch size, optimizer, precision and moving average.

    The model must have been built on the meta device, and is of no use afterwards. `layers` are those whose own sizes
    are wanted, by their names in the backbone. Whatever the model raises comes through.
    """
    training = job.training
    task = task_of(job, [str(number) for number in range(num_classes)])
    dtype = dtype_of(training)
    with HollowMode():
        _make_hollow(model.to(dtype))
        made_up = task.made_up(training.batch_size, image_px, mixed=bool(training.mixup or training.cutmix))
        batch = to_device(made_up, torch.device("cpu"), dtype)
    of_batch = [each for each in batch if isinstance(each, Tensor)]
    lasting = [*model.parameters(), *model.buffers(), *of_batch]
    meter = LayerMeter(model.train(), layers, lasting)
    with HollowMode(lasting) as living:
        if training.accumulate_batches > 1:
            _set_gradients(model)  # those of the batches before
        with meter, saved_tensors_hooks(meter.keep, _unchanged), _autocast(job):
            loss = task.rehearse(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    state_bytes, temporary_bytes = _optimizer_bytes(model, job)
    weight_bytes = _bytes((*model.parameters(), *model.buffers())) * (1 if training.ema is None else 2)
    gradient_bytes = _bytes(each for each in model.parameters() if each.requires_grad)
    return StepSize(
        layers={name: _layer(model, name, meter, training.batch_size) for name in layers},
        params=_params(model),
        macs=meter.macs // training.batch_size,
        activation_bytes=meter.kept_bytes,
        lasting_bytes=weight_bytes + state_bytes + _bytes(of_batch) * training.accumulate_batches,
        passing_bytes=max(living.most_bytes, gradient_bytes + temporary_bytes),
    )


def forward(model: nn.Module, job: JobSpec, *, num_classes: int, images: int, image_px: int) -> None:
    """One forward pass in training mode, for what it may raise; the model as in `measure`."""
    task = task_of(job, [str(number) for number in range(num_classes)])
    with HollowMode(), torch.no_grad():
        _make_hollow(model)
        task.rehearse(model.train(), task.made_up(images, image_px, mixed=False))


def _make_hollow(model: nn.Module) -> None:
    """Put hollow tensors in the place of all others, shared ones staying shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for table in tables:
            for name, value in table.items():
                if isinstance(value, Tensor):
                    table[name] = made.setdefault(id(value), _hollow(value))


def _hollow(tensor: Tensor) -> Tensor:
    hollow = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow


def _autocast(job: JobSpec) -> Any:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(job.training.precision)
    return torch.autocast("cpu", dtype) if dtype else nullcontext()


def _set_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None


def _optimizer_bytes(model: nn.Module, job: JobSpec) -> tuple[int, int]:
    """What the optimizer keeps, and what a step of it takes for a moment.

    One parameter of each shape goes through a step and stands for all: a ResNet-50 has 161 and 29 shapes.
    """
    alike = Counter((each.shape, each.dtype) for each in model.parameters() if each.requires_grad)
    with HollowMode():
        ones = nn.ParameterList(torch.empty(shape, dtype=dtype) for shape, dtype in alike)
        _set_gradients(ones)
    descent = optimizer.build(ones, job.training.optimizer, job.training.weight_decay_on)
    with HollowMode([*ones, *(one.grad for one in ones if one.grad is not None)]) as living:
        descent.step()
    state_bytes = [_bytes(each for each in descent.state[one].values() if isinstance(each, Tensor)) for one in ones]
    kept_bytes = sum(count * each for count, each in zip(alike.values(), state_bytes, strict=True))
    return kept_bytes, living.most_bytes - living.now_bytes


def _layer(model: nn.Module, name: str, meter: LayerMeter, batch_size: int) -> LayerSize:
    return LayerSize(
        params=_params(trunk_of(model).get_submodule(name)),
        macs=meter.layer_macs[name] // batch_size,
        activation_bytes=meter.layer_kept_bytes(name),
        input_shape=tuple(meter.input_shapes.get(name, ())),
    )


def _unchanged(kept: Tensor) -> Tensor:
    return kept


def _params(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.nbytes for each in tensors)
