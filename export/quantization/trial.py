"""What a quantised network is worth: its time and its error against the network that it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.callable import CallableBackend
from stepfuse.backends.host.onnxruntime import PREDICTION, SAMPLE, TIMESTEP, open_session
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.errors import ExportError
from stepfuse.requests.resolution import default_steps
from stepfuse.serving.config import Serving

if TYPE_CHECKING:
    from stepfuse.analysis import FeatureFunction, Judge, Statistics

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

MOST_STEPS = 20  # of a recorded run that is not told how many: noise levels enough, forwards few


@dataclass(frozen=True)
class Runs:
    """A recorded run of a bundle.

    Attributes:
        feeds: What each forward was given, by input name.
        arguments: Of ``Engine.sample``, to draw the same again.
        images: What came out, (samples, *shape).
    """

    feeds: Sequence[Feed]
    arguments: Mapping[str, Any]
    images: Array


@dataclass(frozen=True)
class Trial:
    """Two networks side by side.

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
    """Draws samples by the bundle's defaults, and keeps what the network was given.

    Args:
        bundle: The bundle.
        samples: How many, drawn together.
        steps: Of each; None is the default, at most 20.
        cond: What they are told; None takes class names in turn, where there are any.
        seed: Of the first.
        negative_cond: What unconditional passes are told.
        threads: Of ONNX Runtime.

    Raises:
        ExportError: If the network wants to be told more than classes, and ``cond`` is None.
    """
    if steps is None:
        steps = min(default_steps(bundle.info, str(bundle.info.defaults.get("sampler", ""))), MOST_STEPS)
    told = _classes(bundle, samples) if cond is None else cond
    arguments: dict[str, Any] = {"n": samples, "cond": told, "steps": steps, "seed": seed}
    if negative_cond is not None:
        arguments["negative_cond"] = negative_cond
    session = open_session(bundle.denoiser, threads=threads)
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
    """Runs the bundle's network and another in turn.

    Args:
        bundle: The bundle.
        network: The other network's ONNX file, with the same inputs and output.
        runs: A run of the bundle, other than that which calibrated.
        rows: Numbers of rows to time.
        rounds: Forwards of each.
        threads: Of ONNX Runtime.
        cond: What judged images are told, as in ``record_runs``.
        judge: Measures the distance of images to real ones.
        reference: As in ``quantize``.
        judged_samples: Images of each distance.

    Raises:
        ExportError: If the other network's predictions are not finite.
    """
    sessions = [open_session(file, threads=threads, spinning=False) for file in (bundle.denoiser, network)]
    errors = [_relative_error(*(_predict(session, feed) for session in sessions)) for feed in runs.feeds]
    if not np.isfinite(errors).all():
        raise ExportError(f"{network.name}: int8 predictions must be finite, got NaN or infinity")
    times = {count: _in_turn(sessions, _rows_of(runs.feeds, count), rounds) for count in rows}

    def draw(session: Any, arguments: Mapping[str, Any]) -> Array:
        def forward(x: Array, t: Array, given: Mapping[str, Array]) -> Array:
            return _predict(session, {SAMPLE: x, TIMESTEP: t, **given})

        with _engine(bundle.info, forward, 64) as engine:
            return engine.sample(**arguments)

    low, high = bundle.info.data_range
    difference = draw(sessions[1], runs.arguments) - runs.images
    distances = None
    if judge is not None:
        told = _classes(bundle, judged_samples) if cond is None else _repeated(bundle.info, cond, judged_samples)
        arguments = {**runs.arguments, "n": judged_samples, "cond": told}
        if "negative_cond" in arguments:
            arguments["negative_cond"] = _repeated(bundle.info, arguments["negative_cond"], judged_samples)
        before, after = (_distance(draw(session, arguments), judge, reference) for session in sessions)
        distances = (before, after)
    return Trial(times, errors, float(np.sqrt(np.mean(difference**2)) / (high - low)), distances)


def _distance(images: Array, judge: Judge | FeatureFunction, reference: Statistics | None) -> float:
    from stepfuse.analysis.scoring import distance_to_real, require_reference

    require_reference(judge, reference)
    found = distance_to_real(images, judge, reference)
    assert found is not None
    return found


def _classes(bundle: Bundle, samples: int) -> Any:
    """A class each in turn, for a network that is told a class; None for one that is told nothing."""
    inputs = list(bundle.info.cond.values())
    if not inputs:
        return None
    if len(inputs) == 1 and inputs[0].names:
        return [index % len(inputs[0].names) for index in range(samples)]
    raise ExportError(
        f"cond must say what the runs are told, which calibrate and measure: this network takes"
        f" {', '.join(bundle.info.cond)}, without class names"
    )


def _repeated(info: ModelInfo, told: Any, count: int) -> Any:
    """What a few samples are told, for more of them in turn; what all are told stays."""
    if isinstance(told, Mapping):
        return {name: _in_order(info.cond[name].shape, value, count) for name, value in told.items()}
    return _in_order(next(iter(info.cond.values())).shape, told, count)


def _in_order(shape: tuple[int, ...], values: Any, count: int) -> Any:
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


def _in_turn(sessions: Sequence[Any], feed: Feed, rounds: int) -> tuple[float, float]:
    """Median milliseconds of each, taken in turn so that both meet the same machine."""
    seconds = np.empty((rounds, 2))
    for session in sessions:
        _predict(session, feed)
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            _predict(sessions[index], feed)
            seconds[turn, index] = time.perf_counter() - began
    before, after = 1e3 * np.median(seconds, axis=0)
    return float(before), float(after)
