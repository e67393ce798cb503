"""The compiled kernels of a step for one GPU: from a folder of cubins, or compiled by Triton where it is installed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse._core import cuda
from stepfuse.backends.cuda.network import CapturedNetwork
from stepfuse.backends.cuda.tuning import step_seconds
from stepfuse.errors import KernelError
from stepfuse.extras import pip_install
from stepfuse.kernels.configs import layout_for, layouts_for, second_layout_for

FORMAT_VERSION = 1
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WORTH = 0.98  # of the default layout's time: a smaller gain is noise
_FIRST_SPECIFIC = 90  # from here on a cubin runs on its own architecture alone, before on later ones of its major too

logger = logging.getLogger("stepfuse")


class OtherGpuError(KernelError):
    """A folder's kernels are for other GPUs."""


@dataclass(frozen=True)
class Cubin:
    """A kernel as the driver loads it, and how it is launched.

    Attributes:
        image: The cubin.
        kernel: The function's name in it.
        arguments: Name, Triton's type, and whether it must be a multiple of 16, of each argument in order.
        block: Elements a tile.
        num_warps: Warps a tile.
        shared_bytes: Shared memory of a launch.
        grid: ``tiles``, a program a tile of a slot; or ``slots``, one a slot.
    """

    image: bytes
    kernel: str
    arguments: tuple[tuple[str, str, bool], ...]
    block: int
    num_warps: int
    shared_bytes: int
    grid: str

    def load(self, context: cuda.Context) -> cuda.StepKernel:
        """The kernel in a GPU's context."""
        module = cuda.Module(context, self.image)
        shape = self.block, self.num_warps, self.shared_bytes, self.grid
        return cuda.StepKernel(module, self.kernel, self.arguments, *shape)


class StepKernels:
    """The kernels that a network's steps need, each loaded when it is first asked for.

    Args:
        context: Of the GPU.
        storage: What the network computes in: ``float32``, ``float16`` or ``bfloat16``. States are float32.
        pack: Folder written by ``python -m stepfuse.kernels.aot``; None compiles with Triton.
        tune: Whether a step's layouts are timed when one of its size is first asked for; else the default for its size
            is taken. Samples do not depend on it.
    """

    def __init__(self, context: cuda.Context, storage: str, pack: Path | None = None, *, tune: bool = True) -> None:
        self._context = context
        self._storage = storage
        self._pack = pack
        self._tune = tune
        self._loaded: dict[str, cuda.StepKernel] = {}
        self._fastest: dict[tuple[int, int, bool], str | None] = {}  # layouts, by the power of two up to the slots

    @classmethod
    def of(cls, network: CapturedNetwork[Any], cubins: str | os.PathLike[str] | None) -> StepKernels:
        """The kernels for a network, from a folder of cubins or compiled."""
        return cls(network.context, network.storage, None if cubins is None else Path(cubins))

    def get(self, slots: int, n: int, *, noise: bool, second: bool = False) -> cuda.StepKernel:
        """The step over ``slots`` samples of ``n`` elements; ``second``: for rows with a second line, noise or not.

        Raises:
            KernelError: If there is none for this GPU.
            CudaError: If the driver does not take it.
        """
        if second:
            return self.named(self._name(second_layout_for(n), "second"))
        layout = layout_for(slots, n)
        if self._tune and len(layouts_for(n)) > 1:
            measured = 1 << (slots.bit_length() - 1), n, noise
            if measured not in self._fastest:
                self._fastest[measured] = self._measure(*measured)
            layout = self._fastest[measured] or layout
        return self.named(self._name(layout, _kind(noise)))

    def named(self, name: str) -> cuda.StepKernel:
        """A kernel by the whole name of its variant, such as ``guided_rows``.

        Raises:
            KernelError: If there is none of that name, or none for this GPU.
            CudaError: If the driver does not take it.
        """
        if name not in self._loaded:
            self._loaded[name] = self._cubin(name).load(self._context)
        return self._loaded[name]

    def _cubin(self, name: str) -> Cubin:
        """From the folder; where that is for other GPUs, compiled by Triton if it is installed, with a warning."""
        cc = self._context.compute_capability
        if self._pack is None:
            return compiled(name, cc)
        try:
            return packed(self._pack, name, cc)
        except OtherGpuError as error:
            with suppress(KernelError):
                cubin = compiled(name, cc)
                logger.warning("%s is compiled here, by Triton: %s", name, error)
                return cubin
            raise

    def _name(self, layout: str, kind: str) -> str:
        return f"fused_step.float32.{self._storage}.{kind}.{layout}"

    def _measure(self, slots: int, n: int, noise: bool) -> str | None:
        """The fastest layout; None if it could not be measured."""
        kernels = {layout: self.named(self._name(layout, _kind(noise))) for layout in layouts_for(n)}
        what = f"a step over {slots} samples of {n} elements, {'with' if noise else 'without'} noise"
        try:
            found = step_seconds(list(kernels.values()), self._context, slots, n, _BYTES[self._storage], noise=noise)
        except cuda.CudaError as error:
            logger.debug("%s was not timed: %s", what, str(error))  # the error itself keeps the memory
            return None
        seconds = dict(zip(kernels, found, strict=True))
        usual = layout_for(slots, n)
        best = min(seconds, key=seconds.__getitem__)
        chosen = best if seconds[best] < _WORTH * seconds[usual] else usual
        times = ", ".join(f"{layout} {1e6 * one:.2f} us" for layout, one in seconds.items())
        logger.debug("%s: %s of %s", what, chosen, times)
        return chosen


def _kind(noise: bool) -> str:
    return "noise" if noise else "plain"


def packed(folder: Path, name: str, cc: int) -> Cubin:
    """A variant from a folder of cubins.

    Args:
        folder: With a ``manifest.json``.
        name: Of the variant.
        cc: The GPU's compute capability times ten.

    Raises:
        KernelError: If the folder has no manifest or no such variant, or a file has changed.
        OtherGpuError: If it has no cubin for this GPU.
    """
    manifest = _manifest(folder)
    try:
        variant = manifest["variants"][name]
        cubins: dict[int, Any] = {int(built): cubin for built, cubin in variant["cubins"].items()}
        chosen = runs_on(list(cubins), cc)
        if chosen is None:
            built = ", ".join(f"sm_{one}" for one in sorted(cubins))
            raise OtherGpuError(
                f"{folder} has kernels for {built}, the GPU is sm_{cc}: build them with python -m stepfuse.kernels.aot"
                f" --arch {cc}, or pass no folder and install Triton: {pip_install('kernels')}"
            )
        file = folder / f"sm_{chosen}" / f"{name}.cubin"
        image = file.read_bytes()
        if hashlib.sha256(image).hexdigest() != cubins[chosen]["sha256"]:
            raise KernelError(f"{file} must have the checksum that the manifest has, got another: build the pack anew")
        return _cubin(image, variant, cubins[chosen]["shared_bytes"])
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise KernelError(f"{folder} must hold {name}, whole and as its manifest says: {error!r}") from error


def compiled(name: str, cc: int) -> Cubin:
    """A variant, compiled by Triton now.

    Raises:
        KernelError: If Triton is not installed or set to interpret, or there is no such variant.
    """
    try:
        import triton

        from stepfuse.kernels import aot
        from stepfuse.kernels.variants import variants
    except ModuleNotFoundError as error:
        raise KernelError(
            "without a folder of cubins (python -m stepfuse.kernels.aot) the kernels are compiled here, which needs"
            f" {error.name}: {pip_install('kernels')}"
        ) from error
    found = [variant for variant in variants() if variant.name == name]
    if not found:
        raise KernelError(f"there is no kernel {name}")
    if triton.knobs.runtime.interpret:
        raise KernelError("nothing is compiled under TRITON_INTERPRET: unset it, or pass a folder of cubins")
    [variant] = found
    kernel = aot.compile_variant(variant, cc)
    aot.require_exact(name, kernel.asm["ptx"])
    manifest = {
        "kernel": kernel.metadata.name,
        "block": variant.config.block,
        "num_warps": variant.config.num_warps,
        "grid": variant.grid,
        "arguments": aot.arguments_of(variant, kernel.asm["ptx"]),
        "divisible_by_16": variant.divisible_by_16,
    }
    return _cubin(kernel.asm["cubin"], manifest, kernel.metadata.shared)


def runs_on(architectures: list[int], cc: int) -> int | None:
    """The architecture whose cubin runs on a GPU: its own, or an older one of its major; None if there is none."""
    fits = [one for one in architectures if one == cc or (one // 10 == cc // 10 and one < min(cc, _FIRST_SPECIFIC))]
    return max(fits, default=None)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelError(f"{folder} must be a folder written by python -m stepfuse.kernels.aot: {error!r}") from error
    if version != FORMAT_VERSION:
        raise KernelError(f"{folder} must have format_version {FORMAT_VERSION}, got {version!r}")
    return dict(manifest)


def _cubin(image: bytes, variant: dict[str, Any], shared_bytes: int) -> Cubin:
    divisible = set(variant["divisible_by_16"])
    arguments = tuple((one["name"], one["type"], one["name"] in divisible) for one in variant["arguments"])
    shape = variant["block"], variant["num_warps"], shared_bytes, variant["grid"]
    return Cubin(image, variant["kernel"], arguments, *shape)
