"""A bundle's plan on the GPU that it is for."""

from __future__ import annotations

import hashlib
from typing import Any

from stepfuse.bundle import Bundle
from stepfuse.errors import ExportError
from stepfuse.folder import CACHE
from stepfuse.plans.library import Library, find_library
from stepfuse.plans.logger import logger_for
from stepfuse.plans.plan import Plan


def source_of(bundle: Bundle, network: str) -> str:
    """Digest of what the manifest says of a network, and of every file that may hold its weights."""
    others = (".json", ".onnx")
    parts = [
        f"{name} {about['sha256']}"
        for name, about in sorted(bundle.files.items())
        if name == network or not (name.endswith(others) or name.startswith(CACHE))
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def deserialise(plan: Plan, *, library: Library | None = None) -> Any:
    """An ``ICudaEngine`` of a plan that ``plan_for`` or ``load_plan`` returned; a stripped one gets its weights next.

    Raises:
        ExportError: If it is another TensorRT's, or TensorRT refuses it.
    """
    library = library or find_library(plan.key.library)
    if (library.name, library.version) != (plan.key.library, plan.key.version):
        raise ExportError(
            f"the plan must be of {library.name} {library.version}, got {plan.key.library} {plan.key.version}"
        )
    logger = logger_for(library.module)
    engine = library.module.Runtime(logger).deserialize_cuda_engine(plan.data)
    if engine is None:
        raise ExportError(f"TensorRT does not take the plan for {plan.key.target}: {'; '.join(logger.errors)}")
    return engine
