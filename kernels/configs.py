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


#: Of the step, where a sample's length is a multiple of 16. Four elements a thread are 16 bytes of float32, eight are
#: 16 bytes of half precision too; of sixteen half as many threads fit a processor, and no more bytes are in flight.
#: Small tiles spread a small step over the processors, of large ones fewer have to be begun.
SMALL, MEDIUM, LARGE, WIDE = Config(256, 2), Config(512, 4), Config(1024, 4), Config(2048, 8)

#: Of any length: more elements a thread would only cost registers.
UNALIGNED = Config(512, 4)

#: By name: those that a step of aligned samples may have, all with the same result, and the one of any samples.
ALIGNED_LAYOUTS = {"small": SMALL, "medium": MEDIUM, "large": LARGE, "wide": WIDE}
ANY_LAYOUT = {"any": UNALIGNED}

#: Elements of all slots from which on tiles are large: two of them for each processor of a current GPU.
LARGE_FROM = 1 << 18

#: Of what a mask keeps: of each float32 that it reads a thread takes 16 bytes, and four of them are in flight.
KEEP = Config(512, 4)

#: Of the reductions. Sums depend on their block in the last bits, so it is no matter of tuning.
SUMS_BLOCK, SUMS_WARPS = 1024, 4
GATHER_BLOCK, GATHER_WARPS = 256, 4
SELECT_BLOCK, SELECT_WARPS = 1024, 16


def layouts_for(n: int) -> dict[str, Config]:
    """What a step over samples of ``n`` elements may be cut up as."""
    return ANY_LAYOUT if n % 16 else ALIGNED_LAYOUTS


def layout_for(slots: int, n: int) -> str:
    """The name of the layout for a step over ``slots`` samples of ``n`` elements, as a rule of thumb."""
    if n % 16:
        return "any"
    return "large" if slots * n >= LARGE_FROM else "small"


def config_for(slots: int, n: int) -> Config:
    """The same layout's configuration."""
    return layouts_for(n)[layout_for(slots, n)]
