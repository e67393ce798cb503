"""The networks that are compared: a bundle's, opened in each library and precision, bare and in an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.available import installed, precisions_of
from stepfuse.backends.host.base import HostBackend
from stepfuse.backends.host.config import BACKENDS, PRECISIONS, Cpu
from stepfuse.backends.host.network import HostNetwork, open_network
from stepfuse.benchmarking.result import Configuration, Error
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.extras import pip_install
from stepfuse.samplers.noise import normal
from stepfuse.samplers.table import StepTable
from stepfuse.serving.config import Serving

#: What the others' numbers are compared with.
EXACT = Configuration("onnxruntime")

#: Predictions and images that are compared.
_PROBES, _IMAGES = 8, 4


def configurations(
    backends: Sequence[str] | None, precisions: Sequence[str] | None, threads: Sequence[int]
) -> list[Configuration]:
    """Each back end in each precision that it and the processor compute in, with each number of threads.

    Args:
        backends: Names; None is all that are installed.
        precisions: Names; None is all.
        threads: At least one number.

    Raises:
        ValueError: If there is no such back end or precision, or none of these computes in a precision.
        ImportError: If a back end is not installed.
    """
    _require_known("backends", backends or (), BACKENDS)
    _require_known("precisions", precisions or (), PRECISIONS)
    found = []
    own: dict[str, list[str]] = {}
    for backend in backends or installed():
        try:
            own[backend] = precisions_of(backend)
        except ImportError:
            if backends is not None:
                raise
            own[backend] = [EXACT.precision]  # which fails when it is opened, with the reason
        if not own[backend]:
            raise ImportError(f"backend {backend!r} is not installed: {pip_install(backend)}")
        found += [
            Configuration(backend, precision, number)
            for precision in own[backend]
            if precisions is None or precision in precisions
            for number in threads
        ]
    for precision in precisions or ():
        if not any(one.precision == precision for one in found):
            has = "; ".join(f"{backend} has {', '.join(names)}" for backend, names in own.items())
            raise ValueError(f"precisions must be some that a back end computes in here, got {precision!r}: {has}")
    return found


def _require_known(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for one in given:
        if one not in known:
            raise ValueError(f"{name} must be some of {', '.join(known)}, got {one!r}")


@dataclass
class Opened:
    """A network of a configuration, by itself and in an engine of its own memory."""

    configuration: Configuration
    network: HostNetwork
    bare: HostBackend
    engine: Engine


@contextmanager
def opened(bundle: Bundle, configuration: Configuration, max_rows: int) -> Iterator[Opened]:
    """A bundle's network for forwards of up to ``max_rows`` rows, its inputs filled.

    Raises:
        Exception: As ``Engine.load`` does.
    """
    cpu = Cpu(configuration.backend, configuration.precision, configuration.threads)
    network = open_network(bundle, cpu)
    bare = network.backend(bundle.info, max_rows, deterministic=False)
    try:
        with Engine.load(bundle, session=network, serving=Serving(max_rows=max_rows)) as engine:
            table = engine.table(guidance_scale=1.0)
            for row in range(max_rows):
                fill(bare, bundle.info, table, row, row)
            yield Opened(configuration, network, bare, engine)
    finally:
        bare.close()


def fill(bare: HostBackend, info: ModelInfo, table: StepTable, row: int, number: int) -> None:
    """Inputs of one row: noise of a seed, a timestep of the table, a class, or without classes the null value."""
    memory = bare.buffers
    memory.sample[row] = normal(number, info.shape)
    t = table["t"][(number * len(table) // _PROBES) % len(table)]
    memory.timestep[row] = np.rint(t) if info.timestep_dtype == "int64" else t
    for name, spec in info.cond.items():
        memory.cond[name][row] = spec.value(name, number % len(spec.names) if spec.names else None)


def predictions(one: Opened, info: ModelInfo) -> npt.NDArray[np.float32]:
    """What the bare network makes of a few inputs, one at a time: (n, *shape)."""
    table = one.engine.table(guidance_scale=1.0)
    found = []
    for number in range(_PROBES):
        fill(one.bare, info, table, 0, number)
        one.bare.forward(1)
        found.append(one.bare.buffers.prediction[0].copy())
    return np.stack(found)


def images(one: Opened, info: ModelInfo, steps: int | None) -> npt.NDArray[np.float32]:
    """A few images with the model's defaults, of ``steps`` steps if that is not None."""
    drawn: dict[str, Any] = {}
    if len(info.cond) == 1:
        [spec] = info.cond.values()
        drawn = {"cond": [i % len(spec.names) for i in range(_IMAGES)]} if spec.names else {}
    return one.engine.sample(_IMAGES, steps=steps, seed=0, **drawn)


def errors_of(others: Sequence[Opened], exact: Opened, info: ModelInfo, steps: int | None) -> list[Error]:
    """How far others are from ``exact``, in predictions and images."""
    wanted = predictions(exact, info), images(exact, info, steps)
    found = []
    for one in others:
        own = predictions(one, info), images(one, info, steps)
        found.append(Error(one.configuration, *(relative(a, b) for a, b in zip(own, wanted, strict=True))))
    return found


def relative(found: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    """Root mean square of a difference over that of what was wanted."""
    exact = np.asarray(wanted, dtype=np.float64)
    size = max(float(np.mean(exact**2)), np.finfo(np.float64).tiny)
    return float(np.sqrt(np.mean((np.asarray(found) - exact) ** 2) / size))
