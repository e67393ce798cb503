"""The experiments of a report, by name: what each shows, how it is run, drawn and put into sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from stepfuse.analysis.experiments.degradation import Degradation
from stepfuse.analysis.experiments.frontier import Frontier
from stepfuse.analysis.experiments.guidance import GuidanceSweep
from stepfuse.analysis.experiments.guidance_interval import IntervalSaving
from stepfuse.analysis.experiments.paths import Paths
from stepfuse.analysis.experiments.reproducibility import Reproducibility
from stepfuse.analysis.experiments.round_trip import RoundTrip
from stepfuse.analysis.experiments.sampling import cycled_classes
from stepfuse.analysis.experiments.smoothness import Smoothness
from stepfuse.analysis.figures.degradation import draw_degradation
from stepfuse.analysis.figures.frontier import draw_frontier
from stepfuse.analysis.figures.guidance import draw_guidance_sweep
from stepfuse.analysis.figures.guidance_interval import draw_interval_saving
from stepfuse.analysis.figures.paths import draw_paths
from stepfuse.analysis.figures.reproducibility import draw_reproducibility
from stepfuse.analysis.figures.round_trip import draw_round_trip
from stepfuse.analysis.figures.smoothness import draw_smoothness
from stepfuse.analysis.report import findings, runs
from stepfuse.analysis.report.options import ReportOptions
from stepfuse.analysis.report.subject import Subject
from stepfuse.display import NAME, did_you_mean, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """One experiment of the report.

    Attributes:
        title: Its heading.
        question: What it shows and how to read it.
        run: Measures a subject; returns the experiment's result.
        result: Class of its result.
        draw: Draws the figure of a result.
        summarize: Findings of a result in sentences, the headline first.
        unfit: Why it cannot be run on a subject; None if it can.
    """

    title: str
    question: str
    run: Callable[[Subject, ReportOptions], Any]
    result: type
    draw: Callable[[Any], Figure]
    summarize: Callable[[Any], list[str]]
    unfit: Callable[[Subject], str | None] = field(default=lambda subject: None)


def _no_classes(subject: Subject) -> str | None:
    return None if cycled_classes(subject.engine.info, 1) else "the model names no classes to guide by"


def _no_inversion(subject: Subject) -> str | None:
    return "a flow has no DDIM inversion" if subject.engine.info.schedule.is_flow else None


def _no_labels_to_condition_on(subject: Subject) -> str | None:
    if not cycled_classes(subject.engine.info, 1):
        return "the model names no classes to be conditioned on"
    if subject.real is not None and subject.real_labels is None:
        return "the classes of the real samples are not known"
    return _no_inversion(subject)


EXPERIMENTS: Mapping[str, Experiment] = {
    "reproducibility": Experiment(
        "Reproducibility",
        "One starting noise, drawn again and again, each time in a call of its own. A deterministic sampler returns the"
        " same bits; a stochastic one does too if its step noise has the same seed, and something else if not.",
        runs.run_reproducibility,
        Reproducibility,
        draw_reproducibility,
        findings.of_reproducibility,
    ),
    "degradation": Experiment(
        "Step degradation",
        "The same samples at falling step counts, without guidance. Left: how far they move from the full run; right,"
        " where samples are judged: how far they move from real data.",
        runs.run_degradation,
        Degradation,
        draw_degradation,
        findings.of_degradation,
    ),
    "smoothness": Experiment(
        "Interpolation",
        "A walk between two noises, drawn several times. If nothing random is added on the way, neighbouring frames are"
        " alike and every run is the same walk.",
        runs.run_smoothness,
        Smoothness,
        draw_smoothness,
        findings.of_smoothness,
    ),
    "paths": Experiment(
        "Paths in two dimensions",
        "How samplers get from noise to data, on a mixture of Gaussians whose noise prediction is exact, so that what"
        " differs is the sampler's own. This experiment does not use the model.",
        runs.run_paths,
        Paths,
        draw_paths,
        findings.of_paths,
    ),
    "round_trip": Experiment(
        "Encoding and back, unconditional",
        "Images are encoded to the noise that generates them, and drawn from it again. A refinement is one more network"
        " pass a step on the way there.",
        partial(runs.run_round_trip, conditioned=False),
        RoundTrip,
        draw_round_trip,
        findings.of_round_trip,
        _no_inversion,
    ),
    "round_trip_conditioned": Experiment(
        "Encoding and back, conditioned on the class",
        "The same, with the network conditioned on the class of each image, both ways.",
        partial(runs.run_round_trip, conditioned=True),
        RoundTrip,
        draw_round_trip,
        findings.of_round_trip,
        _no_labels_to_condition_on,
    ),
    "guidance": Experiment(
        "Guidance",
        "The same samples at each guidance scale. Up to a point it makes them easier to name; more of it takes their"
        " variety, and then saturates them.",
        runs.run_guidance,
        GuidanceSweep,
        draw_guidance_sweep,
        findings.of_guidance,
        _no_classes,
    ),
    "guidance_interval": Experiment(
        "Guidance in an interval",
        "Guidance at middle noise levels alone (Kynkäänniemi et al., 2024): elsewhere the unconditional pass is not"
        " computed.",
        runs.run_guidance_interval,
        IntervalSaving,
        draw_interval_saving,
        findings.of_interval,
        _no_classes,
    ),
    "frontier": Experiment(
        "The latency-quality frontier",
        "What each way to sample costs, and what it gives: latency of one sample drawn alone, network passes and"
        " operations a sample, and distance to real data where samples are judged.",
        runs.run_frontier,
        Frontier,
        draw_frontier,
        findings.of_frontier,
    ),
}


def chosen(only: Sequence[str] | None) -> list[str]:
    """The names of the experiments in ``only``, in the report's order; None is all.

    Raises:
        TypeError: If ``only`` is one string.
        ValueError: If it is empty, or a name is unknown.
    """
    if isinstance(only, str):
        raise TypeError(f"only must be a list of names, got {only!r}")
    unknown = [name for name in only or () if name not in EXPERIMENTS]
    if unknown or (only is not None and not only):
        shown = ", ".join(f"{printable(name, NAME)}{did_you_mean(name, EXPERIMENTS)}" for name in unknown)
        raise ValueError(f"only must name some of {', '.join(EXPERIMENTS)}, got {shown or 'none'}")
    return [name for name in EXPERIMENTS if only is None or name in only]
