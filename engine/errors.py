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
    "LoraError",
    "PlanError",
    "ProviderError",
    "QueueFull",
    "RequestTimeout",
    "StepfuseError",
]


class BundleError(StepfuseError, ValueError):
    """A bundle cannot be used; the message names file, rule and value.

    Examples:
        >>> try:
        ...     sf.Bundle.load("fashon")
        ... except sf.BundleError as error:
        ...     print(str(error)[-24:])
         (did you mean fashion?)
    """


class ExportError(StepfuseError, ValueError):
    """A model cannot be exported; the message names the part, the rule and the value, and what to do.

    Examples:
        >>> try:
        ...     sf.export.from_diffusers("no-folder", "out")
        ... except sf.ExportError as error:
        ...     print(error)
        no-folder must be the folder of a diffusers pipeline: there is none
    """


class DenoiserError(StepfuseError, RuntimeError):
    """A network returned what it must not: a wrong shape or dtype, or a number that is not finite.

    Examples:
        >>> schedule = sf.NoiseSchedule.linear()
        >>> engine = sf.Engine.from_callable(lambda x, t, cond: x[:, :1], shape=(2,), schedule=schedule)
        >>> try:
        ...     engine.sample(1, steps=5)
        ... except sf.DenoiserError as error:
        ...     print(error)
        the denoiser must return shape (1, 2), got (1, 1)
    """


class RequestTimeout(StepfuseError, TimeoutError):  # noqa: N818
    """A request was not finished within its timeout; the message says how far it came.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     future = engine.submit(sf.Request(steps=1000, timeout=0.01))
        ...     isinstance(future.exception(), sf.RequestTimeout)
        True
    """


class GpuError(StepfuseError, RuntimeError):
    """A network cannot run on a GPU as asked; the message says what to do.

    Examples:
        >>> try:
        ...     engine = sf.Engine.load("fashion", device="cuda")
        ... except sf.GpuError:  # here: no GPU, or no library that runs on one
        ...     engine = sf.Engine.load("fashion")
        >>> engine.info.shape
        (1, 28, 28)
    """


class CaptureError(GpuError):
    """A network's forward cannot be captured as a CUDA graph.

    Examples:
        >>> issubclass(sf.CaptureError, sf.GpuError)
        True
    """


class KernelError(GpuError):
    """There is no compiled kernel of the step for this GPU or network.

    Examples:
        >>> issubclass(sf.KernelError, sf.GpuError)
        True
    """


class ProviderError(GpuError):
    """An execution provider of ONNX Runtime is not there; the message says what to install.

    Examples:
        >>> try:
        ...     sf.Engine.load("fashion", device="cuda")
        ... except sf.ProviderError as error:
        ...     print(str(error).partition(",")[0])
        ONNX Runtime must have CUDAExecutionProvider
    """


class LoraError(ExportError):
    """A LoRA cannot be read, or does not fit a model; the message names the file, the rule and the value.

    Examples:
        >>> issubclass(sf.LoraError, sf.ExportError)
        True
    """


class PlanError(ExportError):
    """A TensorRT plan cannot be built, kept or used; the message names the rule and the value, and what to do.

    Examples:
        >>> issubclass(sf.PlanError, sf.ExportError)
        True
    """


#: A call of the CUDA driver failed; ``code`` is its number, ``out_of_memory`` whether that was why.
CudaError = cuda.CudaError
