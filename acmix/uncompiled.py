"""torch without its compiler, where none is needed: importing that takes as long as importing torch itself.

A test holds that `run` and `catalog` never load torch._dynamo. With a torch of other insides they would be slower to
start, and no worse. Plans run torch's operations on meta tensors, many of which are its compiler's own code.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

COMPILER = "torch._dynamo"


def spare_the_compiler() -> None:
    """Have torch's optimizers used as they are; for a process that compiles nothing, before it makes any.

    torch wraps their methods, for what it compiles to leave them out, and imports its compiler for that at their
    first call. Where the wrapper of a method is there already, it takes that; `step` is wrapped otherwise.
    """
    for method in (Optimizer.add_param_group, Optimizer.load_state_dict, Optimizer.state_dict, Optimizer.zero_grad):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            plain.__dict__["__dynamo_disable"] = plain
    for kind in Optimizer.__subclasses__():
        plain = getattr(kind.step, "__wrapped__", None)
        if plain is not None:
            kind.step = torch.no_grad()(plain)  # type: ignore[method-assign]  # what it was, less the compiler's part


def shared(model: nn.Module) -> DistributedDataParallel:
    """The model in DistributedDataParallel, without the compiler, of which that asks how it would cut the model up.

    With parameters allowed to be unused, the buckets of the reduction stay as they are: else they would be made anew
    after the first step, and a run that resumes would sum in another order than one that goes on.
    """
    # of kernels of one pixel, whose strides may be told in two ways; nothing can be done about it, nor need be
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    make = partial(DistributedDataParallel, model, find_unused_parameters=True, gradient_as_bucket_view=True)
    if COMPILER in sys.modules:
        return make()
    within = getattr(DistributedDataParallel._inside_ddp_forward, "__wrapped__", None)
    plain = getattr(within, "__wrapped__", None)
    if plain is not None:
        plain.__dict__["__dynamo_disable"] = plain
    answer = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
    vars(torch)["_dynamo"] = SimpleNamespace(utils=answer)
    try:
        return make()
    except AttributeError:  # it asks more than that: then the compiler itself shall answer, below
        pass
    finally:
        del vars(torch)["_dynamo"]
    return make()


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made within has shapes and no numbers; nothing is drawn at random.

    torch would draw random numbers for the meta device by code that imports its compiler.
    """
    with _Undrawn(), torch.device("meta"):
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return function(*args, **(kwargs or {}))
