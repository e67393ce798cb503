"""From an ONNX file to a TensorRT plan."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepfuse.bundle.bundle import DENOISER
from stepfuse.display import byte_size
from stepfuse.errors import PlanError
from stepfuse.export.tensorrt.progress import BuildProgress, monitor_for
from stepfuse.files.atomic import write_atomically
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.logger import logger_for
from stepfuse.tensorrt.options import Options
from stepfuse.tensorrt.plan import Plan, PlanKey
from stepfuse.tensorrt.profile import Profile
from stepfuse.tensorrt.target import Target, this_gpu

log = logging.getLogger(__name__)


def build_plan(
    onnx: str | os.PathLike[str],
    *,
    profiles: Sequence[Profile] = (Profile(),),
    target: Target | None = None,
    options: Options | None = None,
    library: Library | None = None,
    pixels_per_cell: int = 1,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
    source: str | None = None,
) -> Plan:
    """Builds a plan with the types that the ONNX file carries: float16, bfloat16 or float8 there are so in the plan.

    Args:
        onnx: The file; weights beside it are found by TensorRT.
        profiles: Shapes that the plan takes.
        target: What it runs on; None: the GPU of this machine.
        options: How it is built.
        library: The TensorRT that builds it; None: the first that is installed.
        pixels_per_cell: Pixels a side of one cell of a sample, for the sizes in ``profiles``.
        timing_cache: A file that measured kernels are read from and added to; ``tensorrt_rtx`` measures none.
        progress: Whether progress bars are shown on standard error.
        source: Digest of the file and its weights, if it is known; None: it is computed.

    Raises:
        PlanError: If ``onnx`` is no file, TensorRT cannot parse or build the network, or a profile or an option does
            not suit it; or ``target`` is None and there is no GPU.
        ValueError: If ``profiles`` is empty.
        ImportError: If no TensorRT is installed.
    """
    file, library, options = Path(onnx), library or find_library(), options or Options()
    target = target or this_gpu()
    if not profiles:
        raise ValueError("profiles must hold at least one, got none")
    if not file.is_file():
        raise PlanError(f"{file} must be an ONNX file: there is none")
    key = PlanKey(
        network=file.name,
        source=source or digest_of(file),
        library=library.name,
        version=library.version,
        target=target,
        profiles=tuple(profiles),
        pixels_per_cell=pixels_per_cell,
        options=options,
    )
    began = time.perf_counter()
    trt = library.module
    logger = logger_for(trt)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    options.configure(config, library, target)
    if library.is_rtx and file.name == DENOISER:  # captured graphs run it: no layer may allocate
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    network = parse(trt, builder, file, logger)
    for profile in profiles:
        config.add_optimization_profile(_filled(builder, network, profile, pixels_per_cell))
    with _timings(config, library, timing_cache):
        data = _build(trt, builder, network, config, logger, f"{file.name} for {target}" if progress else None)
    if data is None:
        raise PlanError(_refusal(file, options, target, logger.errors))
    seconds = time.perf_counter() - began
    log.info("built a plan of %s from %s for %s in %.1f s", byte_size(data.nbytes), file, target, seconds)
    return Plan(key, data, seconds)


def parse(trt: Any, builder: Any, file: Path, logger: Any) -> Any:
    """Parses an ONNX file into a strongly typed network.

    Raises:
        PlanError: If TensorRT cannot parse it, in TensorRT's words and with the node's name; or it has no outputs.
    """
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(file)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"node {one.node_name() or one.node()!r} ({one.node_operator()}): {one.desc()}" for one in errors]
        raise PlanError(f"{file}: TensorRT cannot parse it: {'; '.join(reasons or logger.errors)}")
    if network.num_outputs == 0:  # bytes that are no ONNX at all may parse as an empty model
        raise PlanError(f"{file} must be an ONNX network with outputs: TensorRT finds none in it")
    return network


def digest_of(file: Path) -> str:
    """SHA-256 over an ONNX file and its external data, which is ``NAME.onnx.data`` beside it."""
    digest = hashlib.sha256()
    for part in (file, file.with_name(f"{file.name}.data")):
        if part.is_file():
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _filled(builder: Any, network: Any, profile: Profile, pixels_per_cell: int) -> Any:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if unknown := sorted(set(profile.shapes) - {one.name for one in inputs}):
        raise PlanError(f"shapes: {unknown[0]!r} is no input: those are {', '.join(one.name for one in inputs)}")
    filled = builder.create_optimization_profile()
    for one in inputs:
        three = profile.shapes_of(one.name, tuple(one.shape), pixels_per_cell=pixels_per_cell)
        filled.set_shape(one.name, *three)
    return filled


def _build(trt: Any, builder: Any, network: Any, config: Any, logger: Any, title: str | None) -> memoryview | None:
    if title is None:
        memory = builder.build_serialized_network(network, config)
    else:
        with BuildProgress(title) as bars:
            config.progress_monitor = monitor = monitor_for(trt, bars)
            memory = builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
    return None if memory is None else memoryview(memory).cast("B")


@contextmanager
def _timings(config: Any, library: Library, file: str | os.PathLike[str] | None) -> Iterator[None]:
    """Gives a build the timing cache of a file, and writes it back with the kernels that were measured."""
    if file is None or library.is_rtx:
        if file is not None:
            log.info("tensorrt_rtx measures no kernels while it builds: %s is not used", file)
        yield
        return
    path = Path(file)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("%s was measured on another GPU or by another TensorRT: it is measured anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda scratch: scratch.write_bytes(config.get_timing_cache().serialize()))


def _refusal(file: Path, options: Options, target: Target, errors: list[str]) -> str:
    why = "; ".join(errors) or "it says no reason"
    hint = ""
    if target.ahead and options.refittable:
        hint = " (refittable plans are built on a machine with a GPU: their weights are laid out there)"
    return f"{file}: TensorRT cannot build a plan for {target}{hint}: {why}"
