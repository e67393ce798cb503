"""Int8 bundles for the CPU, by ONNX Runtime's own quantiser, written only if they are faster than float32."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from stepfuse.bundle.bundle import DENOISER, QUANTIZATION, Bundle, finish_bundle
from stepfuse.bundle.folder import CACHE
from stepfuse.bundle.new_folder import copy_files, new_folder
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.errors import ExportError
from stepfuse.export.lora.store import ORIGINALS
from stepfuse.export.quantization.trial import DOUBTFUL, WORTH_IT, record_runs, try_all
from stepfuse.export.quantization.ways import Feed, ways
from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from stepfuse.analysis import FeatureFunction, Judge, Statistics

try:
    import onnx
    import onnxruntime.quantization as ort_quantization
except ImportError as error:
    raise ImportError(f"quantising needs onnx ({error}): {pip_install('export')}") from error

METHODS = ("static", "dynamic")
#: Both are tried, and the fastest that is near enough is kept.
AUTO = "auto"
CALIBRATIONS = ("percentile", "minmax", "entropy")

#: Operators that each method makes faster. Dynamic convolutions run as ConvInteger, slower than in float32.
OPERATORS = {"static": ("Conv", "Gemm", "MatMul"), "dynamic": ("Gemm", "MatMul")}
PERCENTILE = 99.99
_EXTERNAL_FROM = 1_900_000_000  # bytes of weights; a protobuf ends at 2 GiB


def quantize(
    bundle: str | os.PathLike[str] | Bundle,
    out: str | os.PathLike[str],
    *,
    method: str = "auto",
    operators: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    calibration: str = "percentile",
    reduce_range: bool = False,
    samples: int = 8,
    steps: int | None = None,
    cond: Any = None,
    negative_cond: Any = None,
    seed: int = 0,
    rows: Sequence[int] = (2, 16),
    rounds: int = 15,
    threads: int = 0,
    backends: Sequence[str] | None = None,
    judge: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    judged_samples: int = 1000,
    name: str | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle whose denoiser computes in int8, if that is faster on this machine.

    Weights are int8 with a scale an output channel. ``static`` fixes the activations' scales beforehand, uint8, from
    runs of the bundle itself, and suits convolutions; ``dynamic`` computes them in every forward, needs no runs, and
    suits matrix products. Inputs, outputs and all other operators stay float32. CPUs with int8 dot products (VNNI,
    Arm's dotprod) are faster with it; the result is a bundle for machines like this one.

    The int8 networks run in each library that is installed, and in OpenVINO also with the rest in bf16 where the
    processor has it. Of those whose images are near enough, at most 10 % of the data range apart, the fastest is kept;
    the manifest says how it was run, and what all others took. It has to be faster than the fastest float32 network.

    Args:
        bundle: An embedded model's name, a folder, or a bundle, of a float32 network.
        out: The folder to make.
        method: ``static``, ``dynamic``, or ``auto`` for both of them.
        operators: ONNX operators to quantise; None is ``OPERATORS[method]``.
        keep: Names of nodes to leave in float32; None is the first and the last convolution, which read and write
            samples and cost little.
        calibration: How ``static`` finds ranges: ``percentile`` (99.99 % of the values), ``minmax`` or ``entropy``.
        reduce_range: Whether weights take 7 bits, for AVX2 and AVX-512 without VNNI, whose sums of products saturate.
        samples: Samples of each recorded run, in one batch.
        steps: Steps of these runs; None is the bundle's default, at most 20.
        cond: Their conditioning, as in ``Engine.sample``; None cycles through the class names, where there are any. For
            a pipeline with prompts: ``TextToImage.encode_prompt`` of as many prompts as ``samples``.
        negative_cond: Their negative conditioning, as in ``Engine.sample``.
        seed: Seed of the run that calibrates; the run that is measured has the next one.
        rows: Numbers of rows at which it must be faster.
        rounds: Most forwards of each network at each number of rows, fewer of those that take long; each network
            alternates with the bundle's own.
        threads: Threads of a forward; 0 is a thread a core.
        backends: Libraries to run it in, of ``onnxruntime`` and ``openvino``; None: those that are installed.
        judge: Also measures the Fréchet distance of images to real ones, before and after.
        reference: Moments of the real data's features, where ``judge`` is a function and no ``Judge``.
        judged_samples: Images of each distance.
        name: The new bundle's name; None adds ``-int8`` to the old one.
        force: Whether a bundle that is not faster is written as well.
        overwrite: Whether a bundle that is there already is replaced.

    Returns:
        The bundle; ``export["quantization"]`` of its manifest has what was measured.

    Raises:
        ExportError: If int8 is not faster and ``force`` is not set; the message has the figures. Also if the bundle is
            not float32 or is quantised already, ``keep`` or ``operators`` names nothing of the network, ``cond`` is
            needed, predictions are not finite, or ``out`` is there already and is not to be replaced.
        BundleError: If the bundle cannot be used, or ``out`` is there already and no bundle.
        ValueError: If ``method`` or ``calibration`` is unknown, a back end is unknown or missing, ``samples``,
            ``rounds`` or a number of rows is below 1, or ``rows`` is empty.

    Examples:
        >>> from stepfuse.export import quantize
        >>> bundle = quantize("fashion", "fashion-int8")  # doctest: +SKIP
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    _check(loaded, method, calibration, samples, rows, rounds)
    tried = ways(backends)
    _require_room(out, overwrite)
    runs = [
        record_runs(
            loaded,
            samples=samples,
            steps=steps,
            cond=cond,
            negative_cond=negative_cond,
            seed=seed + index,
            threads=threads,
        )
        for index in range(2)
    ]
    with new_folder(Path(out), overwrite=overwrite) as folder:
        options: dict[str, Any] = {"reduce_range": reduce_range, "keep": keep, "calibration": calibration}
        made = _write_all(loaded.denoiser, folder.path, method, operators, runs[0].feeds, options)
        trial = try_all(
            loaded,
            {one: OnnxFile.open(folder.path / one / DENOISER) for one in made},
            runs[1],
            ways=tried,
            rows=rows,
            rounds=rounds,
            threads=threads,
            cond=cond,
            judge=judge,
            reference=reference,
            judged_samples=judged_samples,
        )
        slow = trial.slowest_gain < WORTH_IT
        if slow and not force:
            other = f", try method={_other(method)!r}," if method != AUTO else ""
            raise ExportError(
                f"{trial.chosen.network} int8 must be at least {WORTH_IT} times as fast as float32 on this machine, got"
                f" {trial.describe()}: keep the float32 bundle{other} or pass force=True"
            )
        if trial.image_error > DOUBTFUL:
            warnings.warn(
                f"int8's images differ from float32's by {trial.image_error:.0%} of the data range, root mean square:"
                " look at some before they are used",
                stacklevel=2,
            )
        network = trial.chosen.network
        _keep_one(folder.path, network)
        record = {
            **made[network],
            **({"calibration": calibration} if network == "static" else {}),
            "machine": platform.processor() or platform.machine(),
            "onnxruntime": ort.__version__,
            "faster": not slow,
            **trial.figures,
        }
        others = [one for one in loaded.files if not one.startswith((DENOISER, CACHE)) and one != ORIGINALS]
        copy_files(folder.path, {one: loaded.opened[one] for one in others})
        return finish_bundle(
            folder,
            name=f"{loaded.name}-int8" if name is None else name,
            info=loaded.info,
            provenance=loaded.provenance,
            licence=loaded.licence,
            pipeline=loaded.pipeline,
            export={**loaded.export, QUANTIZATION: record},
        )


class _NothingToQuantiseError(ExportError):
    """The network has none of the operators, beside those that are kept."""


def _write_all(
    source: Path,
    folder: Path,
    method: str,
    operators: Sequence[str] | None,
    feeds: Sequence[Feed],
    options: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Writes the quantised network of each method into a folder of its name; returns what they were made with.

    Raises:
        ExportError: If none can be made.
    """
    methods = METHODS if method == AUTO else (method,)
    made: dict[str, dict[str, Any]] = {}
    for one in methods:
        target = folder / one / DENOISER
        target.parent.mkdir()
        chosen = list(OPERATORS[one] if operators is None else operators)
        try:
            kept = _write_int8(source, target, one, feeds, {**options, "operators": chosen})
        except _NothingToQuantiseError:
            if one == methods[-1] and not made:
                raise
            continue
        made[one] = {"operators": chosen, "reduce_range": options["reduce_range"], "kept_float32": kept}
    return made


def _keep_one(folder: Path, method: str) -> None:
    """Moves the files of one of the networks to their place, and removes the others'."""
    for file in (folder / method).iterdir():
        file.rename(folder / file.name)
    for one in METHODS:
        shutil.rmtree(folder / one, ignore_errors=True)


def _check(bundle: Bundle, method: str, calibration: str, samples: int, rows: Sequence[int], rounds: int) -> None:
    if method not in (AUTO, *METHODS):
        raise ValueError(f"method must be one of {', '.join((AUTO, *METHODS))}, got {method!r}")
    if calibration not in CALIBRATIONS:
        raise ValueError(f"calibration must be one of {', '.join(CALIBRATIONS)}, got {calibration!r}")
    for label, value in (("samples", samples), ("rounds", rounds), *(("rows", one) for one in rows)):
        if value < 1:
            raise ValueError(f"{label} must be at least 1, got {value}")
    if not rows:
        raise ValueError("rows must name a number of rows to measure, got none")
    if QUANTIZATION in bundle.export:
        raise ExportError(f"{bundle.path} is quantised already: quantize needs the float32 bundle that it came from")


def _require_room(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuses before the minutes of work what ``new_folder`` would refuse after them."""
    if Path(out).exists() and not overwrite:
        raise ExportError(f"{Path(out)} exists already: pass overwrite=True to replace it")


def _other(method: str) -> str:
    return METHODS[1 - METHODS.index(method)]


def _write_int8(
    source: Path, target: Path, method: str, feeds: Sequence[Feed], options: Mapping[str, Any]
) -> list[str]:
    """Writes the quantised network; returns the names of the nodes that stay float32."""
    model = onnx.load(source, load_external_data=False)
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ExportError(f"{source}: weights must be float32, got float16: export with precision='float32' first")
    external = sum(file.stat().st_size for file in source.parent.glob(f"{DENOISER}*")) > _EXTERNAL_FROM
    with tempfile.TemporaryDirectory(prefix="stepfuse-") as folder, _quiet():
        prepared = Path(folder) / DENOISER
        ort_quantization.quant_pre_process(
            str(source),
            str(prepared),
            skip_symbolic_shape=True,
            save_as_external_data=external,
            all_tensors_to_one_file=external,
            external_data_location=f"{DENOISER}.data" if external else None,
        )
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        kept = _kept(nodes, options["keep"], options["operators"])
        shared: dict[str, Any] = {
            "op_types_to_quantize": options["operators"],
            "nodes_to_exclude": kept,
            "per_channel": True,
            "reduce_range": options["reduce_range"],
            "weight_type": ort_quantization.QuantType.QInt8,
            "use_external_data_format": external,
        }
        if method == "dynamic":
            ort_quantization.quantize_dynamic(prepared, target, **shared)
        else:
            ort_quantization.quantize_static(
                prepared,
                target,
                _reader(feeds),
                quant_format=ort_quantization.QuantFormat.QDQ,
                activation_type=ort_quantization.QuantType.QUInt8,
                calibrate_method=ort_quantization.CalibrationMethod[_CALIBRATION_NAMES[options["calibration"]]],
                # A feed at a time: all of them at once would hold every activation of a whole run.
                extra_options={"CalibStridedMinMax": 1, "CalibPercentile": PERCENTILE},
                **shared,
            )
    return kept


_CALIBRATION_NAMES = {"percentile": "Percentile", "minmax": "MinMax", "entropy": "Entropy"}


def _kept(nodes: Sequence[Any], keep: Sequence[str] | None, operators: Sequence[str]) -> list[str]:
    names = {node.name for node in nodes}
    if keep is None:
        convolutions = [node.name for node in nodes if node.op_type == "Conv"]
        kept = list(dict.fromkeys([*convolutions[:1], *convolutions[-1:]]))
    elif unknown := sorted(set(keep) - names):
        raise ExportError(f"keep must name nodes of the network, got {', '.join(unknown)}")
    else:
        kept = list(keep)
    if not any(node.op_type in operators and node.name not in kept for node in nodes):
        found = ", ".join(sorted({node.op_type for node in nodes}))
        raise _NothingToQuantiseError(
            f"operators must name some that the network has beside those kept ({found}), got {operators}"
        )
    return kept


def _reader(feeds: Sequence[Feed]) -> Any:
    """A ``CalibrationDataReader`` of the feeds."""

    class Reader(ort_quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(feeds)

        def __len__(self) -> int:
            return len(feeds)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(feeds[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            feed = next(self._left, None)
            return None if feed is None else dict(feed)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what the quantiser prints, and what it logs by the root logger below errors."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def refuse(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root.addHandler(handler)  # without any, the first message would install one that stays
    root.addFilter(refuse)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(handler)
