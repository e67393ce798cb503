"""Guided predictions of the conditional one's norm, patch by patch, in Triton; ``renorm.py`` launches it."""

import triton
import triton.language as tl

from stepfuse.kernels.row import G, rows_of_slot


@triton.jit
def load_patches(prediction, stride, cond, uncond, g, offsets, live):
    """Each patch's conditional prediction and blend at these offsets."""
    e_c = tl.load(prediction + cond.to(tl.int64) * stride + offsets, mask=live, other=0.0).to(tl.float32)
    e_u = tl.load(prediction + uncond.to(tl.int64) * stride + offsets, mask=live, other=0.0).to(tl.float32)
    return e_c, e_u + g * (e_c - e_u)


# renormed_predictions: both predictions of a guided slot become e = k (e_u + g (e_c - e_u)), with the k of each patch
# that gives it the norm of e_c there: csrc/core/step/renorm.h. Slots without a patch are left alone.
#   prediction : (R, N) fp16/bf16/fp32, overwritten; row_* : (B,) int32, as for fused_step.
#   rows       : (B, 16) or (B, 32) fp32, of which g is read.
#   patches    : (B, 4) int32: side of a patch, 0: none; channels, height and width of a sample.
#   Grid       : (tiles, B); a program owns BLOCK patches. Tiles are counted in elements: those that there are no
#                patches for end at once.
#   Numerics   : sums in fp64, each patch's in the CPU's order; one rounding to fp32 and one at the store.
#   Traffic    : 4 reads and 2 writes of B·N elements.
#   Oracle     : cfg_renorm_ref in reference.py.
@triton.jit(do_not_specialize=["n"])
def renormed_predictions_kernel(
    prediction,
    rows,
    row_cond,
    row_uncond,
    patches,
    n,
    prediction_rows,
    prediction_stride,
    rows_stride,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(1)
    cond, uncond = rows_of_slot(row_cond, row_uncond, slot)
    given = tl.load(patches + 4 * slot)
    channels = tl.load(patches + 4 * slot + 1)
    height = tl.load(patches + 4 * slot + 2)
    width = tl.load(patches + 4 * slot + 3)
    side = tl.maximum(given, 1)
    across = tl.maximum(width // side, 1)
    guided = (cond >= 0) & (uncond >= 0) & (cond < prediction_rows) & (uncond < prediction_rows)
    whole = guided & (given > 0) & (channels * height * width == n)
    count = tl.where(whole, height // side * across, 0)
    first = tl.program_id(0) * BLOCK
    patch = first + tl.arange(0, BLOCK)
    live = patch < count
    corner = patch // across * side * width + patch % across * side
    area = side * side
    elements = tl.where(first < count, channels * area, 0)
    g = tl.load(rows + slot * rows_stride + G)

    of_cond = tl.zeros((BLOCK,), tl.float64)
    of_blend = tl.zeros((BLOCK,), tl.float64)
    for k in range(0, elements):
        offsets = corner + k // area * height * width + k % area // side * width + k % side
        e_c, e = load_patches(prediction, prediction_stride, cond, uncond, g, offsets, live)
        of_cond += e_c.to(tl.float64) * e_c.to(tl.float64)
        of_blend += e.to(tl.float64) * e.to(tl.float64)
    scales = of_blend > 0.0
    scale = tl.where(scales, tl.sqrt(of_cond / tl.where(scales, of_blend, 1.0)), 1.0)
    for k in range(0, elements):
        offsets = corner + k // area * height * width + k % area // side * width + k % side
        _, e = load_patches(prediction, prediction_stride, cond, uncond, g, offsets, live)
        kept = (scale * e.to(tl.float64)).to(tl.float32)
        tl.store(prediction + cond.to(tl.int64) * prediction_stride + offsets, kept, mask=live)
        tl.store(prediction + uncond.to(tl.int64) * prediction_stride + offsets, kept, mask=live)
