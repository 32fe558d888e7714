"""Local attention on CUDA by kernels of our own: what neighbouring windows share is read once, and nothing is copied.

The door to `_triton_kernels`: when they can run, how a map is cut for them, their place in autograd and torch.compile.
For the backward pass they keep the output and one logarithm a query. Only a run imports Triton, so this module loads
without it. Subtracting the position from the keys is left to the caller: one more pass over them, small beside these.
"""

# Shapes: B batch, N heads, D channels a head, H W map of keys, Y X map of queries

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from acmix.ops._geometry import Axis
from acmix.ops._operators import differentiate, floats_of, operator, tell_shapes

MOST_HEAD_BYTES = 1024  # of a position's channels as they are summed: 256 channels, 128 of float64
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself does, once for a process


def supported(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor) -> bool:
    """Whether `triton_local_attention` takes these: on a CUDA device, or on the CPU where Triton interprets."""
    return (
        q_BNDYX.dtype == k_BNDHW.dtype == v_BNDHW.dtype
        and q_BNDYX.device == k_BNDHW.device == v_BNDHW.device
        and q_BNDYX.dtype in _DTYPES
        and _head_bytes(q_BNDYX) <= MOST_HEAD_BYTES
        and _runs_on(q_BNDYX.device.type, q_BNDYX.device.index)
    )


def triton_local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """`local_attention` by the kernels, (B, N, D, Y, X), contiguous.

    Sums are float32, or float64 for float64; float32 is multiplied as torch.backends.cuda.matmul.fp32_precision says.
    Raises ValueError for what is not `supported`, and NotImplementedError in a second derivative.
    """
    if not supported(q_BNDYX, k_BNDHW, v_BNDHW):
        raise ValueError(
            f"q is {q_BNDYX.dtype} on {q_BNDYX.device} with {q_BNDYX.shape[2]} channels a head; the Triton kernels "
            "take q, k and v of one floating dtype on one CUDA device of compute capability 8.0 or higher, with Triton "
            "installed and at most 256 channels a head (128 of float64); local_attention takes the rest"
        )
    out_BNDYX: Tensor = _local_attention(q_BNDYX, k_BNDHW, v_BNDHW, window, stride, dilation)[0]
    return out_BNDYX


def _runs_on(device_type: str, index: int | None) -> bool:
    if not _TRITON_INSTALLED:
        return False
    if device_type == "cuda" and torch.version.cuda is not None and torch.cuda.is_available():
        return torch.cuda.get_device_capability(index) >= (8, 0)
    return device_type == "cpu" and _INTERPRETED


@operator
def _local_attention(q: Tensor, k: Tensor, v: Tensor, window: int, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Attended values, and log2 of each query's sum of exponentials, (B, N, Y, X)."""
    from acmix.ops import _triton_kernels as kernels

    out, log_total = _outputs(q)
    cut = _Cut.of(q, k, window, stride, dilation)
    with torch.cuda.device(q.get_device()):  # -1 of the CPU changes nothing
        kernels.forward[cut.query_grid](*_strided(q, k, v, out), log_total, *cut.sizes, **cut.query_constants)
    return out, log_total


def _outputs(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, heads, _channels, rows, columns = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, rows, columns), dtype=floats_of(q))


@operator
def _local_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_total: Tensor,
    window: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from acmix.ops import _triton_kernels as kernels

    grad_q, grad_k, grad_v = _gradients(grad_out, q, k, v)
    expected = torch.empty_like(log_total)
    per_query = (log_total, expected)
    cut = _Cut.of(q, k, window, stride, dilation)
    with torch.cuda.device(q.get_device()):  # -1 of the CPU changes nothing
        kernels.backward_queries[cut.query_grid](
            *_strided(q, k, v, out, grad_out), *per_query, *_strided(grad_q), *cut.sizes, **cut.query_constants
        )
        kernels.backward_keys_values[cut.key_grid](
            *_strided(q, k, v, grad_out), *per_query, *_strided(grad_k, grad_v), *cut.sizes, **cut.key_constants
        )
    return grad_q, grad_k, grad_v


def _gradients(_grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.geometry = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_local_attention_backward(grad_out, *ctx.saved_tensors, *ctx.geometry), None, None, None


def _no_second_derivative(*_: object) -> None:
    raise NotImplementedError("the Triton kernels have no second derivative; reference_local_attention has one")


tell_shapes(_local_attention, _outputs)
tell_shapes(_local_attention_backward, _gradients)
differentiate(_local_attention, _backward, _save)
differentiate(_local_attention_backward, _no_second_derivative)


def _strided(*maps: Tensor) -> list[Tensor | tuple[int, ...]]:
    """Each map followed by its strides."""
    return [argument for each in maps for argument in (each, each.stride())]


@dataclass(frozen=True)
class _Cut:
    """How the maps are cut into programs, and what these are told: sizes as arguments, the rest as constants."""

    query_grid: tuple[int]
    key_grid: tuple[int]
    sizes: tuple[int, int, int, int, int]
    query_constants: dict[str, Any]
    key_constants: dict[str, Any]

    @classmethod
    def of(cls, q_BNDYX: Tensor, k_BNDHW: Tensor, window: int, stride: int, dilation: int) -> Self:
        batch, heads, channels, rows, columns = q_BNDYX.shape
        height, width = k_BNDHW.shape[-2:]
        reach = Axis(width, window, stride, dilation).reach
        tile_y, tile_x = _tile(_head_bytes(q_BNDYX))
        constants = {
            "SCALE": channels**-0.5,
            "CHANNELS": channels,
            "WINDOW": window,
            "STRIDE": stride,
            "DILATION": dilation,
            "FOLDS_Y": _folds(height, reach),
            "FOLDS_X": _folds(width, reach),
            "TILE_Y": tile_y,
            "TILE_X": tile_x,
            "BLOCK_D": max(16, 1 << (channels - 1).bit_length()),
            "OPERAND": _operand(q_BNDYX.dtype),
            "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        }
        return cls(
            query_grid=(batch * heads * -(-rows // tile_y) * -(-columns // tile_x),),
            key_grid=(batch * heads * -(-height // tile_y) * -(-width // tile_x),),
            sizes=(heads, height, width, rows, columns),
            query_constants={**constants, "LINE": _line((tile_x - 1) * stride + 2 * reach + 1, q_BNDYX.dtype)},
            key_constants={**constants, "LINE": _line((tile_x - 1 + 2 * reach) // stride + 1, q_BNDYX.dtype)},
        )


def _folds(side: int, reach: int) -> int:
    """Periods of the reflection that a window can stretch over, beyond the one its query is in."""
    return (side - 1 + reach) // max(2 * (side - 1), 1)


def _head_bytes(q_BNDYX: Tensor) -> int:
    return q_BNDYX.shape[2] * max(q_BNDYX.element_size(), torch.float32.itemsize)


def _tile(head_bytes: int) -> tuple[int, int]:
    """Rows and columns of a tile: as many as registers and shared memory hold, and no fewer than a product takes."""
    return (8, 8) if head_bytes <= 256 else (4, 8) if head_bytes <= 512 else (4, 4)


def _line(positions: int, dtype: torch.dtype) -> int:
    """Positions of a line to take at once; more follow in pieces. Products without tensor cores spill beyond 16."""
    return 32 if positions > 16 and dtype.itemsize == 2 else 16


def _operand(dtype: torch.dtype) -> Any:
    """Triton's name of what is multiplied."""
    import triton.language as tl  # type: ignore[import-untyped]  # ships no types

    if dtype == torch.bfloat16 and _INTERPRETED:
        return tl.float32  # the interpreter would multiply the bits of bfloat16 as integers
    return getattr(tl, str(dtype).removeprefix("torch."))
