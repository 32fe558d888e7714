"""Local attention on CUDA by kernels of our own: what a map's windows share is read once, and nothing is copied out.

The door to `_triton_kernels`: when they can run, how a map is cut for them, and their place in autograd and in
torch.compile. They keep the output and one logarithm a query for the backward pass. Triton is imported by the first
run alone, so this module loads without it.
Deviation from the plan: `k - position` is not fused into the kernels; it is one pass over k, and its gradient a sum.
"""

# Shapes: B batch, N heads, L = B*N, D channels a head, H W map of keys, Y X map of queries

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_HEAD_CHANNELS = 256
_INSTALLED = importlib.util.find_spec("triton") is not None


def supported(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor) -> bool:
    """Whether `triton_local_attention` takes these: on a CUDA device, or on any where Triton interprets."""
    alike = q_BNDYX.dtype == k_BNDHW.dtype == v_BNDHW.dtype and q_BNDYX.device == k_BNDHW.device == v_BNDHW.device
    return (
        alike
        and q_BNDYX.dtype in DTYPES
        and q_BNDYX.shape[2] <= MOST_HEAD_CHANNELS
        and _runs_on(q_BNDYX.device.type, q_BNDYX.device.index, q_BNDYX.dtype == torch.bfloat16)
    )


def triton_local_attention(
    q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor, *, window: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """`local_attention` by the kernels, (B, N, D, Y, X), contiguous.

    Sums are kept in float32, of float64 in float64; float32 is multiplied as torch.backends.cuda.matmul says.
    Raises ValueError where `supported` says no, and NotImplementedError for a second derivative.
    """
    if not supported(q_BNDYX, k_BNDHW, v_BNDHW):
        raise ValueError(
            f"q of {q_BNDYX.dtype} on {q_BNDYX.device} with {q_BNDYX.shape[2]} channels a head: the kernels take q, k "
            f"and v of one floating-point dtype on one CUDA device, with Triton installed, and up to "
            f"{MOST_HEAD_CHANNELS} channels a head; local_attention takes all others"
        )
    out_BNDYX, _ = _attention(q_BNDYX, k_BNDHW, v_BNDHW, window, stride, dilation)
    return out_BNDYX


@torch.compiler.assume_constant_result
def _runs_on(device_type: str, index: int | None, needs_bfloat16: bool) -> bool:
    if not _INSTALLED:
        return False
    if device_type == "cuda" and torch.version.cuda is not None:
        return torch.cuda.get_device_capability(index) >= ((8, 0) if needs_bfloat16 else (7, 0))
    return device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


@torch.library.custom_op("acmix::local_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    """Attended values, and log2 of each query's sum of exponentials, (B, N, Y, X)."""
    from acmix.ops import _triton_kernels as kernels

    out, log_total = _outputs(q)
    cut = _Cut.of(q, k, window, stride, dilation)
    with torch.cuda.device_of(q):
        kernels.forward[cut.grid_of_queries](
            q, q.stride(), k, k.stride(), v, v.stride(), out, log_total, *cut.sizes, **cut.of_queries
        )
    return out, log_total


@_attention.register_fake
def _outputs(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, heads, _channels, rows, columns = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, rows, columns), dtype=_accumulator(q.dtype))


@torch.library.custom_op("acmix::local_attention_backward", mutates_args=())
def _attention_backward(
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

    grad_out = grad_out.contiguous()
    grad_q, grad_k, grad_v = _gradients(grad_out, q, k, v)
    shared = torch.empty_like(log_total)
    cut = _Cut.of(q, k, window, stride, dilation)
    strided = (q, q.stride(), k, k.stride(), v, v.stride())
    with torch.cuda.device_of(q):
        kernels.backward_queries[cut.grid_of_queries](
            *strided, out, grad_out, log_total, shared, grad_q, *cut.sizes, **cut.of_queries
        )
        kernels.backward_keys_values[cut.grid_of_keys](
            *strided, grad_out, log_total, shared, grad_k, grad_v, *cut.sizes, **cut.of_keys
        )
    return grad_q, grad_k, grad_v


@_attention_backward.register_fake
def _gradients(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.geometry = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad_out, *ctx.saved_tensors, *ctx.geometry), None, None, None


def _no_second_derivative(*_: Any) -> None:
    raise NotImplementedError("the Triton kernels have no second derivative; reference_local_attention has one")


_attention.register_autograd(_backward, setup_context=_save)
_attention_backward.register_autograd(_no_second_derivative)


@dataclass(frozen=True)
class _Cut:
    """How a run is cut into programs, and what they are told: sizes as arguments, the rest as constants."""

    lanes: int
    sizes: tuple[int, int, int, int, int]
    constants: dict[str, Any]

    @classmethod
    def of(cls, q_BNDYX: Tensor, k_BNDHW: Tensor, window: int, stride: int, dilation: int) -> Self:
        batch, heads, channels, rows, columns = q_BNDYX.shape
        height, width = k_BNDHW.shape[-2:]
        tile_y, tile_x = _tile(channels, q_BNDYX.dtype)
        reach = dilation * (window - 1) // 2
        return cls(
            lanes=batch * heads,
            sizes=(heads, height, width, rows, columns),
            constants={
                "SCALE": channels**-0.5,
                "CHANNELS": channels,
                "WINDOW": window,
                "STRIDE": stride,
                "DILATION": dilation,
                "FOLDS_Y": _folds(reach, height),
                "FOLDS_X": _folds(reach, width),
                "TILE_Y": tile_y,
                "TILE_X": tile_x,
                "BLOCK_D": max(16, 1 << (channels - 1).bit_length()),
                "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
            },
        )

    @property
    def of_queries(self) -> dict[str, Any]:
        """Constants of a tile of queries, which walks over lines of keys."""
        stride, reach = self.constants["STRIDE"], self._reach
        return {**self.constants, "LINE": _line((self.constants["TILE_X"] - 1) * stride + 2 * reach + 1)}

    @property
    def of_keys(self) -> dict[str, Any]:
        """Constants of a tile of keys, which walks over lines of queries."""
        stride, reach = self.constants["STRIDE"], self._reach
        return {**self.constants, "LINE": _line((self.constants["TILE_X"] - 1 + 2 * reach) // stride + 1)}

    @property
    def grid_of_queries(self) -> tuple[int]:
        _, _, _, rows, columns = self.sizes
        return self._grid(rows, columns)

    @property
    def grid_of_keys(self) -> tuple[int]:
        _, height, width, _, _ = self.sizes
        return self._grid(height, width)

    @property
    def _reach(self) -> int:
        return int(self.constants["DILATION"]) * (int(self.constants["WINDOW"]) - 1) // 2

    def _grid(self, rows: int, columns: int) -> tuple[int]:
        down, across = -(-rows // self.constants["TILE_Y"]), -(-columns // self.constants["TILE_X"])
        return (self.lanes * down * across,)


def _folds(reach: int, side: int) -> int:
    """How many periods of the reflection, two sides long, a window can stretch over."""
    return (reach + side - 1) // max(2 * (side - 1), 1)


def _line(positions: int) -> int:
    """Positions taken at once; a longer line is taken in pieces."""
    return 16 if positions <= 16 else 32


def _tile(channels: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows and columns of a tile."""
    return 8, 8


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
