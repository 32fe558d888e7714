"""Optimizers by name: torch's, and timm's where torch has none. Keyword-only arguments are the spec's options."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn, optim

from acmix.errors import OptionInvalid, unknown_name
from acmix.registry import check_options
from acmix.spec import FlatChoice

Groups = list[dict[str, Any]]
LearningRate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


def sgd(
    groups: Groups,
    *,
    lr: LearningRate = 0.1,
    momentum: Fraction = 0.9,
    weight_decay: Decay = 1e-4,
    nesterov: bool = False,
) -> optim.Optimizer:
    """Stochastic gradient descent with momentum (torch)."""
    if nesterov and momentum == 0:
        raise OptionInvalid("nesterov=true needs a momentum above 0")
    return optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adam(
    groups: Groups,
    *,
    lr: LearningRate = 1e-3,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # never changed; a list because JSON has no tuples
    eps: Epsilon = 1e-8,
    weight_decay: Decay = 0.0,
) -> optim.Optimizer:
    """Adam (torch); its decay is added to the gradient."""
    return optim.Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def adamw(
    groups: Groups,
    *,
    lr: LearningRate = 5e-4,
    betas: Betas = [0.9, 0.999],  # noqa: B006  # as above
    eps: Epsilon = 1e-8,
    weight_decay: Decay = 0.05,
) -> optim.Optimizer:
    """Adam with decoupled weight decay (torch); the recipe of Swin and PVT."""
    return optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def nadam(groups: Groups, *, lr: LearningRate = 2e-3, weight_decay: Decay = 0.0) -> optim.Optimizer:
    """Adam with Nesterov momentum (torch)."""
    return optim.NAdam(groups, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True)


def radam(groups: Groups, *, lr: LearningRate = 1e-3, weight_decay: Decay = 0.0) -> optim.Optimizer:
    """Rectified Adam (torch)."""
    return optim.RAdam(groups, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True)


def rmsprop(
    groups: Groups,
    *,
    lr: LearningRate = 1e-2,
    alpha: Fraction = 0.99,
    momentum: Fraction = 0.9,
    eps: Epsilon = 1e-8,
    weight_decay: Decay = 0.0,
) -> optim.Optimizer:
    """RMSprop (torch); its `alpha` is the smoothing constant, not a layer's alpha."""
    return optim.RMSprop(groups, lr=lr, alpha=alpha, momentum=momentum, eps=eps, weight_decay=weight_decay)


def lamb(groups: Groups, *, lr: LearningRate = 5e-3, weight_decay: Decay = 0.02) -> optim.Optimizer:
    """LAMB, layer-wise adaptive Adam for large batches (timm)."""
    from timm.optim.lamb import Lamb

    return _typed(Lamb(groups, lr=lr, weight_decay=weight_decay))


def lion(
    groups: Groups,
    *,
    lr: LearningRate = 1e-4,
    betas: Betas = [0.9, 0.99],  # noqa: B006  # as above
    weight_decay: Decay = 0.5,
) -> optim.Optimizer:
    """Lion, the sign of a momentum (timm)."""
    from timm.optim.lion import Lion

    return _typed(Lion(groups, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay))


def lars(
    groups: Groups, *, lr: LearningRate = 1.0, momentum: Fraction = 0.9, weight_decay: Decay = 1e-4
) -> optim.Optimizer:
    """LARS, layer-wise scaled SGD for large batches (timm)."""
    from timm.optim.lars import Lars

    return _typed(Lars(groups, lr=lr, momentum=momentum, weight_decay=weight_decay))


OPTIMIZERS: Mapping[str, Callable[..., optim.Optimizer]] = {
    function.__name__: function for function in (sgd, adam, adamw, nadam, radam, rmsprop, lamb, lion, lars)
}


def build(
    model: nn.Module, choice: FlatChoice, decay_on: Literal["weights", "all"], *, lr_factor: float = 1.0
) -> optim.Optimizer:
    """The optimizer of a spec over the parameters of a model; OptionInvalid for an unknown name or option.

    `lr_factor` multiplies the learning rate.
    """
    if choice.name not in OPTIMIZERS:
        raise OptionInvalid(unknown_name("optimizer", choice.name, list(OPTIMIZERS)))
    make = OPTIMIZERS[choice.name]
    options = check_options(make, choice.options, where=f"optimizer {choice.name}")
    return make(parameter_groups(model, decay_on), **{**options, "lr": options["lr"] * lr_factor})


def parameter_groups(model: nn.Module, decay_on: Literal["weights", "all"]) -> Groups:
    """One group, or two: weights, and what is spared decay (norms, biases, alpha, beta: all of one dimension)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_on == "all":
        return [{"params": parameters}]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    spared = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": weights}, {"params": spared, "weight_decay": 0.0}]


def _typed(optimizer: Any) -> optim.Optimizer:
    """timm ships no types."""
    assert isinstance(optimizer, optim.Optimizer)
    return optimizer
