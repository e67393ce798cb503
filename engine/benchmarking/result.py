"""What a benchmark of a model has found: every time that was taken, and all that is needed to judge them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stepfuse.benchmarking.timing import median_interval, percentile, spread
from stepfuse.display import brief
from stepfuse.files.atomic import write_atomically
from stepfuse.files.strict_json import parse_json
from stepfuse.serving.config import CostCurve

FORMAT = 1

#: A case whose ``spread`` is above this is noisy: nothing is concluded from it.
NOISY = 0.2

_MOST_BYTES = 1 << 28

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Configuration:
    """What runs the network.

    Attributes:
        backend: ``onnxruntime`` or ``openvino``.
        precision: ``float32``, ``bf16`` or ``f16``.
        threads: As in ``Engine.load``; 0 is the library's choice.

    Examples:
        >>> from stepfuse.benchmarking import Configuration
        >>> print(Configuration("openvino", "bf16"))
        openvino bf16
    """

    backend: str
    precision: str = "float32"
    threads: int = 0

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.threads else ""
        return f"{self.backend} {self.precision}{threads}"


@dataclass(frozen=True)
class Case:
    """One way to do one piece of work, once a round.

    Attributes:
        configuration: What runs the network.
        rows: Images drawn together, each a row of every forward: nothing is guided.
        steps: Steps of a run of the engine; 0 is forwards of the bare network, one after the other.
        forwards: Forwards that one call takes.
        seconds: Of each call. Value i of all cases of a result was taken in round i.

    Examples:
        >>> from stepfuse.benchmarking import Case, Configuration
        >>> case = Case(Configuration("onnxruntime"), rows=4, steps=2, forwards=2, seconds=[0.19, 0.20, 0.22])
        >>> case.median, case.images_per_second, case.per_forward[1], case.work
        (0.2, 20.0, 0.1, (4, 2))
        >>> f"{case.spread:.2f}", case.noisy
        ('0.09', False)
    """

    configuration: Configuration
    rows: int
    steps: int
    forwards: int
    seconds: Sequence[float] = field(repr=False)

    @property
    def median(self) -> float:
        """Seconds."""
        return percentile(self.seconds, 50)

    @property
    def per_forward(self) -> list[float]:
        """Seconds a forward, of each call."""
        return [one / self.forwards for one in self.seconds]

    @property
    def spread(self) -> float:
        """From the 20th to the 80th percentile, as a share of the median."""
        return spread(self.seconds)

    @property
    def noisy(self) -> bool:
        """Whether the machine was too busy with other work to conclude anything."""
        return self.spread > NOISY

    @property
    def images_per_second(self) -> float:
        """Of runs; NaN of bare forwards."""
        return self.rows / self.median if self.steps else math.nan

    @property
    def work(self) -> tuple[int, int]:
        """What was done, whatever did it."""
        return self.rows, self.steps


@dataclass(frozen=True)
class Error:
    """How far a configuration's numbers are from those of ONNX Runtime in float32.

    Attributes:
        configuration: What ran the network.
        prediction: Root mean square of the difference over that of the prediction, on noise at timesteps of all levels.
        images: Root mean square of the difference of images from the same noise, as a share of the data range, drawn
            with the model's default sampler, steps and guidance.

    Examples:
        >>> from stepfuse.benchmarking import Configuration, Error
        >>> Error(Configuration("openvino", "bf16"), prediction=0.004, images=0.003).images
        0.003
    """

    configuration: Configuration
    prediction: float
    images: float


@dataclass(frozen=True)
class Start:
    """Fresh processes, from their start to the first image.

    Attributes:
        configuration: What ran the network.
        seconds: Of each process.
        peak_bytes: Its largest resident memory, shared libraries included. Linux says it.

    Examples:
        >>> from stepfuse.benchmarking import Configuration, Start
        >>> max(Start(Configuration("onnxruntime"), seconds=[0.6, 0.5], peak_bytes=[114_000_000, 113_000_000]).seconds)
        0.6
    """

    configuration: Configuration
    seconds: Sequence[float]
    peak_bytes: Sequence[int]


@dataclass(frozen=True)
class Load:
    """Requests of one image each that arrived at random (Poisson), whether or not those before were answered.

    Attributes:
        configuration: What ran the network.
        rate: Requests a second that were offered.
        steps: Of each.
        latencies: Seconds from a request's arrival to its image, in the order of arrival, of those that got one.
        unanswered: Requests that got none: they found the queue full, or were given up long after the last arrival.
        images_per_second: Images over the time from the first arrival to the last image.

    Examples:
        >>> from stepfuse.benchmarking import Configuration, Load
        >>> Load(Configuration("onnxruntime"), 20.0, 10, [0.1, 0.2], unanswered=0, images_per_second=18.0).unanswered
        0
    """

    configuration: Configuration
    rate: float
    steps: int
    latencies: Sequence[float] = field(repr=False)
    unanswered: int
    images_per_second: float


@dataclass(frozen=True)
class BenchResult:
    """What ``stepfuse.bench`` has found of a model.

    Attributes:
        model: Its name.
        files: SHA-256 of the network's files.
        cases: Times of forwards and runs. The first configuration is what the others are compared with.
        costs: The straight line through each configuration's forwards, as ``Engine.calibrate`` measures it.
        errors: Of each configuration but ONNX Runtime in float32.
        starts: Of fresh processes, if measured.
        loads: Of requests that arrive at random, if asked for.
        failures: What failed of a configuration, its network or its fresh processes, with the reason.
        facts: Date, machine, versions, the machine's load before, and how it was measured.

    Examples:
        >>> from stepfuse.benchmarking import BenchResult, Case, Configuration
        >>> first, other = Configuration("onnxruntime"), Configuration("openvino")
        >>> cases = [Case(first, 1, 0, 2, [0.20, 0.21, 0.20]), Case(other, 1, 0, 2, [0.10, 0.10, 0.10])]
        >>> cases += [Case(first, 1, 2, 2, [0.22, 0.22, 0.22]), Case(other, 1, 2, 2, [0.11, 0.12, 0.11])]
        >>> result = BenchResult("my-model", {}, cases, {})
        >>> print(result.fastest(rows=1, steps=0), "of", *result.configurations)
        openvino float32 of onnxruntime float32 openvino float32
        >>> [f"{ratio:.1f}" for ratio in result.times_first(result.case(other, rows=1))]
        ['2.0', '2.1', '2.0']
        >>> [f"{seconds:.3f}" for seconds in result.overhead(result.case(first, rows=1, steps=2))], result.noisy
        (['0.010', '0.005', '0.010'], [])
        >>> result.save("my-model.json")
        >>> BenchResult.load("my-model.json").as_json()["cases"][0]["rows"]
        1
    """

    model: str
    files: Mapping[str, str]
    cases: Sequence[Case]
    costs: Mapping[Configuration, CostCurve]
    errors: Sequence[Error] = ()
    starts: Sequence[Start] = ()
    loads: Sequence[Load] = ()
    failures: Mapping[Configuration, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.configurations))
        return f"<BenchResult of {self.model!r}: {names}; {len(self.cases)} cases>"

    @property
    def configurations(self) -> list[Configuration]:
        """What was measured, in order."""
        return list(dict.fromkeys(case.configuration for case in self.cases))

    @property
    def noisy(self) -> list[Case]:
        """Cases from which nothing is concluded."""
        return [case for case in self.cases if case.noisy]

    def case(self, configuration: Configuration, rows: int, steps: int = 0) -> Case:
        """One of them.

        Raises:
            KeyError: If there is none.
        """
        for one in self.cases:
            if (one.configuration, *one.work) == (configuration, rows, steps):
                return one
        raise KeyError((str(configuration), rows, steps))

    def times_first(self, case: Case) -> list[float]:
        """How many times as fast as the first configuration a case was, round by round."""
        first = self.case(self.configurations[0], *case.work)
        return [one / own for one, own in zip(first.seconds, case.seconds, strict=True)]

    def overhead(self, case: Case) -> list[float]:
        """Seconds a forward that a run takes beyond the bare network, round by round; below 0 is noise."""
        bare = self.case(case.configuration, case.rows)
        return [run - forward for run, forward in zip(case.per_forward, bare.per_forward, strict=True)]

    def fastest(self, rows: int, steps: int) -> Configuration | None:
        """The configuration that does some work fastest; None where the rounds do not say.

        It has to be faster than each other one beyond chance, by the 95 % interval of the median of their ratios round
        by round, and neither of them noisy.
        """
        found = sorted((one for one in self.cases if one.work == (rows, steps)), key=lambda one: one.median)
        if not found or any(one.noisy for one in found):
            return None
        best, *others = found
        for other in others:
            ratios = [one / own for one, own in zip(other.seconds, best.seconds, strict=True)]
            if median_interval(ratios)[0] <= 1:
                return None
        return best.configuration

    def as_json(self) -> dict[str, Any]:
        """All of it; ``summary`` of each case is there to be read, and follows from the rest."""
        return {
            "format_version": FORMAT,
            "model": self.model,
            "files": dict(self.files),
            "facts": dict(self.facts),
            "cases": [asdict(one) | {"summary": self._summary(one)} for one in self.cases],
            "costs": [{"configuration": asdict(name), **asdict(cost)} for name, cost in self.costs.items()],
            "errors": [asdict(one) for one in self.errors],
            "starts": [asdict(one) for one in self.starts],
            "loads": [asdict(one) | {"summary": latency_percentiles(one.latencies)} for one in self.loads],
            "failures": [{"configuration": asdict(name), "reason": why} for name, why in self.failures.items()],
        }

    def _summary(self, case: Case) -> dict[str, Any]:
        found: dict[str, Any] = {**latency_percentiles(case.seconds), "per_forward": case.median / case.forwards}
        found |= {"spread": case.spread, "noisy": case.noisy}
        if case.steps:
            found |= {"images_per_second": case.images_per_second}
            found |= {"overhead_per_forward": percentile(self.overhead(case), 50)}
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, wholly or not at all."""
        text = json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n"
        write_atomically(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BenchResult:
        """Reads what ``save`` has written.

        Raises:
            ValueError: If the file holds something else.
            OSError: If it cannot be read.
        """
        with Path(path).open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        try:
            if len(data) > _MOST_BYTES:
                raise ValueError(f"it must have at most {_MOST_BYTES} bytes")
            return cls._of(parse_json(data))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} must hold what stepfuse bench --output has written: {brief(error)}") from error

    @classmethod
    def _of(cls, given: Mapping[str, Any]) -> BenchResult:
        if given["format_version"] != FORMAT:
            raise ValueError(f"format_version must be {FORMAT}, got {brief(given['format_version'])}")
        rounds = {len(one["seconds"]) for one in given["cases"]}
        if len(rounds) != 1 or 0 in rounds:
            raise ValueError("its cases must have as many rounds each, and at least one")
        return cls(
            model=str(given["model"]),
            files=dict(given["files"]),
            cases=[_read(Case, one, "seconds") for one in given["cases"]],
            costs={Configuration(**one.pop("configuration")): CostCurve(**one) for one in given["costs"]},
            errors=[_read(Error, one) for one in given["errors"]],
            starts=[_read(Start, one, "seconds") for one in given["starts"]],
            loads=[_read(Load, one, "latencies") for one in given["loads"]],
            failures={Configuration(**one["configuration"]): str(one["reason"]) for one in given["failures"]},
            facts=dict(given["facts"]),
        )


def latency_percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The 50th, 95th and 99th, for a record; empty of none."""
    return {f"p{p}": percentile(seconds, p) for p in (50, 95, 99)} if len(seconds) else {}


def _read(kind: type[T], given: Mapping[str, Any], times: str = "") -> T:
    fields = {name: value for name, value in given.items() if name != "summary"}
    if times:
        _require_times(fields[times])
    return kind(**fields | {"configuration": Configuration(**fields["configuration"])})


def _require_times(values: Iterable[Any]) -> None:
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int | float) or not (math.isfinite(one) and one > 0):
            raise ValueError(f"a time must be a finite number above 0, got {brief(one)}")
