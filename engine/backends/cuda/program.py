"""Which compiled kernels a step takes beside the fused step."""

from __future__ import annotations

from typing import Protocol

from stepfuse._core import cuda


class NamedKernels(Protocol):
    """As ``StepKernels``."""

    def named(self, name: str) -> cuda.StepKernel:
        """A variant by its whole name."""


def beside_step(kernels: NamedKernels, storage: str, n: int, needs: cuda.StepNeeds) -> dict[str, cuda.StepKernel]:
    """Those kernels that these needs take, by the names that ``cuda.StepProgram`` has for them.

    Args:
        kernels: Where they are from.
        storage: What the network computes in. States are float32.
        n: Elements of a sample.
        needs: Of all steps together.

    Raises:
        KernelError: If one is missing.
    """
    layout = "any" if n % 16 else "aligned"
    names: dict[str, str] = {}
    if needs.rescale:
        names |= {"guidance_sums": f"guidance_sums.{storage}.{layout}", "rescaled_rows": "rescaled_rows"}
    if needs.threshold:
        names["thresholded_rows"] = f"thresholded_rows.float32.{storage}.{layout}"
    if needs.keep:
        names["keep_known"] = f"keep_known.float32.{storage}.{layout}"
    return {name: kernels.named(variant) for name, variant in names.items()}
