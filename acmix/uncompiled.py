"""torch without its compiler, where none is needed: importing that takes as long as importing torch itself.

A test holds that `run` and `catalog` never load torch._dynamo. With a torch of other insides they would be slower to
start, and no worse. Plans run torch's operations on meta tensors, many of which are its compiler's own code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode


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
