"""A row's columns as Triton constants, and the loads that every kernel begins with.

Where a slot's condition decides whether a tile is loaded or stored, it sets the length to 0 instead of entering the
mask: the compiler still knows that the length is a multiple of 16, and Triton's interpreter cannot broadcast a bool.
"""

import triton
import triton.language as tl

from stepfuse.kernels.columns import COLUMNS, SECOND_LINE

T, S, G, P_X, P_E, LO, HI, Q_X, Q_D, Q_E, Q_H, Q_Z, U_X, U_D, U_E, U_H = map(tl.constexpr, range(len(COLUMNS)))
Q_U, Q_H2, Q_H3, U_U, U_Z, U_H2, U_H3, V_X, V_D, V_E, V_H, V_H2, W_H, W_H2, W_H3, _ = map(
    tl.constexpr, range(len(COLUMNS), len(COLUMNS + SECOND_LINE))
)
BOTH_WIDTHS = tl.constexpr(len(COLUMNS + SECOND_LINE))


@triton.jit
def rows_of_slot(row_cond, row_uncond, slot):
    """(cond, uncond): rows of the prediction that a slot reads, -1: none. Without ``row_cond`` slot i reads row i."""
    cond = slot
    uncond = slot * 0 - 1
    if row_cond is not None:
        cond = tl.load(row_cond + slot)
    if row_uncond is not None:
        uncond = tl.load(row_uncond + slot)
    return cond, uncond


@triton.jit
def load_blend(prediction, stride, cond, uncond, g, offsets, n):
    """(e_c, e_u, e): both predictions and the blend; of an unguided slot its only prediction, three times."""
    guided = (cond >= 0) & (uncond >= 0)
    only = tl.where(cond >= 0, cond, uncond).to(tl.int64)
    e_c = tl.load(prediction + only * stride + offsets, mask=offsets < n, other=0.0).to(tl.float32)
    other = prediction + uncond.to(tl.int64) * stride + offsets
    e_u = tl.load(other, mask=offsets < tl.where(guided, n, 0), other=0.0).to(tl.float32)
    return e_c, tl.where(guided, e_u, e_c), tl.where(guided, e_u + g * (e_c - e_u), e_c)
