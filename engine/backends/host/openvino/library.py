"""OpenVINO itself: what it has to offer on this processor, and what it is asked for."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import openvino as ov

from stepfuse.backends.host.processors import held_to, processors

DEVICE = "CPU"

#: OpenVINO's names of a precision: of the hint, and of the capability of a processor that computes in it.
_NAMES = {"float32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "f16": ("f16", "FP16")}


#: Relative error of a product beyond which it is no rounding: bf16's are 0.4 %.
_MOST_ERROR = 0.05


class EmulatedPrecisionWarning(UserWarning):
    """The processor does not compute in the precision asked for: it is emulated, more slowly than float32."""


def precisions(core: ov.Core) -> list[str]:
    """Those that this processor computes in."""
    found = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return [name for name, (_, capability) in _NAMES.items() if capability in found]


def facts(core: ov.Core) -> dict[str, Any]:
    """The release and the processor, as far as what is compiled depends on them."""
    return {
        "openvino": ov.get_version(),
        "processor": core.get_property(DEVICE, "FULL_DEVICE_NAME"),
        "processors": processors(),
        "capabilities": sorted(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")),
    }


def settings(precision: str, *, threads: int, pinning: bool) -> dict[str, Any]:
    """Properties of a compiled network.

    Args:
        precision: As in ``Cpu``. OpenVINO's own default is bf16 where the processor has it, so it is always said.
        threads: 0 is a thread a core, or one for each processor that the process may use, if these are fewer.
        pinning: As in ``OpenVino``.
    """
    found = {
        "INFERENCE_PRECISION_HINT": _NAMES[precision][0],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # activations stay what they are, where weights are int8
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": pinning,
    }
    chosen = threads or held_to()
    return {**found, "INFERENCE_NUM_THREADS": chosen} if chosen else found


def require_precision(core: ov.Core, compiled: ov.CompiledModel, precision: str) -> None:
    """Checks that a network computes in what was asked for.

    Raises:
        ValueError: If OpenVINO chose another precision, as it does where the processor has none of it.
    """
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != _NAMES[precision][0]:
        own = ", ".join(precisions(core))
        raise ValueError(f"precision must be one of {own} on this processor, got {precision!r}")


def warn_of_emulation(core: ov.Core, precision: str) -> None:
    """Says if OpenVINO computes in a precision that the processor does not have.

    Warns:
        EmulatedPrecisionWarning: If so.
    """
    own = precisions(core)
    if precision not in own:
        text = f"this processor computes in {', '.join(own)}: OpenVINO emulates {precision}, more slowly than float32"
        warnings.warn(text, EmulatedPrecisionWarning, stacklevel=2)


def require_right(precision: str) -> None:
    """Checks on small products that OpenVINO computes in a reduced precision what it should on this processor.

    OpenVINO 2026.4 was reported to give wrong bf16 products on processors with AVX512-BF16 and no AMX
    (openvinotoolkit/openvino issue 38256). It takes some ten milliseconds, once a process.

    Raises:
        ValueError: If it does not.
    """
    if precision == "float32":
        return
    error = _product_error(precision)
    if not error <= _MOST_ERROR:
        raise ValueError(
            f"precision must be one in which OpenVINO {ov.get_version()} computes what it should on this processor, got"
            f" {precision!r}, whose matrix products and convolutions are {error:.0%} off: take float32"
        )


@cache
def _product_error(precision: str) -> float:
    """The largest relative error of a product with weights, one of two inputs, and a convolution."""
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    a, b, weights = (random.standard_normal(shape, dtype=np.float32) for shape in ((2, 33, 77), (2, 77, 40), (96, 77)))
    image, filters = (random.standard_normal(shape, dtype=np.float32) for shape in ((2, 16, 9, 9), (24, 16, 3, 3)))
    given = [ops.parameter(one.shape, np.float32) for one in (a, b, image)]
    none = [0, 0]
    found = [
        ops.matmul(given[0], ops.constant(weights), False, True),
        ops.matmul(given[0], given[1], False, False),
        ops.convolution(given[2], ops.constant(filters), [1, 1], none, none, [1, 1]),
    ]
    model = ov.Model([ops.result(one) for one in found], given)
    request = ov.Core().compile_model(model, DEVICE, settings(precision, threads=1, pinning=False))([a, b, image])
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (3, 3), axis=(2, 3))
    expected = [
        a.astype(np.float64) @ weights.T,
        a.astype(np.float64) @ b,
        np.einsum("nchwij,ocij->nohw", windows, filters),
    ]
    errors = [np.abs(request[i] - right).max() / np.abs(right).max() for i, right in enumerate(expected)]
    return float(np.max(errors))  # NaN where one is
