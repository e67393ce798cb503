"""Which library runs a network on the CPU, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from stepfuse.arguments import plain, whole_number
from stepfuse.backends.host.base import checked_threads

#: How a bundle's network runs on the CPU.
BACKENDS = ("onnxruntime", "openvino")

#: Has the fastest of them chosen.
AUTO = "auto"

#: What it is computed in.
PRECISIONS = ("float32", "bf16", "f16")


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on the CPU, and how a bundle's network runs there.

    Attributes:
        pinning: Whether each thread is held to a processor of its own. On a machine that does nothing else that can be
            faster; elsewhere a thread then waits where another program computes, and two engines take turns on the same
            processors.
        buckets: Row counts that the network is compiled for, and that forwards are put together from; 1 is always among
            them. None: 1, 2, 4, 8 and 16, the largest left out of networks whose weights would then take more than
            1 GiB. Fewer can be faster in bf16: ``benchmarks/backends.py`` measures forwards of 1, 4 and 16 rows.
        cache: Folder where compiled networks are kept, up to 4 GiB of them, for the next process to begin sooner; only
            those who may change what this process computes should be able to write there. None is the user's own,
            ``~/.cache/stepfuse/openvino``.

    Raises:
        ValueError: If a bucket is below 1.
        TypeError: If it is not a whole number.

    Examples:
        >>> backend = sf.OpenVino(buckets=[1, 4], pinning=True)
        >>> backend.buckets
        (1, 4)
    """

    pinning: bool = False
    buckets: Sequence[int] | None = None
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.buckets is None:
            return
        buckets = tuple(sorted({1, *(whole_number("buckets", one) for one in plain(self.buckets))}))
        if buckets[0] < 1:
            raise ValueError(f"buckets must be at least 1, got {buckets[0]}")
        object.__setattr__(self, "buckets", buckets)


@dataclass(frozen=True)
class Cpu:
    """What ``Engine.load`` says of a network on the CPU, checked; ``backend`` is a name, ``auto`` or an ``OpenVino``.

    Raises:
        ValueError: If a value is out of bounds, or has no effect on this back end.
        TypeError: If ``threads`` is not a whole number.
    """

    backend: str | OpenVino = "onnxruntime"
    precision: str = "float32"
    threads: int = 0
    spinning: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", checked_threads(self.threads))
        if not isinstance(self.backend, OpenVino) and self.backend not in (AUTO, *BACKENDS):
            named = ", ".join(map(repr, (AUTO, *BACKENDS)))
            raise ValueError(f"backend must be one of {named} or stepfuse.OpenVino(...), got {self.backend!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.backend == "onnxruntime" and self.precision != "float32":
            raise ValueError(
                f"precision must be float32 for ONNX Runtime, got {self.precision!r}: backend='openvino' takes it"
            )
        if self.backend != "onnxruntime" and self.spinning is not None:
            raise ValueError(
                f"spinning must be left out for OpenVINO, whose threads have their own way, got {self.spinning}"
            )

    @property
    def openvino(self) -> OpenVino | None:
        """How OpenVINO runs it; None where ONNX Runtime does, or that is still to be chosen."""
        if isinstance(self.backend, OpenVino):
            return self.backend
        return OpenVino() if self.backend == "openvino" else None
