"""Triton kernels of local attention: forward, gradient of the queries, gradients of the keys and values.

Every program owns a tile, a rectangle of the map, and walks over lines, the rows of the rectangle around it that its
windows touch: a tile of queries over lines of keys, or a tile of keys over lines of queries. So each result is written
once, by one program, without atomics. What an axis adds to the logits follows from indices; nothing is looked up.
Source: FlashAttention-2 (Dao, 2023) for the running softmax and for recomputing the weights from its logarithm.
"""

# Shapes: T positions of a tile, L positions of a line, D channels a head, filled up to BLOCK_D
# Maps: keys H W, queries Y X. A lane is one head of one image.
# Logits are in base 2, so that exp2 and log2, which a GPU has, undo each other.

import math

import triton
import triton.language as tl

# stands for log2(0): finite, so that no infinity minus infinity arises, and beyond any logit, so that exp2 makes it 0
_NEVER = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(1 / math.log(2))

# sizes that vary from batch to batch; a program for each multiple of 16 would only be compiled again
_SIZES = ["heads", "height", "width", "rows", "columns"]


@triton.jit(do_not_specialize=_SIZES)
def forward(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    v_ptr,
    v_strides,
    out_ptr,
    log_total_ptr,
    heads,
    height,
    width,
    rows,
    columns,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    FOLDS_Y: tl.constexpr,
    FOLDS_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    LINE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attended values and log2 of each query's sum of exponentials, both contiguous."""
    lane, top, left, y_T, x_T = _tile(rows, columns, TILE_Y, TILE_X)
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    channel_D = tl.arange(0, BLOCK_D)
    inside_TD = ((y_T < rows) & (x_T < columns))[:, None] & (channel_D < CHANNELS)[None, :]
    q_at_TD = _at(q_strides, channel_D[None, :], y_T[:, None], x_T[:, None])
    q_TD = tl.load(_lane_of(q_ptr, q_strides, lane, heads) + q_at_TD, mask=inside_TD, other=0.0)
    k_ptr = _lane_of(k_ptr, k_strides, lane, heads)
    v_ptr = _lane_of(v_ptr, v_strides, lane, heads)

    first_y, lines = _keys_of(top, height, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_keys = _keys_of(left, width, WINDOW, STRIDE, DILATION, TILE_X)
    highest_T = tl.full([TILE_Y * TILE_X], float("-inf"), ACCUMULATOR)
    total_T = tl.zeros([TILE_Y * TILE_X], ACCUMULATOR)
    out_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(0, tl.cdiv(line_keys, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_DL = (channel_D < CHANNELS)[:, None] & (x_L < width)[None, :]
        bias_x_TL = _log_repeats(
            x_T[:, None] * STRIDE, x_L[None, :], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR
        )
        for line in range(0, lines):
            y = first_y + line
            k_DL = tl.load(k_ptr + _at(k_strides, channel_D[:, None], y, x_L[None, :]), mask=inside_DL, other=0.0)
            v_DL = tl.load(v_ptr + _at(v_strides, channel_D[:, None], y, x_L[None, :]), mask=inside_DL, other=0.0)
            bias_y_T = _log_repeats(y_T * STRIDE, y, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(q_TD, k_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            logits_TL += bias_x_TL + bias_y_T[:, None]
            # whatever a query gathers before the first key in its reach, this factor turns into 0 once it comes
            higher_T = tl.maximum(highest_T, tl.max(logits_TL, 1))
            shrink_T = tl.exp2(highest_T - higher_T)
            weights_TL = tl.exp2(logits_TL - higher_T[:, None])
            total_T = total_T * shrink_T + tl.sum(weights_TL, 1)
            out_TD = out_TD * shrink_T[:, None]
            out_TD = tl.dot(
                weights_TL.to(v_DL.dtype), tl.trans(v_DL), out_TD, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            highest_T = higher_T

    at_TD = _at_contiguous(lane, channel_D[None, :], y_T[:, None], x_T[:, None], CHANNELS, rows, columns)
    tl.store(out_ptr + at_TD, (out_TD / total_T[:, None]).to(out_ptr.dtype.element_ty), mask=inside_TD)
    at_T = _at_contiguous(lane, 0, y_T, x_T, 1, rows, columns)
    tl.store(log_total_ptr + at_T, highest_T + tl.log2(total_T), mask=(y_T < rows) & (x_T < columns))


@triton.jit(do_not_specialize=_SIZES)
def backward_queries(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    v_ptr,
    v_strides,
    out_ptr,
    grad_out_ptr,
    log_total_ptr,
    shared_ptr,
    grad_q_ptr,
    heads,
    height,
    width,
    rows,
    columns,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    FOLDS_Y: tl.constexpr,
    FOLDS_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    LINE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the queries, and what the softmax takes off all of a query's weights' gradients, for the keys."""
    lane, top, left, y_T, x_T = _tile(rows, columns, TILE_Y, TILE_X)
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    channel_D = tl.arange(0, BLOCK_D)
    inside_T = (y_T < rows) & (x_T < columns)
    inside_TD = inside_T[:, None] & (channel_D < CHANNELS)[None, :]
    q_at_TD = _at(q_strides, channel_D[None, :], y_T[:, None], x_T[:, None])
    q_TD = tl.load(_lane_of(q_ptr, q_strides, lane, heads) + q_at_TD, mask=inside_TD, other=0.0)
    at_T = _at_contiguous(lane, 0, y_T, x_T, 1, rows, columns)
    at_TD = _at_contiguous(lane, channel_D[None, :], y_T[:, None], x_T[:, None], CHANNELS, rows, columns)
    grad_out_TD = tl.load(grad_out_ptr + at_TD, mask=inside_TD, other=0.0)
    out_TD = tl.load(out_ptr + at_TD, mask=inside_TD, other=0.0)
    log_total_T = tl.load(log_total_ptr + at_T, mask=inside_T, other=0.0)
    shared_T = tl.sum(out_TD.to(ACCUMULATOR) * grad_out_TD.to(ACCUMULATOR), 1)
    tl.store(shared_ptr + at_T, shared_T, mask=inside_T)
    k_ptr = _lane_of(k_ptr, k_strides, lane, heads)
    v_ptr = _lane_of(v_ptr, v_strides, lane, heads)

    first_y, lines = _keys_of(top, height, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_keys = _keys_of(left, width, WINDOW, STRIDE, DILATION, TILE_X)
    grad_q_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(0, tl.cdiv(line_keys, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_DL = (channel_D < CHANNELS)[:, None] & (x_L < width)[None, :]
        bias_x_TL = _log_repeats(
            x_T[:, None] * STRIDE, x_L[None, :], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR
        )
        for line in range(0, lines):
            y = first_y + line
            k_DL = tl.load(k_ptr + _at(k_strides, channel_D[:, None], y, x_L[None, :]), mask=inside_DL, other=0.0)
            v_DL = tl.load(v_ptr + _at(v_strides, channel_D[:, None], y, x_L[None, :]), mask=inside_DL, other=0.0)
            bias_y_T = _log_repeats(y_T * STRIDE, y, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(q_TD, k_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            weights_TL = tl.exp2(logits_TL + bias_x_TL + (bias_y_T - log_total_T)[:, None])
            grad_weights_TL = tl.dot(grad_out_TD, v_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_logits_TL = weights_TL * (grad_weights_TL - shared_T[:, None])
            grad_q_TD = tl.dot(
                grad_logits_TL.to(k_DL.dtype), tl.trans(k_DL), grad_q_TD, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
    tl.store(grad_q_ptr + at_TD, (grad_q_TD * SCALE).to(grad_q_ptr.dtype.element_ty), mask=inside_TD)


@triton.jit(do_not_specialize=_SIZES)
def backward_keys_values(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    v_ptr,
    v_strides,
    grad_out_ptr,
    log_total_ptr,
    shared_ptr,
    grad_k_ptr,
    grad_v_ptr,
    heads,
    height,
    width,
    rows,
    columns,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    FOLDS_Y: tl.constexpr,
    FOLDS_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    LINE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a tile of keys and values, from the lines of queries whose folded windows can hold them."""
    lane, top, left, y_T, x_T = _tile(height, width, TILE_Y, TILE_X)
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    channel_D = tl.arange(0, BLOCK_D)
    inside_TD = ((y_T < height) & (x_T < width))[:, None] & (channel_D < CHANNELS)[None, :]
    k_at_TD = _at(k_strides, channel_D[None, :], y_T[:, None], x_T[:, None])
    v_at_TD = _at(v_strides, channel_D[None, :], y_T[:, None], x_T[:, None])
    k_TD = tl.load(_lane_of(k_ptr, k_strides, lane, heads) + k_at_TD, mask=inside_TD, other=0.0)
    v_TD = tl.load(_lane_of(v_ptr, v_strides, lane, heads) + v_at_TD, mask=inside_TD, other=0.0)
    q_ptr = _lane_of(q_ptr, q_strides, lane, heads)

    first_y, lines = _queries_of(top, rows, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_queries = _queries_of(left, columns, WINDOW, STRIDE, DILATION, TILE_X)
    grad_k_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    grad_v_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(0, tl.cdiv(line_queries, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_L = x_L < columns
        inside_DL = (channel_D < CHANNELS)[:, None] & inside_L[None, :]
        bias_x_TL = _log_repeats(
            x_L[None, :] * STRIDE, x_T[:, None], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR
        )
        for line in range(0, lines):
            y = first_y + line
            at_L = _at_contiguous(lane, 0, y, x_L, 1, rows, columns)
            at_DL = _at_contiguous(lane, channel_D[:, None], y, x_L[None, :], CHANNELS, rows, columns)
            q_DL = tl.load(q_ptr + _at(q_strides, channel_D[:, None], y, x_L[None, :]), mask=inside_DL, other=0.0)
            grad_out_DL = tl.load(grad_out_ptr + at_DL, mask=inside_DL, other=0.0)
            log_total_L = tl.load(log_total_ptr + at_L, mask=inside_L, other=0.0)
            shared_L = tl.load(shared_ptr + at_L, mask=inside_L, other=0.0)
            bias_y_T = _log_repeats(y * STRIDE, y_T, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(k_TD, q_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            weights_TL = tl.exp2(logits_TL + bias_x_TL + bias_y_T[:, None] - log_total_L[None, :])
            grad_v_TD = tl.dot(
                weights_TL.to(v_TD.dtype),
                tl.trans(grad_out_DL),
                grad_v_TD,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )
            grad_weights_TL = tl.dot(v_TD, grad_out_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_logits_TL = weights_TL * (grad_weights_TL - shared_L[None, :])
            grad_k_TD = tl.dot(
                grad_logits_TL.to(q_DL.dtype), tl.trans(q_DL), grad_k_TD, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
    at_TD = _at_contiguous(lane, channel_D[None, :], y_T[:, None], x_T[:, None], CHANNELS, height, width)
    tl.store(grad_k_ptr + at_TD, (grad_k_TD * SCALE).to(grad_k_ptr.dtype.element_ty), mask=inside_TD)
    tl.store(grad_v_ptr + at_TD, grad_v_TD.to(grad_v_ptr.dtype.element_ty), mask=inside_TD)


@triton.jit
def _log_repeats(
    query,
    key,
    side,
    WINDOW: tl.constexpr,
    DILATION: tl.constexpr,
    FOLDS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """log2 of how often the reflected window around the position `query` holds the key at `key`, along one axis.

    Two facing mirrors show a key again and again: at `key` and `-key`, each moved by multiples of the period. A key
    on a mirror coincides with its image. The window holds as many copies as it meets images; FOLDS periods either
    way, and one more for the far mirror, are all it can reach.
    """
    period = tl.maximum(2 * (side - 1), 1)
    off_mirror = (key > 0) & (key < side - 1)
    repeats = tl.zeros_like(query + key)
    for fold in tl.static_range(-FOLDS, FOLDS + 2):
        repeats += _holds(fold * period + key - query, WINDOW, DILATION).to(tl.int32)
        repeats += (_holds(fold * period - key - query, WINDOW, DILATION) & off_mirror).to(tl.int32)
    seen = (repeats > 0) & (query < side) & (key < side)
    return tl.where(seen, tl.log2(tl.maximum(repeats, 1).to(ACCUMULATOR)), _NEVER)


@triton.jit
def _holds(offset, WINDOW: tl.constexpr, DILATION: tl.constexpr):
    """Whether a window holds what lies at `offset` from its centre."""
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    return (offset >= -reach) & (offset <= reach) & ((offset + reach) % DILATION == 0)


@triton.jit
def _tile(rows, columns, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """This program's lane, its tile's top and left, and the positions in it; those past the map's end are masked."""
    across = tl.cdiv(columns, TILE_X)
    tiles = across * tl.cdiv(rows, TILE_Y)
    program = tl.program_id(0)
    top = program % tiles // across * TILE_Y
    left = program % tiles % across * TILE_X
    index_T = tl.arange(0, TILE_Y * TILE_X)
    return (program // tiles).to(tl.int64), top, left, top + index_T // TILE_X, left + index_T % TILE_X


@triton.jit
def _keys_of(
    top, height, WINDOW: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr
):
    """First key and number of keys, along one axis, that a tile of queries can reach: folding takes none further."""
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    first = tl.maximum(top * STRIDE - reach, 0)
    last = tl.minimum((top + TILE - 1) * STRIDE + reach, height - 1)
    return first, last - first + 1


@triton.jit
def _queries_of(
    top, rows, WINDOW: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr
):
    """First query and number of queries, along one axis, that can reach a tile of keys."""
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    first = tl.cdiv(tl.maximum(top - reach, 0), STRIDE)
    last = tl.minimum((top + TILE - 1 + reach) // STRIDE, rows - 1)
    return first, last - first + 1


@triton.jit
def _lane_of(base, strides, lane, heads):
    """Where the lane's map begins."""
    return base + (lane // heads) * strides[0] + (lane % heads) * strides[1]


@triton.jit
def _at(strides, channel, y, x):
    """Offsets within a lane, in 64 bits: one image can hold over 2^31 elements."""
    return channel.to(tl.int64) * strides[2] + y.to(tl.int64) * strides[3] + x.to(tl.int64) * strides[4]


@triton.jit
def _at_contiguous(lane, channel, y, x, CHANNELS: tl.constexpr, rows, columns):
    """Offsets in a contiguous tensor of all lanes."""
    return ((lane * CHANNELS + channel) * rows + y) * columns + x
