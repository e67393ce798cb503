"""Which compiled kernels a step takes."""

from __future__ import annotations

from typing import Protocol

from stepfuse._core import cuda


class Kernels(Protocol):
    """Where kernels are from, such as ``StepKernels``."""

    def get(self, slots: int, n: int, *, noise: bool, second: bool = False) -> cuda.StepKernel:
        """The fused step over ``slots`` samples of ``n`` elements; ``second``: for rows with a second line."""

    def named(self, name: str) -> cuda.StepKernel:
        """A variant by its whole name."""


def loop_program(kernels: Kernels, storage: str, n: int, slots: int) -> cuda.StepProgram:
    """All kernels that steps of up to ``slots`` samples of ``n`` elements may need: no request waits for a compiler.

    Args:
        kernels: Where they are from.
        storage: What the network computes in.
        n: Elements of a sample.
        slots: Samples that step together; more run in the kernels that are best for so many.

    Raises:
        KernelError: If one is missing.
    """
    counts = [1 << i for i in range((slots - 1).bit_length() + 1)]
    return cuda.StepProgram(
        {count: kernels.get(count, n, noise=False) for count in counts},
        {count: kernels.get(count, n, noise=True) for count in counts},
        second={slots: kernels.get(slots, n, noise=True, second=True)},
        **adapting_kernels(kernels, storage, n, cuda.StepNeeds(guidance=True, threshold=True, keep=True, renorm=True)),
    )


def batch_program(kernels: Kernels, storage: str, n: int, slots: int, needs: cuda.StepNeeds) -> cuda.StepProgram:
    """The kernels of a static batch's steps, and no others.

    Args:
        kernels: Where they are from.
        storage: What the network computes in.
        n: Elements of a sample.
        slots: Samples of the batch.
        needs: Of all its steps together.

    Raises:
        KernelError: If one is missing.
    """
    step = {slots: kernels.get(slots, n, noise=needs.noise, second=needs.second)}
    return cuda.StepProgram(
        {} if needs.noise or needs.second else step,
        step if needs.noise and not needs.second else {},
        second=step if needs.second else {},
        **adapting_kernels(kernels, storage, n, needs),
    )


def adapting_kernels(kernels: Kernels, storage: str, n: int, needs: cuda.StepNeeds) -> dict[str, cuda.StepKernel]:
    """The kernels that these needs take beside the fused step, by the names that ``cuda.StepProgram`` has for them.

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
    if needs.guidance:
        names |= {"guidance_sums": f"guidance_sums.{storage}.{layout}", "guided_rows": "guided_rows"}
    if needs.threshold:
        counts = f"magnitude_counts.float32.{storage}.{layout}"
        names |= {"magnitude_counts": counts, "thresholded_rows": "thresholded_rows"}
    if needs.keep:
        names["keep_known"] = f"keep_known.float32.{storage}.{layout}"
    if needs.renorm:
        names["renormed_predictions"] = f"renormed_predictions.{storage}"
    return {name: kernels.named(variant) for name, variant in names.items()}
