"""A 1x1 convolution on a map whose channels lie innermost: what every form's stage I is."""

# Shapes: B batch, I in channels, F out channels, H W map, R rows that the positions are laid in, L positions of a row

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_ROWS, _MOST_ROWS = 16, 64
_WIDE, _MANY = 7, 64  # map and channels from which fewer and longer rows were measured to pay


def pointwise(x_BHWI: Tensor, weight_FI: Tensor, bias_F: Tensor | None) -> Tensor:
    """(B, H, W, F), contiguous."""
    if x_BHWI.device.type != "cpu" or x_BHWI.dtype.itemsize != 4 or torch.compiler.is_compiling():
        return F.linear(x_BHWI, weight_FI, bias_F)
    # oneDNN's convolution beats torch's matrix product by a tenth to a third, and on one thread torch hands it a 1x1
    # only from 16 images on: rows of positions are images here, and fewer are faster
    row_RI1L = x_BHWI.reshape(_rows(*x_BHWI.shape), 1, -1, x_BHWI.shape[3]).permute(0, 3, 1, 2)
    row_RF1L = F.conv2d(row_RI1L, weight_FI[:, :, None, None], bias_F)
    return row_RF1L.permute(0, 2, 3, 1).reshape(*x_BHWI.shape[:3], -1)


@lru_cache(maxsize=64)
def _rows(batch: int, height: int, width: int, channels: int) -> int:
    """How many rows of as many positions each: as few as that are enough, or those of the map."""
    if width < _WIDE or channels < _MANY:
        return batch * height
    positions = batch * height * width
    enough = (rows for rows in range(_FEWEST_ROWS, _MOST_ROWS + 1) if positions % rows == 0)
    return next(enough, batch * height)
