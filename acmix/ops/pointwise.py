"""A 1x1 convolution on a map whose channels lie innermost: what every form's stage I is."""

# Shapes: B batch, I in channels, F out channels, H W map, R rows that the positions are laid in, L positions of a row

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_ROWS, _MOST_ROWS, _SHORTEST_ROW = 16, 64, 7


def pointwise(x_BHWI: Tensor, weight_FI: Tensor, bias_F: Tensor | None) -> Tensor:
    """(B, H, W, F), contiguous."""
    on_cpu = x_BHWI.device.type == "cpu" and x_BHWI.dtype.itemsize == 4 and not torch.compiler.is_compiling()
    rows = _rows(x_BHWI.numel() // x_BHWI.shape[3]) if on_cpu else None
    if rows is None:
        return F.linear(x_BHWI, weight_FI, bias_F)
    # oneDNN's convolution beats torch's matrix product by a tenth to a third, and on one thread torch hands it a 1x1
    # only from 16 images on: as few rows as that are images here
    row_RI1L = x_BHWI.reshape(rows, 1, -1, x_BHWI.shape[3]).permute(0, 3, 1, 2)
    row_RF1L = F.conv2d(row_RI1L, weight_FI[:, :, None, None], bias_F)
    return row_RF1L.permute(0, 2, 3, 1).reshape(*x_BHWI.shape[:3], -1)


@lru_cache(maxsize=64)
def _rows(positions: int) -> int | None:
    """The fewest rows, of at least 16, that hold as many positions each; None where they would be many or short."""
    found = (rows for rows in range(_FEWEST_ROWS, _MOST_ROWS + 1) if positions % rows == 0)
    rows = next(found, None)
    return rows if rows is not None and positions // rows >= _SHORTEST_ROW else None
