"""New weights for a plan without building it again. Needs the GPU that the plan is for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepfuse.errors import PlanError
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.logger import logger_for


def refit_engine(
    engine: Any,
    *,
    onnx: str | os.PathLike[str] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    library: Library | None = None,
) -> None:
    """Replaces weights of an ``ICudaEngine`` in place; its execution contexts use the new ones from then on.

    Args:
        engine: Of ``deserialise``, from a plan that was built with ``Options(refittable=True)``.
        onnx: A file whose weights are all taken: the plan's own takes a LoRA out again.
        weights: Weights by the name of their ONNX initializer, as ``lora_weights`` returns them; where ``onnx`` has
            them, too, these are taken.
        library: The TensorRT that made the engine; None: the first that is installed.

    Raises:
        PlanError: If a weight is unknown, of another size or type, or missing. The engine must not be used afterwards.
    """
    library = library or find_library()
    trt = library.module
    logger = logger_for(trt)
    refitter = trt.Refitter(engine, logger)
    if onnx is not None:
        parser = trt.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(os.fspath(onnx)):
            reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)] or logger.errors
            raise PlanError(f"{onnx}: its weights do not fit the plan: {'; '.join(reasons)}")
    given = {name: np.ascontiguousarray(value) for name, value in (weights or {}).items()}
    if unknown := sorted(set(given) - set(refitter.get_all_weights())):
        raise PlanError(f"weights: the plan cannot be refitted with {', '.join(unknown)}")
    for name, value in given.items():
        if not refitter.set_named_weights(name, trt.Weights(value)):
            raise PlanError(
                f"weights: {name} of shape {value.shape}, {value.dtype} does not fit: {'; '.join(logger.errors)}"
            )
    if missing := refitter.get_missing_weights():
        raise PlanError(f"weights: {', '.join(sorted(missing))} must be given too, or all by the ONNX file")
    if not refitter.refit_cuda_engine():
        raise PlanError(f"the plan could not be refitted: {'; '.join(logger.errors)}")
