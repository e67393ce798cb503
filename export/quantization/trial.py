"""Quantised networks beside the float32 one: times, errors of predictions and images, distances to real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.backends.host.callable import CallableBackend
from stepfuse.backends.host.interface import SAMPLE, TIMESTEP
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.display import MESSAGE, printable
from stepfuse.engine import Engine
from stepfuse.errors import ExportError, StepfuseError
from stepfuse.export.quantization.ways import Array, Feed, Predict, Way, open_way
from stepfuse.requests.sampler_defaults import default_steps
from stepfuse.serving.config import Serving

if TYPE_CHECKING:
    from stepfuse.analysis import FeatureFunction, Judge, Statistics

#: Difference of images, as a share of the data range, above which a warning says so, and a nearer network is sought.
DOUBTFUL = 0.1
WORTH_IT = 1.05  # least speed-up at every number of rows: smaller ones are within the noise of medians
FLOAT32 = "float32"
_LEAST_ROUNDS, _LONGEST = 3, 10.0  # of a pair of networks at one number of rows: rounds, seconds

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
class Candidate:
    """A network and how it runs.

    Attributes:
        network: ``float32``, the bundle's own, or the method that made an int8 one of it.
        way: How it runs.
    """

    network: str
    way: Way

    @property
    def exact(self) -> bool:
        """Whether all of it is computed in float32."""
        return self.network == FLOAT32 and self.way.precision == "float32"


@dataclass(frozen=True)
class Trial:
    """Measurements of a bundle's network and of int8 ones.

    Attributes:
        milliseconds: Median of a forward by number of rows, of each candidate.
        failed: Why the others do not run.
        chosen: The int8 one that is kept: the fastest of those that are near enough, or else the nearest.
        prediction_error: Root mean square of its predictions' difference over that of the predictions, a forward each
            along a run, the noisiest first.
        image_error: Root mean square difference of the images of one seed, as a share of the data range.
        distances: Fréchet distance to real data, float32 and int8; None if nothing judged them.
    """

    milliseconds: Mapping[Candidate, Mapping[int, float]]
    failed: Mapping[Candidate, str]
    chosen: Candidate
    prediction_error: Sequence[float]
    image_error: float
    distances: tuple[float, float] | None = None

    @property
    def baseline(self) -> Candidate:
        """The fastest of those that compute in float32 alone."""
        return _baseline(self.milliseconds)

    @property
    def slowest_gain(self) -> float:
        """How many times as fast int8 is, at the number of rows where it gains least."""
        return _slowest_gain(self.milliseconds, self.chosen)

    @property
    def unneeded(self) -> Candidate | None:
        """The float32 network in a reduced precision, if that is as fast as int8 everywhere; else None."""
        reduced = [one for one in self.milliseconds if one.network == FLOAT32 and not one.exact]
        fastest = min(reduced, key=lambda one: _mean(self.milliseconds[one]), default=None)
        own = self.milliseconds[self.chosen]
        if fastest is None or any(after > own[rows] for rows, after in self.milliseconds[fastest].items()):
            return None
        return fastest

    def describe(self) -> str:
        """The times in words."""
        before, after = self.milliseconds[self.baseline], self.milliseconds[self.chosen]
        return ", ".join(
            f"{before[rows] / after[rows]:.2f} at {rows} rows ({before[rows]:.2f} ms, now {after[rows]:.2f})"
            for rows in after
        )

    @property
    def figures(self) -> dict[str, Any]:
        """For a manifest, as JSON can say it."""
        before, after = self.milliseconds[self.baseline], self.milliseconds[self.chosen]
        of_each: dict[str, dict[str, dict[str, float]]] = {}
        for one, times in self.milliseconds.items():
            of_each.setdefault(str(one.way), {})[one.network] = {str(rows): round(ms, 4) for rows, ms in times.items()}
        found: dict[str, Any] = {
            "method": self.chosen.network,
            "backend": self.chosen.way.backend,
            "precision": self.chosen.way.precision,
            "milliseconds": {
                str(rows): {FLOAT32: round(before[rows], 4), "int8": round(after[rows], 4)} for rows in after
            },
            "ways": of_each,
            "prediction_error": [float(f"{error:.3g}") for error in self.prediction_error],
            "image_error": float(f"{self.image_error:.3g}"),
        }
        if self.failed:
            found["failed"] = {
                f"{one.network} in {one.way}": printable(why, MESSAGE) for one, why in self.failed.items()
            }
        if self.unneeded is not None:
            found["as_fast_without"] = str(self.unneeded.way)
        if self.distances is not None:
            found["frechet_distance"] = dict(zip((FLOAT32, "int8"), map(float, self.distances), strict=True))
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
    predict = open_way(bundle.networks[DENOISER], Way(), threads)
    feeds: list[Feed] = []

    def forward(x: Array, t: Array, given: Mapping[str, Array]) -> Array:
        feed = {SAMPLE: x, TIMESTEP: t, **given}
        feeds.append(feed)
        return predict(feed)

    with _engine(bundle.info, forward, 2 * samples) as engine:
        images = engine.sample(**arguments)
    return Runs(feeds, arguments, images)


def try_all(
    bundle: Bundle,
    networks: Mapping[str, OnnxFile],
    runs: Runs,
    *,
    ways: Sequence[Way],
    rows: Sequence[int],
    rounds: int,
    threads: int = 0,
    cond: Any = None,
    judge: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    judged_samples: int = 1000,
) -> Trial:
    """Measures the bundle's network and its int8 versions, in every way.

    Each is timed in turn with the bundle's network in the first way, so that two are in memory at a time, and a
    machine's load slows both. Its milliseconds are what that takes, times their ratio.

    Args:
        bundle: The bundle.
        networks: The int8 networks' ONNX files by the method that made them, with the same inputs and output.
        runs: A run of the bundle, other than that which calibrated.
        ways: How they run.
        rows: Numbers of rows to time.
        rounds: Most forwards of each network at each number of rows; three at least of those that take long.
        threads: Threads of a forward.
        cond: Conditioning of the judged images, as in ``record_runs``.
        judge: Measures the distance of images to real ones.
        reference: As in ``quantize``.
        judged_samples: Images of each distance.

    Raises:
        ExportError: If no int8 network runs and has finite predictions; or ``cond`` is needed, as in ``record_runs``.
    """
    files = {FLOAT32: bundle.networks[DENOISER], **networks}
    own = open_way(files[FLOAT32], ways[0], threads)
    expected = [own(feed) for feed in runs.feeds]
    pairs: dict[Candidate, Mapping[int, tuple[float, float]]] = {}
    errors: dict[Candidate, list[float]] = {}
    failed: dict[Candidate, str] = {}

    def measure(one: Candidate) -> None:
        predict = open_way(files[one.network], one.way, threads)
        found = [_relative_error(*pair) for pair in zip(expected, map(predict, runs.feeds), strict=True)]
        if not np.isfinite(found).all():
            raise ExportError("predictions must be finite, got NaN or infinity")
        pairs[one] = {count: _alternately(one, own, predict, _rows_of(runs.feeds, count), rounds) for count in rows}
        errors[one] = found

    for one in (Candidate(network, way) for network in files for way in ways):
        try:
            if one != Candidate(FLOAT32, ways[0]):
                measure(one)
        except (RuntimeError, StepfuseError) as error:  # OpenVINO's are RuntimeErrors
            failed[one] = str(error)
    candidates = [one for one in pairs if one.network != FLOAT32]
    if not candidates:
        reasons = "; ".join(f"{one.network} in {one.way}: {printable(why, MESSAGE)}" for one, why in failed.items())
        raise ExportError(f"no int8 network of {bundle.path} can be used: {reasons}")
    milliseconds = _milliseconds(Candidate(FLOAT32, ways[0]), pairs, rows)

    def sample(predict: Predict, arguments: Mapping[str, Any]) -> Array:
        def forward(x: Array, t: Array, given: Mapping[str, Array]) -> Array:
            return predict({SAMPLE: x, TIMESTEP: t, **given})

        with _engine(bundle.info, forward, 64) as engine:
            return engine.sample(**arguments)

    def image_error(one: Candidate) -> float:
        low, high = bundle.info.data_range
        difference = sample(open_way(files[one.network], one.way, threads), runs.arguments) - runs.images
        return float(np.sqrt(np.mean(difference**2)) / (high - low))

    chosen, error_of_images = _chosen(candidates, milliseconds, image_error)
    distances = None
    if judge is not None:
        conditioning = (
            _classes(bundle, judged_samples) if cond is None else _repeated(bundle.info, cond, judged_samples)
        )
        arguments = {**runs.arguments, "n": judged_samples, "cond": conditioning}
        if "negative_cond" in arguments:
            arguments["negative_cond"] = _repeated(bundle.info, arguments["negative_cond"], judged_samples)
        quantised = open_way(files[chosen.network], chosen.way, threads)
        before, after = (_distance(sample(one, arguments), judge, reference) for one in (own, quantised))
        distances = (before, after)
    return Trial(milliseconds, failed, chosen, errors[chosen], error_of_images, distances)


def _milliseconds(
    own: Candidate, pairs: Mapping[Candidate, Mapping[int, tuple[float, float]]], rows: Sequence[int]
) -> dict[Candidate, dict[int, float]]:
    """Of each candidate: what the bundle's own network takes over all pairs, times the ratio within its pair."""
    usual = {count: float(np.median([times[count][0] for times in pairs.values()])) for count in rows}
    ratios = {one: {count: after / before for count, (before, after) in times.items()} for one, times in pairs.items()}
    return {own: usual, **{one: {count: usual[count] * of[count] for count in rows} for one, of in ratios.items()}}


def _chosen(
    candidates: Sequence[Candidate],
    milliseconds: Mapping[Candidate, Mapping[int, float]],
    image_error: Callable[[Candidate], float],
) -> tuple[Candidate, float]:
    """The fastest that is near enough, and how far its images are; the nearest where none is.

    Those that gain at every number of rows come before those that do not, which are written if they are asked for.
    """
    order = sorted(candidates, key=lambda one: (_slowest_gain(milliseconds, one) < WORTH_IT, _mean(milliseconds[one])))
    errors: dict[Candidate, float] = {}
    for one in order:
        if errors and _slowest_gain(milliseconds, one) < WORTH_IT:
            break  # slower than float32: its images are of no use
        errors[one] = image_error(one)
        if errors[one] <= DOUBTFUL:
            return one, errors[one]
    nearest = min(errors, key=lambda one: errors[one])
    return nearest, errors[nearest]


def _baseline(milliseconds: Mapping[Candidate, Mapping[int, float]]) -> Candidate:
    return min((one for one in milliseconds if one.exact), key=lambda one: _mean(milliseconds[one]))


def _slowest_gain(milliseconds: Mapping[Candidate, Mapping[int, float]], one: Candidate) -> float:
    before, after = milliseconds[_baseline(milliseconds)], milliseconds[one]
    return min(before[rows] / after[rows] for rows in after)


def _mean(times: Mapping[int, float]) -> float:
    """The geometric mean: each number of rows counts alike."""
    return float(np.exp(np.mean(np.log(list(times.values())))))


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


def _relative_error(expected: Array, got: Array) -> float:
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    return float(np.sqrt(np.mean(np.square(got - expected, dtype=np.float64))) / scale)


def _rows_of(feeds: Sequence[Feed], count: int) -> Feed:
    """The first rows of a run's middle, repeated where it has fewer."""
    feed = feeds[len(feeds) // 2]
    return {name: np.resize(values, (count, *values.shape[1:])) for name, values in feed.items()}


def _alternately(one: Candidate, own: Predict, predict: Predict, feed: Feed, rounds: int) -> tuple[float, float]:
    """Median milliseconds of the bundle's own network and a candidate; they alternate, since machines' loads change."""
    for run in (own, predict):
        run(feed)
    seconds: list[tuple[float, float]] = []
    end = time.perf_counter() + _LONGEST
    while len(seconds) < min(rounds, _LEAST_ROUNDS) or (len(seconds) < rounds and time.perf_counter() < end):
        pair = [0.0, 0.0]
        for index in (0, 1) if len(seconds) % 2 else (1, 0):
            began = time.perf_counter()
            (own, predict)[index](feed)
            pair[index] = time.perf_counter() - began
        seconds.append((pair[0], pair[1]))
    before, after = 1e3 * np.median(seconds, axis=0)
    return float(before), float(after)
