"""The known region of inpainting, put back after the step, in Triton; ``keep.py`` launches it."""

import triton
import triton.language as tl

from stepfuse.kernels.row import S, rows_of_slot


# keep_known: in the known region, the image noised to the level of the state that the step has written; in that state,
# in the next forward's input and in the preview.
#   x, x0                 : (B, N) fp16/bf16/fp32, as fused_step left them, overwritten.
#   known                 : (K, 3, N) fp32: an image, its mask (1: sampled, 0: known, between: blended), and the
#                           noise of the initial state.
#   known_row             : (B,) int32, each slot's entry of known; -1: none, the slot is left alone.
#   levels                : (B, 2) fp32, signal and noise of the state.
#   row_*                 : (B,) int32, as for fused_step; a slot that reads no row has not been stepped and is left
#                           alone.
#   next_*                : as for fused_step; the rows hold s times its state, and get s times the new one.
#   Absent                : x0 and next_* may be None at compile time. Where compiled in, x0 may be null at run time,
#                           and next_input if both its maps are -1.
#   Grid                  : (cdiv(N, BLOCK), B); each program owns one tile; no atomics.
#   Numerics              : products and sums round one by one (compiled without FMA), in the order of
#                           csrc/core/step/known.cpp; one rounding at the store. Results do not depend on BLOCK.
#   Traffic               : 4 reads + 3 writes of N elements a slot with a known region; a preview adds one of each.
#   Oracle                : keep_known_ref in reference.py.
@triton.jit
def keep_known_kernel(
    x,
    known,
    known_row,
    levels,
    x0,
    row_cond,
    row_uncond,
    next_input,
    next_rows,
    next_cond,
    next_uncond,
    n,
    next_input_rows,
    x_stride,
    next_input_stride,
    next_rows_stride,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    slot = tl.program_id(1)
    offsets = tile * BLOCK + tl.arange(0, BLOCK)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    own_known = tl.load(known_row + slot)
    active = ((cond >= 0) | (uncond >= 0)) & (own_known >= 0)
    length = tl.where(active, n, 0)
    live = offsets < length

    signal = tl.load(levels + 2 * slot)
    noise = tl.load(levels + 2 * slot + 1)
    image_at = known + own_known.to(tl.int64) * 3 * n + offsets
    mask_at = image_at + n
    image = tl.load(image_at, mask=live, other=0.0)
    mask = tl.load(mask_at, mask=live, other=0.0)
    initial_noise = tl.load(mask_at + n, mask=live, other=0.0)
    own = x + slot.to(tl.int64) * x_stride + offsets
    state = tl.load(own, mask=live, other=0.0).to(tl.float32)

    noised = signal * image + noise * initial_noise
    following = mask * state + (1.0 - mask) * noised
    tl.store(own, following.to(x.dtype.element_ty), mask=live)
    if x0 is not None:
        in_preview = offsets < tl.where(x0.to(tl.int64) != 0, length, 0)
        preview = x0 + slot.to(tl.int64) * n + offsets
        clean = tl.load(preview, mask=in_preview, other=0.0).to(tl.float32)
        clean = mask * clean + (1.0 - mask) * image
        tl.store(preview, clean.to(x0.dtype.element_ty), mask=in_preview)
    if next_input is not None:
        to_cond = tl.load(next_cond + slot)
        to_uncond = tl.load(next_uncond + slot)
        goes_on = (to_cond >= 0) | (to_uncond >= 0)
        scale = tl.load(next_rows + slot * next_rows_stride + S, mask=goes_on, other=0.0)
        value = (scale * following).to(next_input.dtype.element_ty)
        for to in tl.static_range(2):
            to_row = to_cond if to == 0 else to_uncond
            wanted = (to_row >= 0) & (to_row < next_input_rows)
            to_input = next_input + to_row.to(tl.int64) * next_input_stride + offsets
            tl.store(to_input, value, mask=offsets < tl.where(wanted, length, 0))
