"""Which kernels are compiled ahead of time, and for what arguments. Needs Triton, but neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from stepfuse.kernels.configs import (
    GATHER_BLOCK,
    GATHER_WARPS,
    LARGE,
    SELECT_BLOCK,
    SELECT_WARPS,
    SMALL,
    SUMS_BLOCK,
    SUMS_WARPS,
    UNALIGNED,
    Config,
)
from stepfuse.kernels.triton_adapt import guidance_sums_kernel, rescaled_rows_kernel, thresholded_rows_kernel
from stepfuse.kernels.triton_step import fused_step_kernel

#: Triton's names of the storage types, by ours.
TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

#: Of the state and of the network: a network of half precision may have its state kept in float32.
STORAGE = (*((name, name) for name in TYPES), ("float32", "float16"), ("float32", "bfloat16"))

#: What an argument is, whichever the variant. None: not taken by what is compiled ahead of time.
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
    "phi": "*fp32",
    "ratio": "*fp32",
    "largest": "*fp32",
    "adapted": "*fp32",
    "n": "i32",
    "tiles": "i32",
    "prediction_rows": "i32",
    "next_input_rows": "i32",
    "rows_stride": "i32",
    "next_rows_stride": "i32",
    "x_stride": "i64",
    "prediction_stride": "i64",
    "out_stride": "i64",
    "next_input_stride": "i64",
}
OF_STATE, OF_NETWORK = ("x", "out", "h", "x0"), ("prediction", "next_input")

#: What an aligned variant asks of its caller: pointers, the length and strides that are multiples of 16.
ALIGNED = (*OF_STATE, *OF_NETWORK, "n", "x_stride", "prediction_stride", "out_stride", "next_input_stride")


@dataclass(frozen=True)
class Variant:
    """One kernel, compiled for one kind of arguments."""

    name: str
    kernel: Any  # a function of triton.jit
    config: Config
    types: Mapping[str, str | None] = field(repr=False)  # of arguments that ARGUMENTS does not name, or names otherwise
    aligned: bool = False

    @property
    def signature(self) -> dict[str, str | None]:
        """Triton's type of each argument in order; None for those that are None or known when compiling."""
        known = {**ARGUMENTS, **self.types, "BLOCK": None}
        return {name: known[name] for name in self.kernel.arg_names}

    @property
    def divisible_by_16(self) -> list[str]:
        """Arguments whose value must be a multiple of 16."""
        return [name for name, kind in self.signature.items() if kind and self.aligned and name in ALIGNED]


def variants() -> Iterator[Variant]:
    """All of them."""
    layouts = {"small": (SMALL, True), "large": (LARGE, True), "any": (UNALIGNED, False)}
    for (state, network), noise, layout in product(STORAGE, ("plain", "noise"), layouts):
        config, aligned = layouts[layout]
        types = _storage(state, network) | ({} if noise == "noise" else {"seed": None, "step": None})
        yield Variant(f"fused_step.{state}.{network}.{noise}.{layout}", fused_step_kernel, config, types, aligned)
    for network, aligned in product(TYPES, (True, False)):
        name = f"guidance_sums.{network}.{'aligned' if aligned else 'any'}"
        config = Config(SUMS_BLOCK, SUMS_WARPS)
        yield Variant(name, guidance_sums_kernel, config, _storage(network, network), aligned)
    yield Variant("rescaled_rows", rescaled_rows_kernel, Config(GATHER_BLOCK, GATHER_WARPS), {})
    for (state, network), aligned in product(STORAGE, (True, False)):
        name = f"thresholded_rows.{state}.{network}.{'aligned' if aligned else 'any'}"
        config = Config(SELECT_BLOCK, SELECT_WARPS)
        yield Variant(name, thresholded_rows_kernel, config, _storage(state, network), aligned)


def _storage(state: str, network: str) -> dict[str, str | None]:
    types: dict[str, str | None] = dict.fromkeys(OF_STATE, f"*{TYPES[state]}")
    return types | dict.fromkeys(OF_NETWORK, f"*{TYPES[network]}")
