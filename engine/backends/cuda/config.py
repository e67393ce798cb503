"""Which device a network runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepfuse.arguments import plain, whole_number

#: How a bundle's network runs on a GPU.
BACKENDS = ("onnxruntime", "onnxruntime-tensorrt", "tensorrt")


@dataclass(frozen=True)
class Cuda:
    """An NVIDIA GPU, and how a bundle's network runs on it.

    Attributes:
        index: Of the GPU, from 0.
        backend: ``onnxruntime`` (its CUDA provider), ``onnxruntime-tensorrt`` (its TensorRT provider), or ``tensorrt``
            (a plan that ``stepfuse plan`` has put into the bundle). None is the first; a torch module has none.
        cubins: Folder of the step's kernels, built ahead of time by ``python -m stepfuse.kernels.aot``; None compiles
            them with Triton.
        buckets: Row counts whose forwards are captured as CUDA graphs; None: 1, 2, 3, 4, 6, 8, 12, ... to ``max_rows``.
        memory_bytes: Most device memory that captured forwards may work in; None: what is free. Where it does not
            suffice the largest forwards are given up, and a warning says so.
        eager: Whether forwards run kernel by kernel, each launched by the host: None where they cannot be captured,
            with a warning that says why; False never, True always.
        options: Of ONNX Runtime's execution provider, by the names that it has for them.

    Raises:
        ValueError: If ``index`` is negative, or ``backend`` is not one of ``BACKENDS``.

    Examples:
        >>> device = sf.Cuda(backend="tensorrt", memory_bytes=8 << 30)
        >>> device.index, device.backend
        (0, 'tensorrt')
    """

    index: int = 0
    backend: str | None = None
    cubins: str | os.PathLike[str] | None = None
    buckets: Sequence[int] | None = None
    memory_bytes: int | None = None
    eager: bool | None = None
    options: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", whole_number("index", self.index))
        if self.memory_bytes is not None:
            object.__setattr__(self, "memory_bytes", whole_number("memory_bytes", self.memory_bytes))
        if self.buckets is not None:
            object.__setattr__(self, "buckets", plain(self.buckets))
        if self.index < 0:
            raise ValueError(f"index must be at least 0, got {self.index}")
        if self.backend is not None and self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")


def device_of(device: str | Cuda) -> Cuda | None:
    """A device by its name: ``cpu`` (None), ``cuda`` or ``cuda:1``.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(device, Cuda):
        return device
    if device == "cpu":
        return None
    kind, _, index = str(device).partition(":")
    if kind != "cuda" or not (index or device == "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:N' or stepfuse.Cuda(...), got {device!r}")
    return Cuda(int(index or 0))


def gpu_of(device: int | str | Cuda, **options: Any) -> Cuda:
    """A GPU by its index or name, with the attributes of ``Cuda`` that keywords give.

    Args:
        device: An index, ``cuda``, ``cuda:1``, or a ``Cuda``.
        **options: Attributes of ``Cuda`` by name.

    Raises:
        ValueError: If ``device`` is ``cpu`` or no device, or is a ``Cuda`` and options are given too.
    """
    if isinstance(device, Cuda):
        if options:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ValueError(
                f"device=Cuda(...) must hold all options of the GPU, got {given} beside it: move them there"
            )
        return device
    gpu = device_of(device) if isinstance(device, str) else Cuda(device)
    if gpu is None:
        raise ValueError(f"device must be a GPU, got {device!r}: stepfuse.Engine draws on the CPU")
    return replace(gpu, **options)
