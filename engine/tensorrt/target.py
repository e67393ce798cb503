"""The GPU that a plan is for: the one of this machine, or others by their compute capability."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

from stepfuse.display import listed
from stepfuse.errors import PlanError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_* of cuda.h
_NAME_BYTES = 256
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE of nvml.h


@dataclass(frozen=True)
class Target:
    """The GPU that a plan runs on, or the compute capabilities that it is built for.

    Attributes:
        compute_capabilities: Such as ("8.9", "12.0"), in ascending order.
        gpu: The GPU's name where the plan is built on it; empty for a plan built ahead of time.
        driver: Version of its driver then; empty for a plan built ahead of time.
    """

    compute_capabilities: tuple[str, ...]
    gpu: str = ""
    driver: str = ""

    def __post_init__(self) -> None:
        given = tuple(self.compute_capabilities)
        if not given or not all(isinstance(one, str) and re.fullmatch(r"\d+\.\d", one) for one in given):
            shown = listed(given) or "none"
            raise ValueError(f"compute_capabilities must be texts such as '8.9', at least one, got {shown}")
        ordered = sorted(set(given), key=lambda one: tuple(map(int, one.split("."))))
        object.__setattr__(self, "compute_capabilities", tuple(ordered))
        if bool(self.gpu) != bool(self.driver) or (self.gpu and len(ordered) != 1):
            raise ValueError(
                f"a GPU has a name, a driver and one compute capability, got {self.gpu!r}, {self.driver!r}, {ordered}"
            )

    @property
    def ahead(self) -> bool:
        """Whether the plan is built ahead of time, without the GPU that it is for."""
        return not self.gpu

    def covers(self, other: Target) -> bool:
        """Whether a plan for this target runs on ``other``: the same GPU, or one it was built for ahead of time."""
        return self == other or (self.ahead and {*other.compute_capabilities} <= {*self.compute_capabilities})

    def __str__(self) -> str:
        capabilities = ", ".join(self.compute_capabilities)
        if self.ahead:
            return f"compute capability {capabilities}, ahead of time"
        return f"{self.gpu} (compute capability {capabilities}) with driver {self.driver}"


def this_gpu() -> Target:
    """The GPU that TensorRT would build on, from the CUDA driver; needs no library but the driver's.

    That is the GPU of the calling thread's context, if it has one, else the first of ``CUDA_VISIBLE_DEVICES``.

    Raises:
        PlanError: If there is no driver or no GPU, or a call of the driver fails.
    """
    try:
        cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise PlanError(
            f"no GPU is found here ({error}): name the compute capabilities that the plan is for, such as '8.9'"
        ) from error
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check("cuInit", cuda.cuInit(0))
    if cuda.cuCtxGetDevice(ctypes.byref(handle)) != 0:
        _check("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(handle), 0))
    _check("cuDeviceGetName", cuda.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), handle))
    for number, attribute in ((major, _MAJOR), (minor, _MINOR)):
        _check("cuDeviceGetAttribute", cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle))
    return Target((f"{major.value}.{minor.value}",), gpu=name.value.decode(), driver=_driver_version(nvml))


def target_of(gpu: str, compute_capability: int) -> Target:
    """The target of a GPU whose name and compute capability are known.

    Args:
        gpu: Its name.
        compute_capability: Its compute capability, times ten.

    Raises:
        PlanError: If the driver's version is not to be had.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise PlanError(f"the driver's version cannot be asked: {error}") from error
    capability = f"{compute_capability // 10}.{compute_capability % 10}"
    return Target((capability,), gpu=gpu, driver=_driver_version(nvml))


def _driver_version(nvml: ctypes.CDLL) -> str:
    version = ctypes.create_string_buffer(_VERSION_BYTES)
    _check("nvmlInit_v2", nvml.nvmlInit_v2())
    try:
        _check("nvmlSystemGetDriverVersion", nvml.nvmlSystemGetDriverVersion(version, ctypes.c_uint(_VERSION_BYTES)))
    finally:
        nvml.nvmlShutdown()
    return version.value.decode()


def _check(call: str, status: int) -> None:
    if status != 0:
        raise PlanError(f"the GPU cannot be asked: {call} returned {status}")
