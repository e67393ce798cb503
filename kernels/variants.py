"""The kernels that are compiled ahead of time, and their argument types. Needs Triton, but neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from stepfuse.kernels.adapt_kernel import (
    guidance_sums_kernel,
    guided_rows_kernel,
    magnitude_counts_kernel,
    thresholded_rows_kernel,
)
from stepfuse.kernels.configs import (
    ALIGNED_LAYOUTS,
    ANY_LAYOUT,
    COUNT_BLOCK,
    COUNT_WARPS,
    GATHER_BLOCK,
    GATHER_WARPS,
    KEEP,
    RENORM,
    SECOND_LAYOUT,
    SELECT_TILES,
    SELECT_WARPS,
    SUMS_BLOCK,
    SUMS_WARPS,
    Config,
)
from stepfuse.kernels.keep_kernel import keep_known_kernel
from stepfuse.kernels.renorm_kernel import renormed_predictions_kernel
from stepfuse.kernels.step_kernel import fused_step_kernel

#: Triton's names of the storage dtypes, by torch's.
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

#: Dtypes of the state and of the network: the state of a half-precision network may be float32.
STORAGE = (*((name, name) for name in TYPES), ("float32", "float16"), ("float32", "bfloat16"))

#: Types of the arguments that are the same in all variants. None: absent from what is compiled ahead of time.
ARGUMENTS = {
    "rows": "*fp32",
    "next_rows": "*fp32",
    "row_cond": "*i32",
    "row_uncond": "*i32",
    "next_cond": "*i32",
    "next_uncond": "*i32",
    "next_t": "*fp32",
    "next_t_int": "*i64",
    "nonfinite": "*i32",
    "seed": "*i64",
    "step": "*i32",
    "z": None,
    "sums": "*fp64",
    "counts": "*i32",
    "guidance": "*fp32",
    "ratio": "*fp32",
    "largest": "*fp32",
    "patches": "*i32",
    "known": "*fp32",
    "known_row": "*i32",
    "levels": "*fp32",
    "adapted": "*fp32",
    "n": "i32",
    "tiles": "i32",
    "shift": "i32",
    "prediction_rows": "i32",
    "next_input_rows": "i32",
    "rows_stride": "i32",
    "next_rows_stride": "i32",
    "x_stride": "i64",
    "prediction_stride": "i64",
    "out_stride": "i64",
    "next_input_stride": "i64",
}
OF_STATE, OF_NETWORK = ("x", "out", "h", "h2", "h3", "x0"), ("prediction", "next_input")

#: Arguments of the fused step that its kinds leave out: without noise, with it, and (none) with a second line.
_ABSENT: dict[str, dict[str, str | None]] = {
    "plain": dict.fromkeys(("seed", "step", "h2", "h3")),
    "noise": dict.fromkeys(("h2", "h3")),
}

#: Arguments that must be multiples of 16 in a launch of an aligned variant: pointers, the length and strides.
ALIGNED = (*OF_STATE, *OF_NETWORK, "known", "n", "x_stride", "prediction_stride", "out_stride", "next_input_stride")


@dataclass(frozen=True)
class Variant:
    """One kernel, compiled for one combination of argument types."""

    name: str  # also of its cubin
    kernel: Any  # a function of triton.jit
    config: Config
    types: Mapping[str, str | None] = field(repr=False)  # of arguments that are not in ARGUMENTS, or differ from it
    aligned: bool = False
    grid: str = "tiles"  # of programs: "tiles" is (tiles of a sample, slots), "slots" is (slots,)

    @property
    def signature(self) -> dict[str, str | None]:
        """Triton's type of each argument in order; None for those that are absent or compile-time constants."""
        known = {**ARGUMENTS, **self.types, "BLOCK": None}
        return {name: known[name] for name in self.kernel.arg_names}

    @property
    def divisible_by_16(self) -> list[str]:
        """Arguments that must be multiples of 16 in a launch."""
        return [name for name, kind in self.signature.items() if kind and self.aligned and name in ALIGNED]


def variants() -> Iterator[Variant]:
    """Every variant that the ahead-of-time build compiles."""
    layouts = {**ALIGNED_LAYOUTS, **ANY_LAYOUT}
    for (state, network), kind, (layout, config) in product(STORAGE, ("plain", "noise"), layouts.items()):
        types = _storage(state, network) | _ABSENT[kind]
        name = f"fused_step.{state}.{network}.{kind}.{layout}"
        yield Variant(name, fused_step_kernel, config, types, aligned=layout in ALIGNED_LAYOUTS)
    for (state, network), (layout, config) in product(STORAGE, {**SECOND_LAYOUT, **ANY_LAYOUT}.items()):
        name = f"fused_step.{state}.{network}.second.{layout}"
        yield Variant(name, fused_step_kernel, config, _storage(state, network), aligned=layout in SECOND_LAYOUT)
    for network, aligned in product(TYPES, (True, False)):
        name = f"guidance_sums.{network}.{'aligned' if aligned else 'any'}"
        config = Config(SUMS_BLOCK, SUMS_WARPS)
        yield Variant(name, guidance_sums_kernel, config, _storage("float32", network), aligned)
    yield Variant("guided_rows", guided_rows_kernel, Config(GATHER_BLOCK, GATHER_WARPS), {}, grid="slots")
    for (state, network), aligned in product(STORAGE, (True, False)):
        name = f"magnitude_counts.{state}.{network}.{'aligned' if aligned else 'any'}"
        config = Config(COUNT_BLOCK, COUNT_WARPS)
        yield Variant(name, magnitude_counts_kernel, config, _storage(state, network), aligned)
    yield Variant("thresholded_rows", thresholded_rows_kernel, Config(SELECT_TILES, SELECT_WARPS), {}, grid="slots")
    for network, aligned in product(TYPES, (True, False)):
        name = f"keep_known.float32.{network}.{'aligned' if aligned else 'any'}"
        yield Variant(name, keep_known_kernel, KEEP, _storage("float32", network), aligned)
    for network in TYPES:
        name = f"renormed_predictions.{network}"
        yield Variant(name, renormed_predictions_kernel, RENORM, _storage("float32", network))


def _storage(state: str, network: str) -> dict[str, str | None]:
    types: dict[str, str | None] = dict.fromkeys(OF_STATE, f"*{TYPES[state]}")
    return types | dict.fromkeys(OF_NETWORK, f"*{TYPES[network]}")
