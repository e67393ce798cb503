"""How kernels are cut up and compiled. No torch, no Triton."""

from __future__ import annotations

from dataclasses import dataclass

#: No FMA, as on the CPU: the same bits.
COMPILE_OPTIONS = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Config:
    """How a launch is cut up. The step's result does not depend on it."""

    block: int  # elements a tile, a power of two
    num_warps: int


#: Of the step. Small tiles spread a small step over the processors, large ones keep more bytes in flight, and where a
#: sample's length is no multiple of 16 more elements a thread would only cost registers.
SMALL, LARGE, UNALIGNED = Config(256, 2), Config(1024, 4), Config(512, 4)

#: Elements of all slots from which on tiles are large: two of them for each processor of a current GPU.
LARGE_FROM = 1 << 18

#: Of the reductions. Sums depend on their block in the last bits, so it is no matter of tuning.
SUMS_BLOCK, SUMS_WARPS = 1024, 4
GATHER_BLOCK, GATHER_WARPS = 256, 4
SELECT_BLOCK, SELECT_WARPS = 1024, 16


def config_for(slots: int, n: int) -> Config:
    """The configuration for a step over ``slots`` samples of ``n`` elements."""
    if n % 16:
        return UNALIGNED
    return LARGE if slots * n >= LARGE_FROM else SMALL
