"""Which TensorRT: NVIDIA's ``tensorrt`` for data-centre GPUs, or ``tensorrt_rtx``, which also builds without a GPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from stepfuse.extras import pip_install

NAMES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Library:
    """A TensorRT that is installed.

    Attributes:
        module: Its Python module; both have the same interface.
        name: ``tensorrt`` or ``tensorrt_rtx``.
        version: Its version; a plan runs in the version that built it.
    """

    module: Any
    name: str
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT for RTX: builds ahead of time for GPUs by compute capability, and has no timings."""
        return self.name == "tensorrt_rtx"


def find_library(name: str | None = None) -> Library:
    """Imports the TensorRT of this name, or the first of ``tensorrt`` and ``tensorrt_rtx`` that is installed.

    Raises:
        ValueError: If ``name`` is neither of them.
        ImportError: If it is not installed, or does not load.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"library must be one of {', '.join(NAMES)}, got {name!r}")
    reasons = []
    for candidate in NAMES if name is None else (name,):
        try:
            module = importlib.import_module(candidate)
            return Library(module, candidate, str(module.__version__))
        except (ImportError, OSError, AttributeError) as error:
            reasons.append(f"{candidate}: {error}")
    raise ImportError(
        f"plans need TensorRT ({'; '.join(reasons)}): {pip_install('tensorrt')} for tensorrt_rtx, or NVIDIA's tensorrt,"
        " which comes from pypi.nvidia.com"
    )
