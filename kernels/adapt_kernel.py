"""Reductions over whole samples, folded into their rows before the step, in Triton; ``adapt.py`` launches them."""

import triton
import triton.language as tl

from stepfuse.kernels.columns import BLENDS
from stepfuse.kernels.row import (
    BOTH_WIDTHS,
    HI,
    LO,
    P_E,
    P_X,
    Q_E,
    Q_X,
    U_E,
    U_X,
    V_E,
    V_X,
    G,
    load_blend,
    rows_of_slot,
)

PLAIN, PROJECTED, PROJECTED_CLEAN, OPTIMIZED_SCALE = map(tl.constexpr, range(len(BLENDS)))
SUMS = tl.constexpr(9)

RADIX = tl.constexpr(256)
RADIX_BITS = tl.constexpr(8)
#: Shifts of the digits of |d| as 32 bits, a sign bit of 0 included, from the highest.
SHIFTS = (24, 16, 8, 0)
FIRST_SHIFT = tl.constexpr(SHIFTS[0])
HIGHER, TOP = tl.constexpr(RADIX.value), tl.constexpr(RADIX.value + 1)  # columns of a tile's counts behind its digits
COUNTS = tl.constexpr(RADIX.value + 8)
INFINITY_BITS = tl.constexpr(0x7F800000)
LARGEST = tl.constexpr(0x7FFFFFFF)


# guidance_sums: a tile's sums over both predictions, the state, and products of two of them, for guided_rows.
#   prediction : (R, N) fp16/bf16/fp32; row_* : (B,) int32, as for fused_step.
#   x          : (B, N) fp16/bf16/fp32, read of slots whose clean estimates are projected.
#   guidance   : (B, 4) fp32: phi, a number of BLENDS, eta, norm threshold.
#   sums       : (B, tiles, 9) fp64, written: e_c, e_u, e_c e_c, e_c e_u, e_u e_u, x, x x, x e_c, x e_u.
#   Grid       : (tiles, B); each program owns one tile; no atomics.
#   Numerics   : fp64, in an order that depends on BLOCK alone, which is fixed: the same bits in every run.
#   Traffic    : 2 reads of B·N elements, 3 where clean estimates are projected.
@triton.jit
def guidance_sums_kernel(
    prediction,
    x,
    guidance,
    row_cond,
    row_uncond,
    sums,
    n,
    prediction_rows,
    x_stride,
    prediction_stride,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    guided = (cond >= 0) & (uncond >= 0) & (cond < prediction_rows) & (uncond < prediction_rows)
    length = tl.where(guided, n, 0)
    e_c, e_u, _ = load_blend(prediction, prediction_stride, cond, uncond, 0.0, offsets, length)
    of_state = tl.where(tl.load(guidance + 4 * slot + 1) == PROJECTED_CLEAN, length, 0)
    state = tl.load(x + slot.to(tl.int64) * x_stride + offsets, mask=offsets < of_state, other=0.0)
    e_c = e_c.to(tl.float64)
    e_u = e_u.to(tl.float64)
    state = state.to(tl.float64)
    to = sums + (slot.to(tl.int64) * tl.num_programs(0) + tile) * SUMS
    tl.store(to, tl.sum(e_c, axis=0))
    tl.store(to + 1, tl.sum(e_u, axis=0))
    tl.store(to + 2, tl.sum(e_c * e_c, axis=0))
    tl.store(to + 3, tl.sum(e_c * e_u, axis=0))
    tl.store(to + 4, tl.sum(e_u * e_u, axis=0))
    tl.store(to + 5, tl.sum(state, axis=0))
    tl.store(to + 6, tl.sum(state * state, axis=0))
    tl.store(to + 7, tl.sum(state * e_c, axis=0))
    tl.store(to + 8, tl.sum(state * e_u, axis=0))


@triton.jit
def total(sums, index: tl.constexpr, tiles, BLOCK: tl.constexpr):
    """One of a slot's sums, over its tiles."""
    found = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        found += tl.load(sums + SUMS * tile + index, mask=tile < tiles, other=0.0)
    return tl.sum(found, axis=0)


@triton.jit
def is_finite(value):
    return tl.abs(value) < float("inf")


# guided_rows: a guided slot's row with its guidance folded in: e = cond e_c + uncond e_u + state x, rescaled.
#   What each blend is, and why the row keeps its digits where its weights cancel: csrc/core/step/guidance.h, .cpp.
#   sums     : (B, tiles, 9) fp64 of guidance_sums; guidance : (B, 4) fp32, as for guidance_sums.
#   rows     : (B, 16) or (B, 32) fp32, contiguous; adapted : likewise, written, may be rows.
#   Grid     : (B,); each program owns one slot.
#   Numerics : fp64, in the order of guidance.cpp; one rounding at the row.
#   Oracle   : adapt_guidance_ref in reference.py.
@triton.jit(do_not_specialize=["n", "tiles"])
def guided_rows_kernel(sums, rows, row_cond, row_uncond, guidance, adapted, n, tiles, rows_stride, BLOCK: tl.constexpr):
    slot = tl.program_id(0)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    base = sums + slot.to(tl.int64) * tiles * SUMS
    c = total(base, 0, tiles, BLOCK)
    u = total(base, 1, tiles, BLOCK)
    cc = total(base, 2, tiles, BLOCK)
    cu = total(base, 3, tiles, BLOCK)
    uu = total(base, 4, tiles, BLOCK)
    s = total(base, 5, tiles, BLOCK)
    xx = total(base, 6, tiles, BLOCK)
    xc = total(base, 7, tiles, BLOCK)
    xu = total(base, 8, tiles, BLOCK)
    phi = tl.load(guidance + 4 * slot).to(tl.float64)
    blend = tl.load(guidance + 4 * slot + 1)
    eta = tl.load(guidance + 4 * slot + 2).to(tl.float64)
    norm_threshold = tl.load(guidance + 4 * slot + 3).to(tl.float64)
    row = rows + slot * rows_stride
    own_g = tl.load(row + G)
    g = own_g.to(tl.float64)
    p_x = tl.load(row + P_X).to(tl.float64)
    p_e = tl.load(row + P_E).to(tl.float64)
    clean = blend == PROJECTED_CLEAN

    dd = cc - 2.0 * cu + uu
    dc = cc - cu
    of_difference = tl.where(clean, p_e * p_e * dd, dd)
    on_cond = tl.where(clean, p_e * (p_x * (xc - xu) + p_e * dc), dc)
    of_cond = tl.where(clean, p_x * p_x * xx + 2.0 * p_x * p_e * xc + p_e * p_e * cc, cc)
    short = norm_threshold / tl.sqrt(tl.where(of_difference > 0.0, of_difference, 1.0))
    limited = (norm_threshold > 0.0) & (of_difference > 0.0) & (short < 1.0)
    limit = tl.where(limited, short, 1.0)
    part = tl.where(of_cond > 0.0, (eta - 1.0) * on_cond / tl.where(of_cond > 0.0, of_cond, 1.0), 0.0)

    more = (g - 1.0) * limit
    on_c = tl.where(clean, 1.0 + more * (1.0 + part), tl.where(blend == PROJECTED, g * limit * (1.0 + part), g))
    on_u = tl.where(clean, -more, tl.where(blend == PROJECTED, 1.0 - g * limit, 1.0 - g))
    on_u = tl.where(blend == OPTIMIZED_SCALE, (1.0 - g) * cu / (uu + 1e-8), on_u)
    on_x = tl.where(clean, more * part * p_x / tl.where(clean, p_e, 1.0), 0.0)

    count = n.to(tl.float64)
    mean_c = c / count
    mean_u = u / count
    mean_x = s / count
    var_c = cc / count - mean_c * mean_c
    var_u = uu / count - mean_u * mean_u
    var_x = xx / count - mean_x * mean_x
    mixed = on_c * on_u * (cu / count - mean_c * mean_u) + on_c * on_x * (xc / count - mean_x * mean_c)
    mixed += on_u * on_x * (xu / count - mean_x * mean_u)
    variance = on_c * on_c * var_c + on_u * on_u * var_u + on_x * on_x * var_x + 2.0 * mixed
    # A constant prediction has no deviation to match; what is not finite is left to the step, which reports it.
    matches = (phi > 0.0) & (var_c > 0.0) & (variance > 0.0)
    ratio = tl.where(matches, var_c, 1.0) / tl.where(matches, variance, 1.0)
    matches = matches & (ratio > 0.0) & is_finite(ratio)
    factor = tl.where(matches, phi * tl.sqrt(ratio) + 1.0 - phi, 1.0)

    size = tl.abs(on_c) + tl.abs(on_u)
    least = 1e-9 * size
    both = on_c + on_u
    share = tl.where(tl.abs(both) < least, tl.where(both < 0.0, -least, least), both)
    plain = blend == PLAIN
    new_g = tl.where(plain | (size == 0.0), g, on_c / tl.where(size == 0.0, 1.0, share)).to(tl.float32)
    new_g = tl.where(plain, own_g, new_g)
    on_state = tl.where(plain, 0.0, factor * on_x).to(tl.float32)
    scale = tl.where(plain, factor, factor * share).to(tl.float32)
    adapts = (cond >= 0) & (uncond >= 0) & is_finite(scale) & is_finite(new_g) & is_finite(on_state)

    column = tl.arange(0, BOTH_WIDTHS)
    own = column < rows_stride
    before = tl.load(row + column, mask=own, other=0.0)
    # The coefficient of e beside each of x, which takes its share of the state.
    beside = tl.where(column == P_X, tl.load(row + P_E), 0.0)
    beside = tl.where(column == Q_X, tl.load(row + Q_E), beside)
    beside = tl.where(column == U_X, tl.load(row + U_E), beside)
    beside = tl.where(column == V_X, tl.load(row + V_E, mask=rows_stride > V_E, other=0.0), beside)
    new = tl.where(beside * on_state != 0.0, before + beside * on_state, before)
    scaled = (column == P_E) | (column == Q_E) | (column == U_E) | (column == V_E)
    new = tl.where(scaled, before * scale, tl.where(column == G, new_g, new))
    tl.store(adapted + slot * rows_stride + column, tl.where(adapts, new, before), mask=own)


@triton.jit
def load_magnitude(x, prediction, prediction_stride, cond, uncond, g, p_x, p_e, offsets, n):
    """|d| before any clamp, as bits: ordered like the numbers, since none is negative."""
    state = tl.load(x + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    _, _, e = load_blend(prediction, prediction_stride, cond, uncond, g, offsets, n)
    return tl.abs(p_x * state + p_e * e).to(tl.int32, bitcast=True)


@triton.jit
def takes_threshold(row_cond, row_uncond, ratio, slot, prediction_rows):
    """(cond, uncond, whether the slot has a prediction and a threshold)."""
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    reads = ((cond >= 0) | (uncond >= 0)) & (cond < prediction_rows) & (uncond < prediction_rows)
    return cond, uncond, reads & (tl.load(ratio + slot) > 0.0)


# magnitude_counts: how often each digit occurs in a tile's |d|, for thresholded_rows. Four passes, a launch each.
#   x, prediction, row_* : as for fused_step.
#   ratio                : (B,) fp32, of thresholded_rows; slots with 0 are left out.
#   rows                 : (B, 16) or (B, 32) fp32, contiguous.
#   counts               : (B, tiles + 1, COUNTS) int32. Read of a slot's last row: the digits found so far (not in the
#                          first pass). Written, a row a tile: of the values that have these digits, how many have each
#                          next one; the smallest value with higher ones; the largest value of all.
#   shift                : of the digit that is counted, one of SHIFTS.
#   Grid                 : (tiles, B); each program owns one tile; no atomics.
#   Traffic              : 3 reads of B·N elements, and COUNTS words a tile.
@triton.jit(do_not_specialize=["n", "shift"])
def magnitude_counts_kernel(
    x,
    prediction,
    rows,
    row_cond,
    row_uncond,
    ratio,
    counts,
    n,
    shift,
    prediction_rows,
    x_stride,
    prediction_stride,
    rows_stride,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    tiles = tl.num_programs(0)
    cond, uncond, takes = takes_threshold(row_cond, row_uncond, ratio, slot, prediction_rows)
    length = tl.where(takes, n, 0)
    row = rows + slot * rows_stride
    g = tl.load(row + G)
    p_x = tl.load(row + P_X)
    p_e = tl.load(row + P_E)
    own = counts + slot.to(tl.int64) * (tiles + 1) * COUNTS
    low = tl.load(own + tiles * COUNTS, mask=shift < FIRST_SHIFT, other=0)

    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    state = x + slot.to(tl.int64) * x_stride
    bits = load_magnitude(state, prediction, prediction_stride, cond, uncond, g, p_x, p_e, offsets, length)
    live = offsets < length
    above = (bits >> shift) >> RADIX_BITS  # two shifts: one of 32 bits is undefined
    found = (low >> shift) >> RADIX_BITS
    agrees = live & (above == found)
    histogram = tl.histogram((bits >> shift) & (RADIX - 1), RADIX, mask=agrees)

    to = own + tile * COUNTS
    tl.store(to + tl.arange(0, RADIX), histogram)
    tl.store(to + HIGHER, tl.min(tl.where(live & (above > found), bits, LARGEST), axis=0))
    tl.store(to + TOP, tl.max(tl.where(live, bits, 0), axis=0))


# thresholded_rows: a slot's row with p_x and p_e over s and the bounds -1 and 1: d clamped to [-s, s], then divided by
# s, a quantile of |d| held between 1 and a largest value. The last pass writes it; each finds a digit of the quantile.
#   Saharia et al. (2022), "Photorealistic text-to-image diffusion models with deep language understanding", sec. 2.3.
#   counts         : (B, tiles + 1, COUNTS) int32, as magnitude_counts has left it for the same `shift`. The last row of
#                    a slot holds the digits found so far, and the rank among values that have them, for the next pass.
#   row_*          : as for fused_step; ratio, largest : (B,) fp32; ratio 0: off.
#   rows           : (B, 16) or (B, 32) fp32, contiguous; adapted : likewise, written in the last pass, may be rows.
#   Grid           : (B,); each program owns one slot.
#   Numerics       : the two values of |d| next to the quantile are found exactly, eight bits a pass, by counting;
#                    interpolated in fp64. Results do not depend on a BLOCK.
#   Traffic        : COUNTS words a tile.
#   Oracle         : dynamic_threshold_ref in reference.py.
@triton.jit(do_not_specialize=["n", "tiles", "shift"])
def thresholded_rows_kernel(
    counts,
    rows,
    row_cond,
    row_uncond,
    ratio,
    largest,
    adapted,
    n,
    tiles,
    shift,
    prediction_rows,
    rows_stride,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0)
    _, _, takes = takes_threshold(row_cond, row_uncond, ratio, slot, prediction_rows)
    position = tl.load(ratio + slot).to(tl.float64) * (n - 1).to(tl.float64)
    below = position.to(tl.int32)
    own = counts + slot.to(tl.int64) * (tiles + 1) * COUNTS
    digits = tl.arange(0, RADIX)
    histogram = tl.zeros((RADIX,), tl.int32)
    higher = tl.full((BLOCK,), LARGEST, tl.int32)
    top = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tl.where(takes, tiles, 0), BLOCK):
        tile = start + tl.arange(0, BLOCK)
        of_tile = own + tile * COUNTS
        there = tile < tiles
        found = tl.load(of_tile[:, None] + digits[None, :], mask=there[:, None], other=0)
        histogram += tl.sum(found, axis=0)
        higher = tl.minimum(higher, tl.load(of_tile + HIGHER, mask=there, other=LARGEST))
        top = tl.maximum(top, tl.load(of_tile + TOP, mask=there, other=0))
    state = own + tiles * COUNTS
    later = shift < FIRST_SHIFT
    low = tl.load(state, mask=later, other=0)
    rank = tl.where(later, tl.load(state + 1, mask=later, other=0), below)
    digit = tl.sum((tl.cumsum(histogram, axis=0) <= rank).to(tl.int32), axis=0)
    rank -= tl.sum(tl.where(digits < digit, histogram, 0), axis=0)
    low = low | (digit << shift)
    if shift > 0:
        tl.store(state, low)
        tl.store(state + 1, rank)
    else:
        equal = tl.sum(tl.where(digits == digit, histogram, 0), axis=0)
        repeats = (rank + 1 < equal) | (below + 1 == n)
        next_digit = tl.min(tl.where((digits > digit) & (histogram > 0), digits, RADIX), axis=0)
        following = tl.where(next_digit < RADIX, low - digit + next_digit, tl.min(higher, axis=0))
        value = low.to(tl.float32, bitcast=True).to(tl.float64)
        above = tl.where(repeats, low, following).to(tl.float32, bitcast=True).to(tl.float64)
        threshold = (value + (position - below.to(tl.float64)) * (above - value)).to(tl.float32)
        most = tl.load(largest + slot)
        threshold = tl.where(threshold < 1.0, 1.0, threshold)
        threshold = tl.where(threshold > most, most, threshold)

        # A row whose d is not finite is left alone, since the step reports it.
        applies = takes & (tl.max(top, axis=0) < INFINITY_BITS)
        column = tl.arange(0, BOTH_WIDTHS)
        own_columns = column < rows_stride
        before = tl.load(rows + slot * rows_stride + column, mask=own_columns, other=0.0)
        new = tl.where((column == P_X) | (column == P_E), tl.div_rn(before, tl.where(applies, threshold, 1.0)), before)
        new = tl.where(column == LO, -1.0, new)
        new = tl.where(column == HI, 1.0, new)
        tl.store(adapted + slot * rows_stride + column, tl.where(applies, new, before), mask=own_columns)
