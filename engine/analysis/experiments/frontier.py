"""The latency-quality frontier: cost and distance to real data of each way to sample, measured in one run."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from stepfuse.analysis.experiments.sampling import (
    KEPT_IMAGES,
    SAMPLER_TITLES,
    Choice,
    SamplerChoice,
    choose,
    class_labels,
    counted,
    cycled_classes,
    require_count,
)
from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.measures.scoring import distance_to_real, require_reference, share_named_right
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.requests.sampler_defaults import default_steps
from stepfuse.serving.in_flight import Images

#: A little guidance, near the least Fréchet distance of the embedded model: samples are more typical of their class, at
#: little loss of variety. The models' own defaults guide more, for pictures that are easy to recognise.
LITTLE_GUIDANCE = 1.5

#: A table of so many steps takes seconds a sample, long enough for one run to average out disturbances.
LONG = 1000

#: Seconds of pause before a run: the threads of the other model's engine spin after its last forward and take a core.
SETTLING = 0.15


@dataclass(frozen=True)
class FrontierRow:
    """One way to sample.

    Attributes:
        label: Text such as ``DDIM 50, guidance 3``.
        model: Which of the two models generated the samples.
        sampler: Name of the sampler.
        steps: Its number of steps.
        options: Its options as text.
        guidance_scale: 1 is no guidance; a student has its teacher's folded into its weights.
        passes: Network passes a sample, as the engine counted them.
        latency_ms: Milliseconds for one sample alone, warmed up; the median of the repeats.
        throughput: Samples a second where all are requested at once.
        gflops: 10^9 floating-point operations a sample; None if the cost of a pass was not given.
        distance: Fréchet distance to the real data; None if the samples are not judged.
        accuracy: Share of the samples that the judge classifies as what they are conditioned on; None without a judge
            or without classes.

    Examples:
        >>> from stepfuse.analysis import frontier
        >>> with sf.Engine.load("fashion") as engine:
        ...     [row] = frontier(engine, samples=2, latency_repeats=1, configurations=[("ddim", {"steps": 3})]).rows
        >>> row.sampler, row.steps, row.passes
        ('ddim', 3, 6.0)
    """

    label: str
    model: Literal["teacher", "student"]
    sampler: str
    steps: int
    options: str
    guidance_scale: float
    passes: float
    latency_ms: float
    throughput: float
    gflops: float | None
    distance: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Frontier:
    """Result of ``frontier``.

    Attributes:
        rows: In the order of the configurations, the student's last.
        samples: Samples of each row, cycling through the classes.
        latency_repeats: Runs of one sample alone; rows of ``LONG`` steps have one.
        guidance_scale: The teacher's usual guidance scale, which its student has folded into its weights.
        seed: Seed of the first sample; sample i has ``seed + i`` in every row.
        data_range: Least and greatest value of a sample.
        images: The first samples of each row, shape (rows, up to ``KEPT_IMAGES``, *shape); None for a frontier
            that was read from a file.

    Examples:
        >>> from stepfuse.analysis import frontier
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = frontier(engine, samples=2, latency_repeats=1, configurations=[("ddim", {"steps": 3})])
        >>> found.samples, len(found.rows)
        (2, 1)
    """

    rows: tuple[FrontierRow, ...]
    samples: int
    latency_repeats: int
    guidance_scale: float
    seed: int
    data_range: tuple[float, float]
    images: Images | None = field(default=None, repr=False)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Frontier:
        """Reads the frontier's JSON of a report: ``rows``, and the scalars above as ``settings``.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is no JSON, or lacks an entry of a frontier; the message names the file and the entry.

        Examples:
            >>> from stepfuse.analysis import Frontier
            >>> Frontier.from_json("report/frontier.json").rows[0].label  # doctest: +SKIP
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = tuple(FrontierRow(**row) for row in found["rows"])
            low, high = found["settings"]["data_range"]
            return cls(rows, **{**found["settings"], "data_range": (low, high)})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} must be a frontier's JSON: {type(error).__name__} {error}") from error


def frontier(
    teacher: Engine,
    *,
    student: Engine | None = None,
    features: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    samples: int = 500,
    configurations: Sequence[SamplerChoice] | None = None,
    student_configurations: Sequence[SamplerChoice] | None = None,
    guided_ddpm: bool = False,
    guidance_scale: float | None = None,
    latency_repeats: int = 3,
    flops_per_pass: float | None = None,
    student_flops_per_pass: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Frontier:
    """Generates the same samples, by class and seed, in every way, and measures cost and quality.

    The latencies are measured first, each repeat over all rows, so that a machine that slows down meanwhile slows all
    rows alike.

    Args:
        teacher: The model.
        student: The model that was distilled from it; of the same shape and classes.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        samples: Samples of each row; more than there are features, where they are judged.
        configurations: Samplers and arguments for the teacher; None is ``default_configurations``.
        student_configurations: The same for the student; None is its own defaults, and half as many steps.
        guided_ddpm: Whether the default list has DDPM with guidance too, the most expensive row of all.
        guidance_scale: The teacher's usual guidance scale; None is its default.
        latency_repeats: Runs of one sample alone.
        flops_per_pass: Operations of one pass of the teacher's network, as ``flops_of`` counts them.
        student_flops_per_pass: The same of the student's network; None is the teacher's.
        seed: Seed of the first sample; sample i has ``seed + i``.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``samples`` or ``latency_repeats`` is below 1, there are no more samples than features where they
            are judged, ``features`` and ``reference`` are not given together, a list of configurations is empty or has
            one that its model cannot run, the student's shape or conditioning differs from its teacher's, or ``seed``
            is out of range.
        TypeError: If ``samples`` or ``latency_repeats`` is not an integer, or a sampler has no option of a given name.

    Examples:
        >>> from stepfuse.analysis import frontier
        >>> ways = [("ddim", {"steps": 3, "guidance_scale": 1.0}), ("unipc", {"steps": 3, "guidance_scale": 1.0})]
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = frontier(engine, samples=2, latency_repeats=1, configurations=ways)
        >>> [row.passes for row in found.rows]
        [3.0, 3.0]
    """
    require_count("samples", samples, 1)
    require_count("latency_repeats", latency_repeats, 1)
    require_reference(features, reference)
    scale = _usual_scale(teacher.info) if guidance_scale is None else guidance_scale
    if configurations is None:
        configurations = default_configurations(teacher.info, scale, guided_ddpm=guided_ddpm)
    runs = [_Run("teacher", teacher, choice, flops_per_pass) for choice in choose(teacher, configurations)]
    if student is not None:
        _require_alike(teacher.info, student.info)
        if student_configurations is None:
            student_configurations = _student_configurations(student.info)
        flops = flops_per_pass if student_flops_per_pass is None else student_flops_per_pass
        runs += [_Run("student", student, choice, flops) for choice in choose(student, student_configurations)]
    latencies = _latencies(runs, latency_repeats, seed)
    cond = cycled_classes(teacher.info, samples)
    labels = class_labels(teacher.info, cond, samples)
    rows, shown = [], []
    for run, latency in zip(runs, latencies, strict=True):
        began = time.perf_counter()
        with counted(run.engine) as passes:
            images = run.engine.sample(samples, cond=cond, table=run.choice.table, seed=seed, progress=progress)
        seconds = time.perf_counter() - began
        each = passes.count / samples
        rows.append(
            FrontierRow(
                label=_label(run),
                model=run.model,
                sampler=run.choice.sampler,
                steps=run.choice.steps,
                options=run.choice.options,
                guidance_scale=_scale_of(run.choice),
                passes=each,
                latency_ms=latency * 1e3,
                throughput=samples / seconds,
                gflops=None if run.flops_per_pass is None else run.flops_per_pass * each / 1e9,
                distance=distance_to_real(images, features, reference),
                accuracy=share_named_right(images, features, labels),
            )
        )
        shown.append(images[:KEPT_IMAGES])
    return Frontier(tuple(rows), samples, latency_repeats, scale, seed, teacher.info.data_range, np.stack(shown))


def default_configurations(
    info: ModelInfo, guidance_scale: float | None = None, *, guided_ddpm: bool = False
) -> list[SamplerChoice]:
    """DDPM of all steps and naively strided, DDIM and DPM-Solver++, at little guidance and at the usual scale.

    A model that does not name its classes is sampled unconditionally, and its list has no guidance. Rows with more
    steps than the model has are left out. A flow-matching model has Euler in the place of all of them.

    Args:
        info: The model.
        guidance_scale: Its usual guidance scale; None is its default.
        guided_ddpm: Whether DDPM at the usual guidance scale is listed too: 2 T passes a sample.

    Examples:
        >>> from stepfuse.analysis import default_configurations
        >>> ways = default_configurations(sf.Bundle.load("fashion").info)
        >>> ways[0][0]
        'ddpm'
    """
    total = info.schedule.num_train_timesteps
    scale = _usual_scale(info) if guidance_scale is None else guidance_scale
    guided = cycled_classes(info, 1) is not None
    scales = list(dict.fromkeys([LITTLE_GUIDANCE, float(scale)])) if guided else [1.0]
    if info.schedule.is_flow:
        both = dict.fromkeys([1.0, *scales])
        return [("euler", {"steps": steps, "guidance_scale": one}) for one in both for steps in (10, 20, 50, 100)]
    listed = [("ddpm", total, 1.0), ("ddpm_strided", 50, 1.0), ("ddim", 50, 1.0)]
    listed += [("ddim", steps, one) for one in scales for steps in (10, 20, 50, 100)]
    listed += [("dpmpp_2m", steps, one) for one in scales for steps in (10, 20)]
    if guided_ddpm and guided:
        listed.append(("ddpm", total, float(scale)))
    return [
        (sampler, {"steps": steps, "guidance_scale": one})
        for sampler, steps, one in dict.fromkeys(listed)
        if steps < total or sampler == "ddpm"
    ]


@dataclass(frozen=True)
class _Run:
    model: Literal["teacher", "student"]
    engine: Engine
    choice: Choice
    flops_per_pass: float | None


def _usual_scale(info: ModelInfo) -> float:
    return float(info.defaults.get("guidance_scale", 1.0))


def _scale_of(choice: Choice) -> float:
    return float(choice.table.options.get("guidance_scale", 1.0))


def _student_configurations(info: ModelInfo) -> list[SamplerChoice]:
    sampler = info.defaults.get("sampler", "euler" if info.schedule.is_flow else "ddim")
    steps = default_steps(info, sampler)
    return [(sampler, {"steps": count}) for count in dict.fromkeys([steps, max(1, steps // 2)])]


def _require_alike(teacher: ModelInfo, student: ModelInfo) -> None:
    for name in ("shape", "cond"):
        wanted, got = getattr(teacher, name), getattr(student, name)
        if got != wanted:
            raise ValueError(f"student's {name} must be its teacher's {wanted}, got {got}")


def _latencies(runs: Sequence[_Run], repeats: int, seed: int) -> list[float]:
    """Median seconds of one sample alone, run by run."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats):
        for run, found in zip(runs, seconds, strict=True):
            if repeat and len(run.choice.table) >= LONG:
                continue
            time.sleep(SETTLING)
            run.engine.warmup([rows for rows in (1, 2) if rows <= run.engine.serving.row_limit])
            cond = cycled_classes(run.engine.info, 1)
            began = time.perf_counter()
            run.engine.sample(1, cond=cond, table=run.choice.table, seed=seed)
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]


def _label(run: _Run) -> str:
    if run.model == "student":
        return f"distilled {run.choice.steps}"
    label = f"{SAMPLER_TITLES.get(run.choice.sampler, run.choice.sampler)} {run.choice.steps}"
    scale = _scale_of(run.choice)
    return label if scale == 1 else f"{label}, guidance {scale:g}"
