"""Reductions over whole samples, folded into their rows before the step, in Triton; ``adapt.py`` launches them."""

import triton
import triton.language as tl

from stepfuse.kernels.row import BOTH_WIDTHS, HI, LO, P_E, P_X, Q_E, U_E, V_E, G, load_blend, rows_of_slot

RADIX = tl.constexpr(16)
RADIX_BITS = tl.constexpr(4)
MAGNITUDE_BITS = tl.constexpr(32)  # of |d|, a sign bit of 0 included
INFINITY_BITS = tl.constexpr(0x7F800000)


# guidance_sums: a tile's sums of e_c, e and their squares, which rescaled_rows adds up.
#   prediction : (R, N) fp16/bf16/fp32; rows : (B, 16) or (B, 32) fp32; row_* : (B,) int32, as for fused_step.
#   sums       : (B, tiles, 4) fp64, written.
#   Grid       : (tiles, B); each program owns one tile; no atomics.
#   Numerics   : fp64, in an order that depends on BLOCK alone, which is fixed: the same bits in every run.
#   Traffic    : 2 reads of B·N elements.
@triton.jit
def guidance_sums_kernel(
    prediction,
    rows,
    row_cond,
    row_uncond,
    sums,
    n,
    prediction_rows,
    prediction_stride,
    rows_stride,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    guided = (cond >= 0) & (uncond >= 0) & (cond < prediction_rows) & (uncond < prediction_rows)
    g = tl.load(rows + slot * rows_stride + G)
    e_c, _, e = load_blend(prediction, prediction_stride, cond, uncond, g, offsets, tl.where(guided, n, 0))
    e_c = e_c.to(tl.float64)
    e = e.to(tl.float64)
    to = sums + (slot.to(tl.int64) * tl.num_programs(0) + tile) * 4
    tl.store(to, tl.sum(e_c, axis=0))
    tl.store(to + 1, tl.sum(e_c * e_c, axis=0))
    tl.store(to + 2, tl.sum(e, axis=0))
    tl.store(to + 3, tl.sum(e * e, axis=0))


@triton.jit
def variance(total, squares, n):
    mean = total / n
    return squares / n - mean * mean


# rescaled_rows: p_e, q_e, u_e and v_e of a guided slot's row times phi std(e_c) / std(e) + 1 - phi.
#   Lin et al. (2023), "Common diffusion noise schedules and sample steps are flawed", section 3.4.
#   sums   : (B, tiles, 4) fp64 of guidance_sums; phi : (B,) fp32, 0: off.
#   rows   : (B, 16) or (B, 32) fp32, contiguous; adapted : likewise, written, may be rows.
#   Grid   : (B,); each program owns one slot.
#   Oracle : guidance_rescale_ref in reference.py.
@triton.jit(do_not_specialize=["n", "tiles"])
def rescaled_rows_kernel(sums, rows, row_cond, row_uncond, phi, adapted, n, tiles, rows_stride, BLOCK: tl.constexpr):
    slot = tl.program_id(0)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    base = sums + slot.to(tl.int64) * tiles * 4
    total_c = tl.zeros((BLOCK,), tl.float64)
    squares_c = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        mask = tile < tiles
        total_c += tl.load(base + 4 * tile, mask=mask, other=0.0)
        squares_c += tl.load(base + 4 * tile + 1, mask=mask, other=0.0)
        total += tl.load(base + 4 * tile + 2, mask=mask, other=0.0)
        squares += tl.load(base + 4 * tile + 3, mask=mask, other=0.0)
    count = n.to(tl.float64)
    of_cond = variance(tl.sum(total_c, axis=0), tl.sum(squares_c, axis=0), count)
    of_blend = variance(tl.sum(total, axis=0), tl.sum(squares, axis=0), count)
    # A constant prediction has no deviation to match; a row with NaN is left alone, since the step reports it.
    matches = (cond >= 0) & (uncond >= 0) & (of_cond > 0.0) & (of_blend > 0.0)
    ratio = tl.where(matches, of_cond, 1.0) / tl.where(matches, of_blend, 1.0)
    share = tl.load(phi + slot).to(tl.float64)
    matches = matches & (ratio > 0.0) & (ratio < float("inf"))
    factor = tl.where(matches, share * tl.sqrt(ratio) + 1.0 - share, 1.0).to(tl.float32)

    column = tl.arange(0, BOTH_WIDTHS)
    own = column < rows_stride
    scaled = (column == P_E) | (column == Q_E) | (column == U_E) | (column == V_E)
    row = tl.load(rows + slot * rows_stride + column, mask=own, other=0.0)
    tl.store(adapted + slot * rows_stride + column, tl.where(scaled, row * factor, row), mask=own)


@triton.jit
def load_magnitude(x, prediction, prediction_stride, cond, uncond, g, p_x, p_e, offsets, n):
    """|d| before any clamp, as bits: ordered like the numbers, since none is negative."""
    state = tl.load(x + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    _, _, e = load_blend(prediction, prediction_stride, cond, uncond, g, offsets, n)
    return tl.abs(p_x * state + p_e * e).to(tl.int32, bitcast=True)


# thresholded_rows: a slot's row with p_x and p_e over s and the bounds -1 and 1: d clamped to [-s, s], then divided by
# s, a quantile of |d| held between 1 and a largest value.
#   Saharia et al. (2022), "Photorealistic text-to-image diffusion models with deep language understanding", sec. 2.3.
#   x, prediction, row_* : as for fused_step.
#   ratio, largest       : (B,) fp32; ratio 0: off.
#   rows                 : (B, 16) or (B, 32) fp32, contiguous; adapted : likewise, written, may be rows.
#   Grid                 : (B,); each program owns one slot; no atomics.
#   Numerics             : the two values of |d| next to the quantile are found exactly, four bits a pass, by counting;
#                          interpolated in fp64. Results do not depend on BLOCK.
#   Traffic              : 9 times 3 reads of B·N elements, from the L2 cache for all but very large samples.
#   Oracle               : dynamic_threshold_ref in reference.py.
@triton.jit(do_not_specialize=["n"])
def thresholded_rows_kernel(
    x,
    prediction,
    rows,
    row_cond,
    row_uncond,
    ratio,
    largest,
    adapted,
    n,
    prediction_rows,
    x_stride,
    prediction_stride,
    rows_stride,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    reads = ((cond >= 0) | (uncond >= 0)) & (cond < prediction_rows) & (uncond < prediction_rows)
    length = tl.where(reads, n, 0)
    own = x + slot.to(tl.int64) * x_stride
    row = rows + slot * rows_stride
    g = tl.load(row + G)
    p_x = tl.load(row + P_X)
    p_e = tl.load(row + P_E)
    share = tl.load(ratio + slot)
    position = share.to(tl.float64) * (n - 1).to(tl.float64)
    below = position.to(tl.int32)
    digits = tl.arange(0, RADIX)

    low = below * 0  # bits of the value of rank `below`, from the highest
    rank = below  # of that value, among those that agree with the bits found so far
    for digit_index in range(0, MAGNITUDE_BITS // RADIX_BITS):
        shift = MAGNITUDE_BITS - RADIX_BITS - RADIX_BITS * digit_index
        counts = tl.zeros((BLOCK, RADIX), tl.int32)
        for start in range(0, length, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            bits = load_magnitude(own, prediction, prediction_stride, cond, uncond, g, p_x, p_e, offsets, length)
            differing = ((bits ^ low) >> shift) >> RADIX_BITS  # two shifts: one of 32 bits is undefined
            agrees = (offsets < length) & (differing == 0)
            digit = tl.where(agrees, (bits >> shift) & (RADIX - 1), RADIX)
            counts += (digit[:, None] == digits[None, :]).to(tl.int32)
        histogram = tl.sum(counts, axis=0)
        digit_of_low = tl.sum((tl.cumsum(histogram, axis=0) <= rank).to(tl.int32), axis=0)
        rank -= tl.sum(tl.where(digits < digit_of_low, histogram, 0), axis=0)
        low = low | (digit_of_low << shift)

    up_to_low = tl.zeros((BLOCK,), tl.int32)
    high = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)  # the smallest value above it
    top = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, length, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        live = offsets < length
        bits = load_magnitude(own, prediction, prediction_stride, cond, uncond, g, p_x, p_e, offsets, length)
        up_to_low += (live & (bits <= low)).to(tl.int32)
        high = tl.minimum(high, tl.where(live & (bits > low), bits, 0x7FFFFFFF))
        top = tl.maximum(top, tl.where(live, bits, 0))
    repeats = (tl.sum(up_to_low, axis=0) > below + 1) | (below + 1 == n)
    high_bits = tl.where(repeats, low, tl.min(high, axis=0))
    value = low.to(tl.float32, bitcast=True).to(tl.float64)
    above = high_bits.to(tl.float32, bitcast=True).to(tl.float64)
    threshold = (value + (position - below.to(tl.float64)) * (above - value)).to(tl.float32)
    most = tl.load(largest + slot)
    threshold = tl.where(threshold < 1.0, 1.0, threshold)
    threshold = tl.where(threshold > most, most, threshold)

    # A row whose d is not finite is left alone, since the step reports it.
    applies = reads & (share > 0.0) & (tl.max(top, axis=0) < INFINITY_BITS)
    column = tl.arange(0, BOTH_WIDTHS)
    own_columns = column < rows_stride
    before = tl.load(row + column, mask=own_columns, other=0.0)
    new = tl.where((column == P_X) | (column == P_E), tl.div_rn(before, tl.where(applies, threshold, 1.0)), before)
    new = tl.where(column == LO, -1.0, new)
    new = tl.where(column == HI, 1.0, new)
    tl.store(adapted + slot * rows_stride + column, tl.where(applies, new, before), mask=own_columns)
