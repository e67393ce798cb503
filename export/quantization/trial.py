"""A quantised network beside the float32 one: times, errors of predictions and images, distances to real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.callable import CallableBackend
from stepfuse.backends.host.interface import PREDICTION, SAMPLE, TIMESTEP
from stepfuse.backends.host.onnxruntime import open_session
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.errors import ExportError
from stepfuse.requests.sampler_defaults import default_steps
from stepfuse.serving.config import Serving

if TYPE_CHECKING:
    from stepfuse.analysis import FeatureFunction, Judge, Statistics

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

MOST_STEPS = 20  # of a recorded run by default: enough noise levels at few forwards


@dataclass(frozen=True)
class Runs:
    """A recorded run of a bundle.

    Attributes:
        feeds: The inputs of each forward, by name.
        arguments: Arguments of ``Engine.sample``, to repeat the run.
        images: Its samples, (samples, *shape).
    """

    feeds: Sequence[Feed]
    arguments: Mapping[str, Any]
    images: Array


@dataclass(frozen=True)
class Trial:
    """Measurements of the float32 network and the int8 one.

    Attributes:
        milliseconds: Median of a forward by number of rows, float32 and int8.
        prediction_error: Root mean square of the predictions' difference over that of the predictions, a forward each
            along a run, the noisiest first.
        image_error: Root mean square difference of the images of one seed, as a share of the data range.
        distances: Fréchet distance to real data, float32 and int8; None if nothing judged them.
    """

    milliseconds: Mapping[int, tuple[float, float]]
    prediction_error: Sequence[float]
    image_error: float
    distances: tuple[float, float] | None = None

    @property
    def slowest_gain(self) -> float:
        """How many times as fast int8 is, at the number of rows where it gains least."""
        return min(before / after for before, after in self.milliseconds.values())

    def describe(self) -> str:
        """The times in words."""
        return ", ".join(
            f"{before / after:.2f} at {rows} rows ({before:.2f} ms, now {after:.2f})"
            for rows, (before, after) in self.milliseconds.items()
        )

    @property
    def figures(self) -> dict[str, Any]:
        """For a manifest, as JSON can say it."""
        found: dict[str, Any] = {
            "milliseconds": {
                str(rows): {"float32": round(before, 4), "int8": round(after, 4)}
                for rows, (before, after) in self.milliseconds.items()
            },
            "prediction_error": [float(f"{error:.3g}") for error in self.prediction_error],
            "image_error": float(f"{self.image_error:.3g}"),
        }
        if self.distances is not None:
            found["frechet_distance"] = dict(zip(("float32", "int8"), map(float, self.distances), strict=True))
        return found


def record_runs(
    bundle: Bundle,
    *,
    samples: int,
    steps: int | None,
    cond: Any,
    seed: int,
    negative_cond: Any = None,
    threads: int = 0,
) -> Runs:
    """Samples a batch by the bundle's defaults, and keeps the inputs of every forward.

    Args:
        bundle: The bundle.
        samples: Size of the batch.
        steps: Steps of each sample; None is the default, at most 20.
        cond: Their conditioning; None cycles through the class names, where there are any.
        seed: Seed of the first sample.
        negative_cond: Their negative conditioning.
        threads: Threads of ONNX Runtime.

    Raises:
        ExportError: If ``cond`` is None and the network has other conditioning than a class with names.
    """
    if steps is None:
        steps = min(default_steps(bundle.info, str(bundle.info.defaults.get("sampler", ""))), MOST_STEPS)
    conditioning = _classes(bundle, samples) if cond is None else cond
    arguments: dict[str, Any] = {"n": samples, "cond": conditioning, "steps": steps, "seed": seed}
    if negative_cond is not None:
        arguments["negative_cond"] = negative_cond
    session = open_session(bundle.networks[DENOISER], threads=threads)
    feeds: list[Feed] = []

    def forward(x: Array, t: Array, given: Mapping[str, Array]) -> Array:
        feed = {SAMPLE: x, TIMESTEP: t, **given}
        feeds.append(feed)
        return _predict(session, feed)

    with _engine(bundle.info, forward, 2 * samples) as engine:
        images = engine.sample(**arguments)
    return Runs(feeds, arguments, images)


def try_both(
    bundle: Bundle,
    network: Path,
    runs: Runs,
    *,
    rows: Sequence[int],
    rounds: int,
    threads: int = 0,
    cond: Any = None,
    judge: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    judged_samples: int = 1000,
) -> Trial:
    """Measures the bundle's network and its int8 version.

    Args:
        bundle: The bundle.
        network: The int8 network's ONNX file, with the same inputs and output.
        runs: A run of the bundle, other than that which calibrated.
        rows: Numbers of rows to time.
        rounds: Forwards of each network at each number of rows.
        threads: Threads of ONNX Runtime.
        cond: Conditioning of the judged images, as in ``record_runs``.
        judge: Measures the distance of images to real ones.
        reference: As in ``quantize``.
        judged_samples: Images of each distance.

    Raises:
        ExportError: If predictions of the int8 network are not finite; or ``cond`` is needed, as in ``record_runs``.
    """
    sessions = [open_session(file, threads=threads, spinning=False) for file in (bundle.networks[DENOISER], network)]
    errors = [_relative_error(*(_predict(session, feed) for session in sessions)) for feed in runs.feeds]
    if not np.isfinite(errors).all():
        raise ExportError(f"{network.name}: int8 predictions must be finite, got NaN or infinity")
    times = {count: _alternately(sessions, _rows_of(runs.feeds, count), rounds) for count in rows}

    def sample(session: Any, arguments: Mapping[str, Any]) -> Array:
        def forward(x: Array, t: Array, given: Mapping[str, Array]) -> Array:
            return _predict(session, {SAMPLE: x, TIMESTEP: t, **given})

        with _engine(bundle.info, forward, 64) as engine:
            return engine.sample(**arguments)

    low, high = bundle.info.data_range
    difference = sample(sessions[1], runs.arguments) - runs.images
    distances = None
    if judge is not None:
        conditioning = (
            _classes(bundle, judged_samples) if cond is None else _repeated(bundle.info, cond, judged_samples)
        )
        arguments = {**runs.arguments, "n": judged_samples, "cond": conditioning}
        if "negative_cond" in arguments:
            arguments["negative_cond"] = _repeated(bundle.info, arguments["negative_cond"], judged_samples)
        before, after = (_distance(sample(session, arguments), judge, reference) for session in sessions)
        distances = (before, after)
    return Trial(times, errors, float(np.sqrt(np.mean(difference**2)) / (high - low)), distances)


def _distance(images: Array, judge: Judge | FeatureFunction, reference: Statistics | None) -> float:
    from stepfuse.analysis.measures.scoring import distance_to_real, require_reference

    require_reference(judge, reference)
    found = distance_to_real(images, judge, reference)
    assert found is not None
    return found


def _classes(bundle: Bundle, samples: int) -> Any:
    """Classes, cycled through, for a class-conditional network; None for an unconditional one."""
    inputs = list(bundle.info.cond.values())
    if not inputs:
        return None
    if len(inputs) == 1 and inputs[0].names:
        return [index % len(inputs[0].names) for index in range(samples)]
    raise ExportError(
        f"cond must give the conditioning of the runs that calibrate and measure: this network takes"
        f" {', '.join(bundle.info.cond)}, without class names"
    )


def _repeated(info: ModelInfo, conditioning: Any, count: int) -> Any:
    """Conditioning of a few samples, cycled through for ``count`` of them; a value for all of them stays one."""
    if isinstance(conditioning, Mapping):
        return {name: _cycled(info.cond[name].shape, value, count) for name, value in conditioning.items()}
    return _cycled(next(iter(info.cond.values())).shape, conditioning, count)


def _cycled(shape: tuple[int, ...], values: Any, count: int) -> Any:
    if isinstance(values, str) or np.ndim(values) <= len(shape):
        return values
    return [values[index % len(values)] for index in range(count)]


def _engine(info: ModelInfo, forward: Callable[..., Array], max_rows: int) -> Engine:
    return Engine(info, CallableBackend(forward, info, max_rows), Serving(max_rows=max_rows))


def _predict(session: Any, feed: Feed) -> Array:
    prediction: Array = session.run([PREDICTION], dict(feed))[0]
    return prediction


def _relative_error(expected: Array, got: Array) -> float:
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    return float(np.sqrt(np.mean(np.square(got - expected, dtype=np.float64))) / scale)


def _rows_of(feeds: Sequence[Feed], count: int) -> Feed:
    """The first rows of a run's middle, repeated where it has fewer."""
    feed = feeds[len(feeds) // 2]
    return {name: np.resize(values, (count, *values.shape[1:])) for name, values in feed.items()}


def _alternately(sessions: Sequence[Any], feed: Feed, rounds: int) -> tuple[float, float]:
    """Median milliseconds of each session; they alternate, so that a machine's load slows both."""
    seconds = np.empty((rounds, 2))
    for session in sessions:
        _predict(session, feed)
    for round_index in range(rounds):
        for index in (0, 1) if round_index % 2 else (1, 0):
            began = time.perf_counter()
            _predict(sessions[index], feed)
            seconds[round_index, index] = time.perf_counter() - began
    before, after = 1e3 * np.median(seconds, axis=0)
    return float(before), float(after)
