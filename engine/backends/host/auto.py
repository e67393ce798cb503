"""``backend="auto"``: the library that runs a network fastest on this machine, measured once and kept."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepfuse.backends.host.available import installed, precisions_of
from stepfuse.backends.host.config import Cpu
from stepfuse.backends.host.network import open_network
from stepfuse.backends.host.processors import processors
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.display import MESSAGE, printable
from stepfuse.errors import BundleError, StepfuseError
from stepfuse.extras import pip_install
from stepfuse.files.cache import FileCache
from stepfuse.files.strict_json import parse_json
from stepfuse.machine import machine, versions

logger = logging.getLogger("stepfuse")

#: Row counts whose forwards decide, as far as an engine has them.
ROWS = (1, 4, 16)

#: Seconds of measuring after which a network is given no more row counts, and its repeats of one.
_SECONDS, _REPEATS = 2.0, 5

_PACKAGES = ("stepfuse", "onnxruntime", "onnxruntime-gpu", "openvino")
_MOST_BYTES = 1 << 20

#: What a network that a back end cannot run raises.
_FAILURES = (StepfuseError, ValueError, ImportError, MemoryError)

#: Least seconds of a forward, by its rows.
Times = Mapping[int, float]


def choose(cpu: Cpu, bundle: Bundle, info: ModelInfo, max_rows: int, *, deterministic: bool) -> Cpu:
    """``cpu`` with a back end in the place of ``auto``.

    Among the installed back ends that compute in ``cpu.precision`` on this processor that is the one whose forwards of
    1, 4 and 16 rows have the least geometric mean. They are measured one after the other, so that one network at a time
    is in memory, and the least of several times counts. What was chosen is kept for the next process, under a digest of
    the network's files, the settings, the machine and the libraries' versions. The log says what was chosen, from which
    times, and which back end failed.

    Args:
        cpu: What the caller asks for.
        bundle: The model.
        info: What its network is; the shape may be another than the bundle's.
        max_rows: Most rows of one forward.
        deterministic: Whether forwards are padded, as ``Engine.load`` says.

    Raises:
        ImportError: If no installed back end computes in this precision, and OpenVINO is missing.
        ValueError: If the processor does not compute in it.
        BundleError: If no back end runs the network.
    """
    names = _candidates(cpu.precision)
    if len(names) == 1:
        logger.info("backend %s: the only one that is installed and computes in %s", names[0], cpu.precision)
        return replace(cpu, backend=names[0])
    rows = sorted({min(one, max_rows) for one in ROWS})
    cache = choice_cache()
    file = cache.file(_facts(cpu, bundle, info, names, rows, max_rows if deterministic else 0))
    found, how = _kept(cache, file, names), "measured before"
    if found is None:
        bundle.networks[DENOISER].require_unchanged()  # what is found is kept under the files' checksums
        found, how = _measure(cpu, bundle, info, names, rows, max_rows, deterministic), "measured now"
        cache.write(file, json.dumps(found).encode())
    for name, reason in found["failed"].items():
        logger.warning("backend %s cannot run %s: %s", name, bundle.path, printable(reason, MESSAGE))
    times = {name: {int(count): float(one) for count, one in of.items()} for name, of in found["seconds"].items()}
    if not times:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found["failed"].items())
        raise BundleError(f"{bundle.path}: no back end runs its network: {reasons}")
    chosen = fastest(times)
    shown = "; ".join(f"{name} {_in_words(of)}" for name, of in times.items())
    logger.info("backend %s for %s, the fastest in %s, %s: %s", chosen, bundle.path, cpu.precision, how, shown)
    return replace(cpu, backend=chosen)


def fastest(times: Mapping[str, Times]) -> str:
    """The name with the least geometric mean over the row counts that all were measured at; the first of equal ones."""
    common = set.intersection(*(set(of) for of in times.values()))
    return min(times, key=lambda name: sum(math.log(times[name][count]) for count in common))


def choice_cache() -> FileCache:
    """Where choices are kept: the user's own folder."""
    folder = Path.home() / ".cache/stepfuse/backends"
    return FileCache(folder, ".json", noun="a choice of back end", verb="measured", most_bytes=_MOST_BYTES)


def _candidates(precision: str) -> list[str]:
    if precision == Cpu.precision:  # what all compute in: nothing is imported to ask
        return installed()
    own = {name: precisions_of(name) for name in installed()}
    found = [name for name, names in own.items() if precision in names]
    if found:
        return found
    if "openvino" not in own:
        raise ImportError(f"precision={precision!r} needs OpenVINO: {pip_install('openvino')}")
    has = "; ".join(f"{name} has {', '.join(names)}" for name, names in own.items())
    raise ValueError(f"precision must be one that a back end computes in on this processor, got {precision!r}: {has}")


def _facts(
    cpu: Cpu, bundle: Bundle, info: ModelInfo, names: Sequence[str], rows: Sequence[int], padded_to: int
) -> dict[str, Any]:
    """All that a choice depends on."""
    return {
        "files": {name: bundle.files[name]["sha256"] for name in (DENOISER, *bundle.networks[DENOISER].data)},
        "shape": list(info.shape),
        "settings": {"precision": cpu.precision, "threads": cpu.threads, "padded_to": padded_to},
        "backends": list(names),
        "rows": list(rows),
        "machine": {**machine(), "processors": processors()},
        "versions": versions(_PACKAGES),
    }


def _kept(cache: FileCache, file: Path, names: Sequence[str]) -> dict[str, Any] | None:
    """What was measured before; None if nothing was or it is of no use."""
    content = cache.read(file)
    if content is None:
        return None
    try:
        found = parse_json(bytes(content))
        times = [float(one) for of in found["seconds"].values() for one in of.values()]
        if {*found["seconds"], *found["failed"]} != {*names} or not all(0 < one < math.inf for one in times):
            raise ValueError("it has no time above 0 or reason of each back end")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        cache.drop(file, error)
        return None
    return dict(found)


def _measure(
    cpu: Cpu,
    bundle: Bundle,
    info: ModelInfo,
    names: Sequence[str],
    rows: Sequence[int],
    max_rows: int,
    deterministic: bool,
) -> dict[str, Any]:
    seconds: dict[str, Times] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            seconds[name] = measure(replace(cpu, backend=name), bundle, info, rows, max_rows, deterministic)
        except _FAILURES as error:
            failed[name] = str(error)
    return {"seconds": seconds, "failed": failed}


def measure(
    cpu: Cpu, bundle: Bundle, info: ModelInfo, rows: Sequence[int], max_rows: int, deterministic: bool
) -> Times:
    """Least seconds of forwards, which are opened for this and closed; the first row count at least.

    Raises:
        Exception: As ``open_network`` and the network do.
    """
    backend = open_network(bundle, cpu).backend(
        info, max_rows if deterministic else max(rows), deterministic=deterministic
    )
    padded = deterministic and not backend.rowwise
    found: dict[int, float] = {}
    began = time.perf_counter()
    try:
        for name, spec in info.cond.items():
            backend.buffers.cond[name][:] = spec.value(name, None)
        for count in rows:
            if found and time.perf_counter() - began > _SECONDS:
                break
            times = []
            for _ in range(1 + _REPEATS):  # the first one makes what is made once
                at = time.perf_counter()
                backend.forward(max_rows if padded else count)
                times.append(time.perf_counter() - at)
                if len(times) > 1 and time.perf_counter() - began > _SECONDS:
                    break
            found[count] = min(times[1:])
    finally:
        backend.close()
    return found


def _in_words(times: Times) -> str:
    return ", ".join(f"{1e3 * one:.3g} ms a forward of {count}" for count, one in times.items())
