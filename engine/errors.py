"""What can go wrong beyond a bad argument, which is a ``ValueError`` or ``TypeError``."""

from stepfuse._core import cuda


class BundleError(ValueError):
    """A bundle cannot be used; the message names file, rule and value."""


class ExportError(ValueError):
    """A model cannot be exported; the message names the part, the rule and the value, and what to do."""


class GpuError(RuntimeError):
    """A network cannot run on a GPU as asked; the message says what to do."""


#: A call of the CUDA driver failed; ``code`` is its number, ``out_of_memory`` whether that was why.
CudaError = cuda.CudaError


class DenoiserError(RuntimeError):
    """A network returned what it must not: a wrong shape or dtype, or a number that is not finite."""


class QueueFull(RuntimeError):  # noqa: N818 - as queue.Full, which it is like
    """As many requests wait as may; the message says how many."""


class DeadlineError(RuntimeError):
    """A request's deadline cannot be met; the message holds the estimate."""


class RequestTimeout(TimeoutError):  # noqa: N818
    """A request was not finished within its timeout; the message says how far it came."""


class EngineClosed(RuntimeError):  # noqa: N818
    """The engine takes no more requests, or was closed before this one was finished."""
