"""Triton kernels of local attention: forward, gradient of the queries, gradients of the keys and values.

Every program owns a tile, a rectangle of the map, and walks over the lines (rows) of the rectangle around it that its
windows touch: a tile of queries over lines of keys, or a tile of keys over lines of queries. So every result is
written once, by one program, without atomics. What reflection adds to a logit follows from indices, one term an axis.
Source: FlashAttention-2 (Dao, 2023) for the running softmax, and for the weights made again from its logarithm.
"""

# Shapes: T positions of a tile, L positions of a line taken at once, D channels a head, filled up to BLOCK_D
# Maps: keys H W, queries Y X. A lane is one head of one image. Strides are those of B, N, D, rows, columns.
# Logits are in base 2, whose powers and logarithms a GPU has.
# Constants are upper case, as is Triton's custom.
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"
# (Triton ships no types, and its kernels' arguments are of the compiler's own)

import math

import triton
import triton.language as tl

# stands for log2(0): finite, or infinities would be subtracted; beyond any logit, so its power of 2 is 0
_NEVER = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(1 / math.log(2))

# these change from batch to batch; to compile anew for those that are 1 or a multiple of 16 would gain nothing
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
    out_strides,
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attended values, and log2 of each query's sum of exponentials."""
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    lane, top, left, y_T, x_T = _tile(rows, columns, TILE_Y, TILE_X)
    channel_D = tl.arange(0, BLOCK_D)
    inside_T = (y_T < rows) & (x_T < columns)
    inside_TD = inside_T[:, None] & (channel_D < CHANNELS)[None, :]
    q_at_TD = q_ptr + _at(q_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    out_at_TD = out_ptr + _at(out_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    q_TD = tl.load(q_at_TD, mask=inside_TD, other=0.0).to(OPERAND)

    first_y, lines = _keys_of(top, height, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_keys = _keys_of(left, width, WINDOW, STRIDE, DILATION, TILE_X)
    highest_T = tl.full([TILE_Y * TILE_X], float("-inf"), ACCUMULATOR)
    total_T = tl.zeros([TILE_Y * TILE_X], ACCUMULATOR)
    out_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(tl.cdiv(line_keys, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_DL = (channel_D < CHANNELS)[:, None] & (x_L < width)[None, :]
        k_at_DL = k_ptr + _at(k_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        v_at_DL = v_ptr + _at(v_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        bias_x_TL = _log_repeats(x_T[:, None] * STRIDE, x_L[None, :], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR)
        for line in range(lines):
            k_DL = tl.load(k_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            v_DL = tl.load(v_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            k_at_DL += k_strides[3]
            v_at_DL += v_strides[3]
            bias_y_T = _log_repeats(y_T * STRIDE, first_y + line, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(q_TD, k_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            logits_TL += bias_x_TL + bias_y_T[:, None]
            # what a query has gathered before the first key within its reach, this factor turns into 0 at that key
            higher_T = tl.maximum(highest_T, tl.max(logits_TL, 1))
            shrink_T = tl.exp2(highest_T - higher_T)
            weights_TL = tl.exp2(logits_TL - higher_T[:, None])
            total_T = total_T * shrink_T + tl.sum(weights_TL, 1)
            out_TD = tl.dot(
                weights_TL.to(OPERAND),
                tl.trans(v_DL),
                out_TD * shrink_T[:, None],
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )
            highest_T = higher_T

    tl.store(out_at_TD, (out_TD / total_T[:, None]).to(out_ptr.dtype.element_ty), mask=inside_TD)
    tl.store(log_total_ptr + (lane * rows + y_T) * columns + x_T, highest_T + tl.log2(total_T), mask=inside_T)


@triton.jit(do_not_specialize=_SIZES)
def backward_queries(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    v_ptr,
    v_strides,
    out_ptr,
    out_strides,
    grad_out_ptr,
    grad_out_strides,
    log_total_ptr,
    expected_ptr,
    grad_q_ptr,
    grad_q_strides,
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the queries; for the next kernel, the mean gradient of each query's weights under those weights."""
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    lane, top, left, y_T, x_T = _tile(rows, columns, TILE_Y, TILE_X)
    channel_D = tl.arange(0, BLOCK_D)
    inside_T = (y_T < rows) & (x_T < columns)
    inside_TD = inside_T[:, None] & (channel_D < CHANNELS)[None, :]
    q_at_TD = q_ptr + _at(q_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    out_at_TD = out_ptr + _at(out_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    grad_out_at_TD = grad_out_ptr + _at(grad_out_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    grad_q_at_TD = grad_q_ptr + _at(grad_q_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    at_T = (lane * rows + y_T) * columns + x_T
    q_TD = tl.load(q_at_TD, mask=inside_TD, other=0.0).to(OPERAND)
    grad_out_TD = tl.load(grad_out_at_TD, mask=inside_TD, other=0.0).to(OPERAND)
    out_TD = tl.load(out_at_TD, mask=inside_TD, other=0.0)
    log_total_T = tl.load(log_total_ptr + at_T, mask=inside_T, other=0.0)
    expected_T = tl.sum(out_TD.to(ACCUMULATOR) * grad_out_TD.to(ACCUMULATOR), 1)
    tl.store(expected_ptr + at_T, expected_T, mask=inside_T)

    first_y, lines = _keys_of(top, height, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_keys = _keys_of(left, width, WINDOW, STRIDE, DILATION, TILE_X)
    grad_q_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(tl.cdiv(line_keys, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_DL = (channel_D < CHANNELS)[:, None] & (x_L < width)[None, :]
        k_at_DL = k_ptr + _at(k_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        v_at_DL = v_ptr + _at(v_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        bias_x_TL = _log_repeats(x_T[:, None] * STRIDE, x_L[None, :], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR)
        for line in range(lines):
            k_DL = tl.load(k_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            v_DL = tl.load(v_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            k_at_DL += k_strides[3]
            v_at_DL += v_strides[3]
            bias_y_T = _log_repeats(y_T * STRIDE, first_y + line, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(q_TD, k_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            weights_TL = tl.exp2(logits_TL + bias_x_TL + (bias_y_T - log_total_T)[:, None])
            grad_weights_TL = tl.dot(grad_out_TD, v_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_logits_TL = weights_TL * (grad_weights_TL - expected_T[:, None])
            grad_q_TD = tl.dot(
                grad_logits_TL.to(OPERAND),
                tl.trans(k_DL),
                grad_q_TD,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )

    tl.store(grad_q_at_TD, (grad_q_TD * SCALE).to(grad_q_ptr.dtype.element_ty), mask=inside_TD)


@triton.jit(do_not_specialize=_SIZES)
def backward_keys_values(
    q_ptr,
    q_strides,
    k_ptr,
    k_strides,
    v_ptr,
    v_strides,
    grad_out_ptr,
    grad_out_strides,
    log_total_ptr,
    expected_ptr,
    grad_k_ptr,
    grad_k_strides,
    grad_v_ptr,
    grad_v_strides,
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a tile of keys and values, from the lines of queries whose windows can hold them."""
    ACCUMULATOR: tl.constexpr = log_total_ptr.dtype.element_ty
    lane, top, left, y_T, x_T = _tile(height, width, TILE_Y, TILE_X)
    channel_D = tl.arange(0, BLOCK_D)
    inside_TD = ((y_T < height) & (x_T < width))[:, None] & (channel_D < CHANNELS)[None, :]
    k_at_TD = k_ptr + _at(k_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    v_at_TD = v_ptr + _at(v_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    grad_k_at_TD = grad_k_ptr + _at(grad_k_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    grad_v_at_TD = grad_v_ptr + _at(grad_v_strides, lane, heads, channel_D[None, :], y_T[:, None], x_T[:, None])
    k_TD = tl.load(k_at_TD, mask=inside_TD, other=0.0).to(OPERAND)
    v_TD = tl.load(v_at_TD, mask=inside_TD, other=0.0).to(OPERAND)

    first_y, lines = _queries_of(top, rows, WINDOW, STRIDE, DILATION, TILE_Y)
    first_x, line_queries = _queries_of(left, columns, WINDOW, STRIDE, DILATION, TILE_X)
    grad_k_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    grad_v_TD = tl.zeros([TILE_Y * TILE_X, BLOCK_D], ACCUMULATOR)
    for piece in range(tl.cdiv(line_queries, LINE)):
        x_L = first_x + piece * LINE + tl.arange(0, LINE)
        inside_L = x_L < columns
        inside_DL = (channel_D < CHANNELS)[:, None] & inside_L[None, :]
        q_at_DL = q_ptr + _at(q_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        grad_out_at_DL = grad_out_ptr + _at(grad_out_strides, lane, heads, channel_D[:, None], first_y, x_L[None, :])
        at_L = (lane * rows + first_y) * columns + x_L
        bias_x_TL = _log_repeats(x_L[None, :] * STRIDE, x_T[:, None], width, WINDOW, DILATION, FOLDS_X, ACCUMULATOR)
        for line in range(lines):
            q_DL = tl.load(q_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            grad_out_DL = tl.load(grad_out_at_DL, mask=inside_DL, other=0.0).to(OPERAND)
            log_total_L = tl.load(log_total_ptr + at_L, mask=inside_L, other=0.0)
            expected_L = tl.load(expected_ptr + at_L, mask=inside_L, other=0.0)
            q_at_DL += q_strides[3]
            grad_out_at_DL += grad_out_strides[3]
            at_L += columns
            bias_y_T = _log_repeats((first_y + line) * STRIDE, y_T, height, WINDOW, DILATION, FOLDS_Y, ACCUMULATOR)
            logits_TL = tl.dot(k_TD, q_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR) * (SCALE * _LOG2_E)
            weights_TL = tl.exp2(logits_TL + bias_x_TL + bias_y_T[:, None] - log_total_L[None, :])
            grad_v_TD = tl.dot(
                weights_TL.to(OPERAND),
                tl.trans(grad_out_DL),
                grad_v_TD,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )
            grad_weights_TL = tl.dot(v_TD, grad_out_DL, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_logits_TL = weights_TL * (grad_weights_TL - expected_L[None, :])
            grad_k_TD = tl.dot(
                grad_logits_TL.to(OPERAND),
                tl.trans(q_DL),
                grad_k_TD,
                input_precision=PRECISION,
                out_dtype=ACCUMULATOR,
            )

    tl.store(grad_k_at_TD, (grad_k_TD * SCALE).to(grad_k_ptr.dtype.element_ty), mask=inside_TD)
    tl.store(grad_v_at_TD, grad_v_TD.to(grad_v_ptr.dtype.element_ty), mask=inside_TD)


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
    """log2 of how often the reflected window around position `query` holds the key at `key`, along one axis.

    A key between two facing mirrors is seen at `key` and at `-key`, both moved by any multiple of the period; on a
    mirror it is its own image. A window holds it as often as it meets one of these. FOLDS periods either way, and
    one more for the mirror at the far end, are all that a window comes across.
    """
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    period = tl.maximum(2 * (side - 1), 1)
    off_mirrors = (key > 0) & (key < side - 1)
    repeats = (query + key) * 0
    for fold in tl.static_range(-FOLDS, FOLDS + 2):
        moved = fold * period + key - query
        mirrored = fold * period - key - query
        repeats += (tl.abs(moved) <= reach) & ((moved + reach) % DILATION == 0)
        repeats += (tl.abs(mirrored) <= reach) & ((mirrored + reach) % DILATION == 0) & off_mirrors
    seen = (repeats > 0) & (query < side) & (key < side)
    return tl.where(seen, tl.log2(tl.maximum(repeats, 1).to(ACCUMULATOR)), _NEVER)


@triton.jit
def _tile(rows, columns, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """This program's lane; its tile's top and left; row and column of its positions, the last beyond the map's end."""
    across = tl.cdiv(columns, TILE_X)
    tiles = across * tl.cdiv(rows, TILE_Y)
    program = tl.program_id(0)
    top = program % tiles // across * TILE_Y
    left = program % tiles % across * TILE_X
    index_T = tl.arange(0, TILE_Y * TILE_X)
    return (program // tiles).to(tl.int64), top, left, top + index_T // TILE_X, left + index_T % TILE_X


@triton.jit
def _keys_of(start, side, WINDOW: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr):
    """First key, and number of keys, that a tile of queries reaches along one axis: folding takes none further."""
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    first = tl.maximum(start * STRIDE - reach, 0)
    last = tl.minimum((start + TILE - 1) * STRIDE + reach, side - 1)
    return first, last - first + 1


@triton.jit
def _queries_of(start, queries, WINDOW: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr):
    """First query, and number of queries, that reach a tile of keys along one axis."""
    reach: tl.constexpr = DILATION * (WINDOW - 1) // 2
    first = tl.cdiv(tl.maximum(start - reach, 0), STRIDE)
    last = tl.minimum((start + TILE - 1 + reach) // STRIDE, queries - 1)
    return first, last - first + 1


@triton.jit
def _at(strides, lane, heads, channel, y, x):
    """Offsets of positions and channels in 64 bits: a batch can hold over 2^31 elements."""
    image, head = lane // heads, lane % heads
    within = channel.to(tl.int64) * strides[2] + y.to(tl.int64) * strides[3] + x.to(tl.int64) * strides[4]
    return image * strides[0] + head * strides[1] + within
