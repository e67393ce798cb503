"""A row's columns as Triton constants, and what every kernel does with a row first.

Where a condition of the slot's decides what a tile touches, it shortens the tile instead of being part of its mask: a
length that is a multiple of 16 is still known to be one, and Triton's interpreter cannot spread a truth value.
"""

import triton
import triton.language as tl

from stepfuse.kernels.columns import COLUMNS

T, S, G, P_X, P_E, LO, HI, Q_X, Q_D, Q_E, Q_H, Q_Z, U_X, U_D, U_E, U_H = map(tl.constexpr, range(len(COLUMNS)))
WIDTH = tl.constexpr(len(COLUMNS))


@triton.jit
def rows_of_slot(row_cond, row_uncond, slot):
    """Rows of the prediction that a slot reads, -1 where there is none; without a map, slot i reads row i."""
    cond = slot
    uncond = slot * 0 - 1
    if row_cond is not None:
        cond = tl.load(row_cond + slot)
    if row_uncond is not None:
        uncond = tl.load(row_uncond + slot)
    return cond, uncond


@triton.jit
def load_blend(prediction, stride, cond, uncond, g, offsets, n):
    """(e_c, e): the only pass of an unguided slot twice, else the conditional pass and the blend."""
    guided = (cond >= 0) & (uncond >= 0)
    only = tl.where(cond >= 0, cond, uncond).to(tl.int64)
    e_c = tl.load(prediction + only * stride + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    other = prediction + uncond.to(tl.int64) * stride + offsets
    e_u = tl.load(other, mask=offsets < tl.where(guided, n, 0), other=0.0).to(tl.float32)
    return e_c, tl.where(guided, e_u + g * (e_c - e_u), e_c)
