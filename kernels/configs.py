"""Tile configurations of the kernels, and how they are compiled. No torch, no Triton.

A *layout* is the name of a tile configuration, as it stands in the names of variants and cubins.
"""

from __future__ import annotations

from dataclasses import dataclass

#: No FMA, as in the CPU kernel, whose bits these are.
COMPILE_OPTIONS = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Config:
    """Tile size and warps of a launch. The result of a step does not depend on it."""

    block: int  # elements a tile, a power of two
    num_warps: int  # warps a tile


#: Of the step, where a sample's length is a multiple of 16. A thread accesses 16 bytes at a time with four elements of
#: float32 or eight of half precision. With sixteen, half as many threads fit a multiprocessor, and no more bytes are in
#: flight. Small tiles spread a small step over all multiprocessors; large ones mean fewer programs to start.
SMALL, MEDIUM, LARGE, WIDE = Config(256, 2), Config(512, 4), Config(1024, 4), Config(2048, 8)

#: Most registers a thread of the widest layout: of its own accord ptxas takes 64 for sm_80, and spills.
WIDE_REGISTERS = 72

#: Of the step, where a sample has any length: more elements a thread would only cost registers.
UNALIGNED = Config(512, 4)

#: Layouts of a step over samples whose length is a multiple of 16, and the one of samples of any length, by name.
ALIGNED_LAYOUTS = {"small": SMALL, "medium": MEDIUM, "large": LARGE, "wide": WIDE}
ANY_LAYOUT = {"any": UNALIGNED}

#: The one aligned layout of rows with a second line, which have too few users to be worth more cubins: two elements a
#: thread, since with four and half-precision predictions ptxas spills registers for sm_100.
SECOND_LAYOUT = {"narrow": Config(512, 8)}

#: Elements of all slots from which on tiles are large: two tiles for each multiprocessor of a current GPU.
LARGE_FROM = 1 << 18

#: Of keep_known: a thread reads 16 bytes of each of four float32 tensors, all in flight at once.
KEEP = Config(512, 4)

#: Of the guidance that keeps the norm of patches, which are its elements: a thread reads one patch from end to end.
RENORM = Config(64, 2)

#: Of the reductions. The last bits of a sum depend on its block, so these are fixed and never tuned.
SUMS_BLOCK, SUMS_WARPS = 1024, 4
GATHER_BLOCK, GATHER_WARPS = 256, 4
COUNT_BLOCK, COUNT_WARPS = 2048, 16
SELECT_TILES, SELECT_WARPS = 16, 8  # tiles whose counts are read at once


def layouts_for(n: int) -> dict[str, Config]:
    """The layouts that a step over samples of ``n`` elements can have, by name."""
    return ANY_LAYOUT if n % 16 else ALIGNED_LAYOUTS


def layout_for(slots: int, n: int) -> str:
    """The name of the layout for a step over ``slots`` samples of ``n`` elements, by a rule of thumb."""
    if n % 16:
        return "any"
    return "large" if slots * n >= LARGE_FROM else "small"


def second_layout_for(n: int) -> str:
    """The name of the layout for rows with a second line, over samples of ``n`` elements."""
    [layout] = ANY_LAYOUT if n % 16 else SECOND_LAYOUT
    return layout


def config_for(slots: int, n: int) -> Config:
    """The tile configuration of ``layout_for(slots, n)``."""
    return layouts_for(n)[layout_for(slots, n)]
