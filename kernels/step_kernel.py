"""The fused step in Triton; ``step.py`` launches it."""

import triton
import triton.language as tl

from stepfuse.kernels.columns import STEP
from stepfuse.kernels.noise import normal
from stepfuse.kernels.row import (
    HI,
    LO,
    P_E,
    P_X,
    Q_D,
    Q_E,
    Q_H,
    Q_H2,
    Q_H3,
    Q_U,
    Q_X,
    Q_Z,
    U_D,
    U_E,
    U_H,
    U_H2,
    U_H3,
    U_U,
    U_X,
    U_Z,
    V_D,
    V_E,
    V_H,
    V_H2,
    V_X,
    W_H,
    W_H2,
    W_H3,
    G,
    S,
    T,
    load_blend,
    rows_of_slot,
)

STEP_STREAM = tl.constexpr(STEP)


# fused_step: guidance blend, line 1 and line 2 of the step, history, noise, and the next forward's input, in one pass
# over x.
#   x, out, h, z, x0 : (B, N) fp16/bf16/fp32, N = C·H·W; out may be x, h is overwritten.
#   h2, h3           : like h, for rows with a second line; both or neither.
#   prediction       : (R, N) fp16/bf16/fp32, the network's output; next_input: (R', N), its next input.
#   rows, next_rows  : (B, 16) fp32, one StepTable row a slot; a slot may be at any step of any sampler. s of the next
#                      row scales the input, its t is the timestep. With h2 and h3 rows are (B, 32): a slot whose step
#                      has no second line has zeros there, and the same bits as without.
#   row_*, next_*    : (B,) int32, a slot's conditional and unconditional row of a forward; -1: none. A slot that reads
#                      no row is left alone.
#   seed, step       : (B,) int64 and int32, keys of the noise made in the kernel; without z and seed there is none.
#   nonfinite        : (B,) int32, 1 is stored where e or x' is not finite.
#   Absent           : h, h2 and h3, z, seed and step, x0, next_*, nonfinite may be None at compile time. Where compiled
#                      in, h, h2, h3, x0, next_t, next_t_int and nonfinite may be null at run time, and next_input if
#                      both its maps are -1.
#   Grid             : (cdiv(N, BLOCK), B); each program owns one tile; no atomics.
#   Numerics         : loads widen to fp32; products and sums round one by one (compiled without FMA), in the order of
#                      csrc/core/step/isa_kernel.inl; one rounding at the store. Results do not depend on BLOCK.
#   Errors           : what the host cannot check comes out as NaN: a row that needs a history or noise that is not
#                      given, or a map entry past the last row.
#   Order            : all loads come before the first store, which any of them might be of for all the compiler knows:
#                      three stages, the maps and rows, what they select, the stores; aot.py refuses another order.
#   Traffic          : guided 3 reads + 3 writes of B·N elements (x, and the two input rows of the next forward), else
#                      2 + 2. A register of the history adds one read and one write, for the slots whose rows use it.
#   Oracle           : fused_step_ref in reference.py.
@triton.jit
def fused_step_kernel(
    x,
    prediction,
    rows,
    row_cond,
    row_uncond,
    out,
    h,
    z,
    seed,
    step,
    x0,
    next_input,
    next_rows,
    next_cond,
    next_uncond,
    next_t,
    next_t_int,
    nonfinite,
    h2,
    h3,
    n,
    prediction_rows,
    next_input_rows,
    x_stride,
    prediction_stride,
    out_stride,
    next_input_stride,
    rows_stride,
    next_rows_stride,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    bad = (cond >= prediction_rows) | (uncond >= prediction_rows)
    active = (cond >= 0) | (uncond >= 0)
    length = tl.where(active, n, 0)

    row = rows + slot * rows_stride
    g = tl.load(row + G)
    p_x = tl.load(row + P_X)
    p_e = tl.load(row + P_E)
    lo = tl.load(row + LO)
    hi = tl.load(row + HI)
    q_x = tl.load(row + Q_X)
    q_d = tl.load(row + Q_D)
    q_e = tl.load(row + Q_E)
    q_h = tl.load(row + Q_H)
    q_z = tl.load(row + Q_Z)
    u_x = tl.load(row + U_X)
    u_d = tl.load(row + U_D)
    u_e = tl.load(row + U_E)
    u_h = tl.load(row + U_H)
    if next_input is not None:
        to_cond = tl.load(next_cond + slot)
        to_uncond = tl.load(next_uncond + slot)
        bad = bad | (to_cond >= next_input_rows) | (to_uncond >= next_input_rows)
        goes_on = (to_cond >= 0) | (to_uncond >= 0)
        scale = tl.load(next_rows + slot * next_rows_stride + S, mask=goes_on, other=0.0)
        t = tl.load(next_rows + slot * next_rows_stride + T, mask=goes_on, other=0.0)
    if seed is not None:
        key = tl.load(seed + slot)
        place = tl.load(step + slot)

    live = offsets < length
    state = tl.load(x + slot.to(tl.int64) * x_stride + offsets, mask=live, other=0.0).to(tl.float32)
    _, e_u, e = load_blend(prediction, prediction_stride, cond, uncond, g, offsets, tl.where(bad, 0, length))
    own = slot.to(tl.int64) * n + offsets  # of h, h2, h3, z and x0
    reads_history = (q_h != 0.0) | (u_h != 0.0)
    uses_history = reads_history | (u_x != 0.0) | (u_d != 0.0) | (u_e != 0.0)
    if h2 is not None:
        q_u = tl.load(row + Q_U)
        q_h2 = tl.load(row + Q_H2)
        q_h3 = tl.load(row + Q_H3)
        u_u = tl.load(row + U_U)
        u_z = tl.load(row + U_Z)
        u_h2 = tl.load(row + U_H2)
        u_h3 = tl.load(row + U_H3)
        v_x = tl.load(row + V_X)
        v_d = tl.load(row + V_D)
        v_e = tl.load(row + V_E)
        v_h = tl.load(row + V_H)
        v_h2 = tl.load(row + V_H2)
        w_h = tl.load(row + W_H)
        w_h2 = tl.load(row + W_H2)
        w_h3 = tl.load(row + W_H3)
        reads_history = reads_history | (v_h != 0.0) | (w_h != 0.0)
        uses_history = uses_history | reads_history | (u_u != 0.0) | (u_z != 0.0) | (u_h2 != 0.0) | (u_h3 != 0.0)
        reads_second = (q_h2 != 0.0) | (u_h2 != 0.0) | (v_h2 != 0.0) | (w_h2 != 0.0)
        uses_second = reads_second | (v_x != 0.0) | (v_d != 0.0) | (v_e != 0.0) | (v_h != 0.0)
        reads_third = (q_h3 != 0.0) | (u_h3 != 0.0) | (w_h3 != 0.0)
        uses_third = reads_third | (w_h != 0.0) | (w_h2 != 0.0)
        adds_noise = (q_z != 0.0) | (u_z != 0.0)
        noise = tl.zeros((BLOCK,), tl.float32)
        if z is not None:
            noisy = tl.where(adds_noise, length, 0)
            noise = tl.load(z + own, mask=offsets < noisy, other=0.0).to(tl.float32)
        elif seed is not None:
            if adds_noise:
                noise = normal(key, place, STEP_STREAM, tile * (BLOCK // 4), BLOCK)
        else:
            bad = bad | adds_noise
    elif z is not None:
        noisy = tl.where(q_z != 0.0, length, 0)
        noise = tl.load(z + own, mask=offsets < noisy, other=0.0).to(tl.float32)

    d = p_x * state + p_e * e
    # Comparisons with NaN are false, so it passes through; a minimum or maximum would replace it by the bound.
    d = tl.where(d < lo, lo, d)
    d = tl.where(d > hi, hi, d)
    following = q_x * state + q_d * d + q_e * e
    if h is not None:
        has_history = h.to(tl.int64) != 0
        bad = bad | (uses_history & (has_history == 0))
        # If the row does not read it, h may hold anything, NaN included.
        readable = tl.where(reads_history & has_history, length, 0)
        before = tl.load(h + own, mask=offsets < readable, other=0.0).to(tl.float32)
        following = following + q_h * before
        after = u_x * state + u_d * d + u_e * e + u_h * before
        if h2 is not None:
            has_second = h2.to(tl.int64) != 0
            has_third = h3.to(tl.int64) != 0
            bad = bad | (uses_second & (has_second == 0)) | (uses_third & (has_third == 0))
            readable = tl.where(reads_second & has_second, length, 0)
            second = tl.load(h2 + own, mask=offsets < readable, other=0.0).to(tl.float32)
            readable = tl.where(reads_third & has_third, length, 0)
            third = tl.load(h3 + own, mask=offsets < readable, other=0.0).to(tl.float32)
            following = following + q_u * e_u + q_h2 * second + q_h3 * third
            after = after + u_u * e_u + u_h2 * second + u_h3 * third
            after = after + u_z * noise
            new = v_x * state + v_d * d + v_e * e + v_h * before + v_h2 * second
            kept = tl.where(uses_second & has_second, length, 0)
            tl.store(h2 + own, new.to(h2.dtype.element_ty), mask=offsets < kept)
            new = w_h * before + w_h2 * second + w_h3 * third
            kept = tl.where(uses_third & has_third, length, 0)
            tl.store(h3 + own, new.to(h3.dtype.element_ty), mask=offsets < kept)
        kept = tl.where(uses_history & has_history, length, 0)
        tl.store(h + own, after.to(h.dtype.element_ty), mask=offsets < kept)
    else:
        bad = bad | uses_history
    if h2 is not None or z is not None:
        following = following + q_z * noise
    elif seed is not None:
        if q_z != 0.0:
            following = following + q_z * normal(key, place, STEP_STREAM, tile * (BLOCK // 4), BLOCK)
    else:
        bad = bad | (q_z != 0.0)

    following = tl.where(bad, float("nan"), following)

    tl.store(out + slot.to(tl.int64) * out_stride + offsets, following.to(out.dtype.element_ty), mask=live)
    if x0 is not None:
        x0_length = tl.where(x0.to(tl.int64) != 0, length, 0)
        tl.store(x0 + own, d.to(x0.dtype.element_ty), mask=offsets < x0_length)
    if next_input is not None:
        value = (scale * following).to(next_input.dtype.element_ty)
        first = (tile == 0) & active
        for to in tl.static_range(2):
            to_row = to_cond if to == 0 else to_uncond
            wanted = (to_row >= 0) & (to_row < next_input_rows)
            to_input = next_input + to_row.to(tl.int64) * next_input_stride + offsets
            tl.store(to_input, value, mask=offsets < tl.where(wanted, length, 0))
            if next_t is not None:
                tl.store(next_t + to_row, t, mask=first & wanted & (next_t.to(tl.int64) != 0))
            if next_t_int is not None:
                # To nearest, ties to even, as llrint: near 1.5 · 2^23 a float32 has no bits for a fraction.
                whole = ((t + 12582912.0) - 12582912.0).to(tl.int64)
                tl.store(next_t_int + to_row, whole, mask=first & wanted & (next_t_int.to(tl.int64) != 0))

    if nonfinite is not None:
        finite = (tl.abs(e) < float("inf")) & (tl.abs(following) < float("inf"))
        found = tl.max(tl.where(live & (finite == 0), 1, 0), axis=0) > 0
        tl.store(nonfinite + slot, 1, mask=found & (nonfinite.to(tl.int64) != 0))
