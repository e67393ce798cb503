"""``stepfuse.bench``: what a model costs on this machine, in every library and precision that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np

from stepfuse.arguments import hinted, number, plain, whole_number
from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.base import checked_threads
from stepfuse.benchmarking.cold_start import measure_starts
from stepfuse.benchmarking.networks import EXACT, Opened, configurations, errors_of, opened
from stepfuse.benchmarking.open_loop import measure_loads
from stepfuse.benchmarking.result import BenchResult, Case, Configuration, Error, Start
from stepfuse.benchmarking.timing import LEAST_ROUNDS, in_turn
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.errors import StepfuseError
from stepfuse.machine import machine, versions
from stepfuse.requests.resolution import Compiler
from stepfuse.samplers.names import steps_asked
from stepfuse.serving.config import MOST
from stepfuse.serving.progress import ProgressBar

_PACKAGES = ("stepfuse", "numpy", "onnxruntime", "openvino")

#: Of rows and steps where the caller does not say, and of ``quick``.
_ROWS, _QUICK_ROWS = (1, 4, 16), (1, 4)
_STEPS, _QUICK_STEPS = 10, 4
_SECONDS, _QUICK_SECONDS = 20.0, 3.0

#: What a network that cannot be run raises.
_FAILURES = (StepfuseError, ValueError, ImportError, MemoryError)


@hinted
def bench(
    model: str | os.PathLike[str] | Bundle,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    threads: Sequence[int] = (0,),
    rows: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    rates: Sequence[float] = (),
    seconds: float | None = None,
    cold_start: bool | None = None,
    quick: bool = False,
    device: str | Cuda = "cpu",
    progress: bool = False,
) -> BenchResult:
    """Measures what a model costs on this machine: in turn, every round in another order, all times kept.

    Of each back end in each precision that it and the processor compute in: bare forwards, runs of the engine without
    guidance (a guided image takes two rows), how far its numbers are from float32's, and fresh processes. Networks of
    all of these are in memory together: name fewer ``backends`` for a network that takes much of it. Of a pipeline that
    is the denoiser.

    Args:
        model: An embedded model's name, a bundle folder, or a bundle.
        backends: ``onnxruntime``, ``openvino``; None is those that are installed.
        precisions: ``float32``, ``bf16``, ``f16``; None is all that a back end and the processor compute in.
        threads: Of a forward, as in ``Engine.load``.
        rows: Images drawn together; None is 1, 4 and 16, or 1 and 4 with ``quick``.
        steps: Of a run; None is 10, or 4 with ``quick``, or the model's own default if that is less.
        rates: Requests a second, of one image each, that arrive at random; none are measured if empty.
        seconds: How long rounds of forwards and runs take, and each of ``rates``; None is 20, or 3 with ``quick``. Five
            rounds are run however long they take.
        cold_start: Whether fresh processes are timed, five of each configuration; None is not with ``quick``.
        quick: Small sizes: to see it work, not to quote.
        device: ``cpu``, the only one for now.
        progress: Whether bars are shown, on standard error.

    Raises:
        ValueError: If a number is out of bounds, no back end computes in one of ``precisions``, or ``device`` is not
            the CPU.
        TypeError: If a number is of the wrong kind.
        ImportError: If a back end is asked for and not installed.
        BundleError: If the bundle cannot be used, or a back end that is named cannot run it. One that is not named and
            cannot is among ``failures``.

    Examples:
        >>> result = sf.bench("fashion", quick=True)  # doctest: +SKIP
        >>> result.save("bench.json")  # doctest: +SKIP
    """
    if device_of(device) is not None:
        raise ValueError(
            f"device must be 'cpu', got {device!r}: a GPU is not measured yet, make gpu-check has benchmarks of its own"
        )
    rows = _whole_numbers("rows", (_QUICK_ROWS if quick else _ROWS) if rows is None else rows, MOST["max_rows"])
    threads = [checked_threads(one) for one in _some("threads", threads)]
    rates = [_positive("rates", one) for one in plain(rates)]
    budget = _positive("seconds", (_QUICK_SECONDS if quick else _SECONDS) if seconds is None else seconds)
    asked = configurations(backends, precisions, threads)
    bundle = model if isinstance(model, Bundle) else Bundle.load(model)
    own = Compiler(bundle.info).compile(guidance_scale=1.0)
    most = bundle.info.schedule.num_train_timesteps
    few = min(steps_asked(own.options, len(own)), _QUICK_STEPS if quick else _STEPS)
    steps = _whole_numbers("steps", [few] if steps is None else steps, most)
    facts = _facts(bundle, own.sampler, quick, budget)
    failures: dict[Configuration, str] = {}
    with ExitStack() as stack:
        networks = []
        for one in asked:
            try:
                networks.append(stack.enter_context(opened(bundle, one, max(rows))))
            except _FAILURES as error:
                if backends is not None:
                    raise
                failures[one] = str(error)
        if not networks:
            raise StepfuseError(f"no back end runs {bundle.path}: {'; '.join(failures.values())}")
        cases = _time(networks, rows, steps, budget, progress)
        names = [one.configuration for one in networks]
        costs = {one.configuration: one.engine.calibrate() for one in networks}  # last: it changes how an engine plans
        errors = _errors(networks, bundle, steps[0] if quick else None)
        loads = measure_loads(bundle, networks, costs, rates, steps[0], budget, progress=progress)
    starts: list[Start] = []
    if cold_start or (cold_start is None and not quick):
        starts, failed = measure_starts(bundle, names, progress=progress)
        failures |= failed
    files = {name: str(entry["sha256"]) for name, entry in bundle.files.items() if name.startswith(DENOISER)}
    return BenchResult(bundle.name, files, cases, costs, errors, starts, loads, failures, facts)


def _facts(bundle: Bundle, sampler: str, quick: bool, seconds: float) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_before": os.getloadavg()[0],
        "versions": versions(_PACKAGES),
        "shape": list(bundle.info.shape),
        "sampler": sampler,
        "quick": quick,
        "seconds": seconds,
    }


def _time(
    networks: Sequence[Opened], rows: Sequence[int], steps: Sequence[int], seconds: float, progress: bool
) -> list[Case]:
    """Forwards and runs of all networks, in turn."""
    forwards = {one: len(networks[0].engine.table(**_run(one))) for one in steps}
    forwards[0] = forwards[steps[0]]  # as many in a row as in a run, so that both have the caches alike
    calls: dict[tuple[Configuration, int, int], Callable[[], object]] = {}
    for one in networks:
        for count in rows:
            calls[one.configuration, count, 0] = partial(_repeat, one.bare.forward, count, forwards[0])
            for of_run in steps:
                calls[one.configuration, count, of_run] = partial(one.engine.sample, count, seed=0, **_run(of_run))
    bar = ProgressBar(LEAST_ROUNDS, "forwards and runs in turn", unit="rounds") if progress else None
    try:
        if bar is not None:
            bar.start()
        times = in_turn(calls, seconds=seconds, on_round=None if bar is None else bar.update)
    finally:
        if bar is not None:
            bar.stop()
    return [Case(name, count, of_run, forwards[of_run], found) for (name, count, of_run), found in times.items()]


def _run(steps: int) -> dict[str, Any]:
    return {"steps": steps, "guidance_scale": 1.0}


def _repeat(forward: Callable[[int], None], rows: int, times: int) -> None:
    for _ in range(times):
        forward(rows)


def _errors(networks: Sequence[Opened], bundle: Bundle, steps: int | None) -> list[Error]:
    """Of all but ONNX Runtime in float32, whatever its threads."""
    others = [one for one in networks if (one.configuration.backend, one.configuration.precision) != _EXACT]
    if not others:
        return []
    for one in networks:
        if one not in others:
            return errors_of(others, one, bundle.info, steps)
    with opened(bundle, EXACT, 1) as exact:
        return errors_of(others, exact, bundle.info, steps)


_EXACT = (EXACT.backend, EXACT.precision)


def _whole_numbers(name: str, given: Sequence[int], most: int) -> list[int]:
    found = [whole_number(name, one) for one in _some(name, given)]
    for one in found:
        if not 1 <= one <= most:
            raise ValueError(f"{name} must be between 1 and {most}, got {one}")
    return found


def _some(name: str, given: Sequence[int]) -> list[Any]:
    found = [plain(given)] if np.ndim(given) == 0 else list(plain(given))
    if not found:
        raise ValueError(f"{name} must be at least one number, got {given!r}")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must be different numbers, got {given!r}")
    return found


def _positive(name: str, given: float) -> float:
    found = number(name, given)
    if not 0 < found < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {given}")
    return float(found)
