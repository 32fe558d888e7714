"""What every form of ACmix has in common: alpha, beta and their trace."""

import torch
from torch import Tensor, nn


class ACmixLayer(nn.Module):
    """`alpha * attention + beta * convolution`.

    While `tracing`, a forward leaves the root mean square of both paths' outputs over the batch, before alpha and
    beta, in `attention_rms` and `convolution_rms`; it changes nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.beta = nn.Parameter(torch.full((1,), 0.5))
        self.tracing = False
        self.attention_rms: Tensor | None = None
        self.convolution_rms: Tensor | None = None


def rms(path: Tensor) -> Tensor:
    """Root mean square of all elements, a detached scalar."""
    return path.detach().float().square().mean().sqrt()
