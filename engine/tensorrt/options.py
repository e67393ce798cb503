"""Options of the build of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stepfuse.errors import PlanError
from stepfuse.tensorrt.library import Library
from stepfuse.tensorrt.target import Target

HARDWARE = ("ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class Options:
    """Options of a build, all part of the plan's key. Types are not among them: a plan has those of its ONNX file.

    Attributes:
        refittable: Whether ``refit_engine`` can replace the plan's weights, for example by those with a LoRA.
        version_compatible: Whether later versions of ``tensorrt`` may run the plan; kernels are fewer then.
        hardware: ``ampere_plus`` or ``same_compute_capability``: ``tensorrt``'s plan also runs on such other GPUs.
        workspace: Most bytes of scratch memory that a layer may take; None: TensorRT's own limit.
        level: Effort of the builder, 0 to 5; None: TensorRT's own, 3.
        tf32: Whether float32 products may be rounded to TF32's 10 bits, as TensorRT does by default.
    """

    refittable: bool = False
    version_compatible: bool = False
    hardware: str | None = None
    workspace: int | None = None
    level: int | None = None
    tf32: bool = True

    def __post_init__(self) -> None:
        if self.hardware not in (None, *HARDWARE):
            raise ValueError(f"hardware must be one of {', '.join(HARDWARE)} or None, got {self.hardware!r}")
        if self.workspace is not None and self.workspace < 1:
            raise ValueError(f"workspace must be at least 1 byte, got {self.workspace}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise ValueError(f"level must be between 0 and 5, got {self.level}")

    def configure(self, config: Any, library: Library, target: Target) -> None:
        """Sets an ``IBuilderConfig`` to these options and a target.

        Raises:
            PlanError: If this TensorRT does not support an option or the target.
        """
        trt = library.module
        for flag in self._flags(library):
            config.set_flag(getattr(trt.BuilderFlag, flag))
        if not self.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.hardware is not None:
            if library.is_rtx:
                raise PlanError(
                    f"hardware must be None for tensorrt_rtx, got {self.hardware!r}: name the compute capabilities"
                )
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, self.hardware.upper())
        if self.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace)
        if self.level is not None:
            config.builder_optimization_level = self.level
        if library.is_rtx:
            _set_capabilities(config, trt, target)
        elif target.ahead:
            raise PlanError(
                f"tensorrt builds on the GPU that the plan is for, got {target}: build there, or with tensorrt_rtx"
            )

    def _flags(self, library: Library) -> Iterator[str]:
        if self.refittable:
            yield "REFIT"
        if self.version_compatible:
            if library.is_rtx:
                raise PlanError("version_compatible must be False: tensorrt_rtx comes without the lean runtime")
            yield "VERSION_COMPATIBLE"


def _set_capabilities(config: Any, trt: Any, target: Target) -> None:
    known = {f"{name[2:-1]}.{name[-1]}": name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    if unknown := [one for one in target.compute_capabilities if target.ahead and one not in known]:
        raise PlanError(
            f"this tensorrt_rtx builds ahead of time for compute capabilities {', '.join(known)}, got {unknown[0]}"
        )
    names = [known[one] for one in target.compute_capabilities] if target.ahead else ["CURRENT"]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise PlanError(f"tensorrt_rtx does not take compute capability {name}")
