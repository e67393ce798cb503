"""What can go wrong beyond a bad argument, which is a ``ValueError`` or ``TypeError``."""

from stepfuse._core import DeadlineError, EngineClosed, QueueFull, StepfuseError, cuda

__all__ = [
    "BundleError",
    "CaptureError",
    "CudaError",
    "DeadlineError",
    "DenoiserError",
    "EngineClosed",
    "ExportError",
    "GpuError",
    "KernelError",
    "PlanError",
    "ProviderError",
    "QueueFull",
    "RequestTimeout",
    "StepfuseError",
]


class BundleError(StepfuseError, ValueError):
    """A bundle cannot be used; the message names file, rule and value."""


class ExportError(StepfuseError, ValueError):
    """A model cannot be exported; the message names the part, the rule and the value, and what to do."""


class DenoiserError(StepfuseError, RuntimeError):
    """A network returned what it must not: a wrong shape or dtype, or a number that is not finite."""


class RequestTimeout(StepfuseError, TimeoutError):  # noqa: N818
    """A request was not finished within its timeout; the message says how far it came."""


class GpuError(StepfuseError, RuntimeError):
    """A network cannot run on a GPU as asked; the message says what to do."""


class CaptureError(GpuError):
    """A network's forward cannot be captured as a CUDA graph."""


class KernelError(GpuError):
    """There is no compiled kernel of the step for this GPU or network."""


class ProviderError(GpuError):
    """An execution provider of ONNX Runtime is not there; the message says what to install."""


class PlanError(ExportError):
    """A TensorRT plan cannot be built, kept or used; the message names the rule and the value, and what to do."""


#: A call of the CUDA driver failed; ``code`` is its number, ``out_of_memory`` whether that was why.
CudaError = cuda.CudaError
