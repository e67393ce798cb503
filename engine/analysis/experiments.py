"""The experiments of a report: how large each is, what it needs, runs, draws and says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.analysis import findings
from stepfuse.analysis.degradation import MOST_STEPS, SAMPLERS, draw_degradation, step_degradation
from stepfuse.analysis.frontier import frontier
from stepfuse.analysis.frontier_figure import draw_frontier
from stepfuse.analysis.guidance import SCALES, VARIANTS, draw_guidance_sweep, guidance_sweep
from stepfuse.analysis.interval import draw_interval_saving, interval_saving
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.paths import paths
from stepfuse.analysis.paths_figure import draw_paths
from stepfuse.analysis.reproducibility import draw_reproducibility, reproducibility
from stepfuse.analysis.roundtrip import draw_round_trip, round_trip
from stepfuse.analysis.sampling import SamplerChoice, class_labels, in_turn
from stepfuse.analysis.smoothness import draw_smoothness, interpolation_smoothness
from stepfuse.analysis.subject import Subject
from stepfuse.requests.resolution import default_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Sizes of each experiment by default, and where a quick look is asked for. What is judged takes more samples than
#: there are features: 64, for the embedded judge.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reproducibility": ({"runs": 8}, {"runs": 4}),
    "degradation": (
        {"samples": 100, "steps": (1000, 500, 250, 100, 50, 25)},
        {"samples": 72, "steps": (50, 25, 10)},
    ),
    "smoothness": ({"frames": 10, "runs": 4}, {"frames": 6, "runs": 2}),
    "paths": ({"samples": 600}, {"samples": 200}),
    "round_trip": (
        {"images": 32, "steps": (10, 25, 50, 100, 200), "refinements": (0, 1, 2)},
        {"images": 8, "steps": (10, 25), "refinements": (0, 1)},
    ),
    "round_trip_told": (
        {"images": 32, "steps": (25, 50, 100), "refinements": (0, 1)},
        {"images": 8, "steps": (10, 25), "refinements": (0, 1)},
    ),
    "guidance": (
        {"samples": 150, "scales": SCALES, "steps": None, "variants": VARIANTS},
        {"samples": 72, "scales": (0.0, 1.0, 2.0, 3.0, 5.0, 7.5), "steps": 10, "variants": {}},
    ),
    "guidance_interval": ({"samples": 128, "repeats": 3, "steps": None}, {"samples": 72, "repeats": 1, "steps": 20}),
    "frontier": (
        {"samples": 500, "latency_repeats": 9, "ddpm_steps": 1000},
        {"samples": 72, "latency_repeats": 3, "ddpm_steps": 100},
    ),
}

#: Experiments whose samples are judged.
JUDGED = ("degradation", "guidance", "guidance_interval", "frontier")


@dataclass(frozen=True)
class Plan:
    """How an experiment is to be run.

    Attributes:
        quick: Whether a quick look is asked for.
        seed: Of all noise.
        samples: Samples of each row where they are judged; None is the size of the table.
        progress: Whether bars are shown.
    """

    quick: bool = False
    seed: int = 0
    samples: int | None = None
    progress: bool = False

    def sizes(self, name: str) -> dict[str, Any]:
        """The experiment's sizes."""
        sizes = dict(SIZES[name][self.quick])
        if self.samples is not None and name in JUDGED:
            sizes["samples"] = self.samples
        return sizes


@dataclass(frozen=True)
class Experiment:
    """One experiment of the report.

    Attributes:
        title: Its heading.
        question: What it shows and how to read it.
        run: Measures.
        draw: Draws what was measured.
        tell: Says it in sentences.
        unfit: Why it cannot be run on a subject; None or empty if it can.
    """

    title: str
    question: str
    run: Callable[[Subject, Plan], Any]
    draw: Callable[[Any], Figure]
    tell: Callable[[Any], list[str]]
    unfit: Callable[[Subject], str | None] = field(default=lambda subject: None)


def too_few_samples(names: Sequence[str], subject: Subject, plan: Plan) -> str:
    """Why the samples of these experiments cannot be judged; empty if they can."""
    judge = subject.features
    if judge is None:
        return ""
    count = judge.feature_count if isinstance(judge, Judge) else subject.reference.mean.size if subject.reference else 0
    drawn = [plan.sizes(name)["samples"] for name in names if name in JUDGED]
    if not drawn or min(drawn) > count:
        return ""
    return f"samples must be more than the {count} features, or their covariance is singular: got {min(drawn)}"


def _reproducibility(subject: Subject, plan: Plan) -> Any:
    samplers = _flow_samplers(subject)
    return reproducibility(
        subject.engine, **plan.sizes("reproducibility"), samplers=samplers, seed=plan.seed, progress=plan.progress
    )


def _degradation(subject: Subject, plan: Plan) -> Any:
    sizes = plan.sizes("degradation")
    total = _total(subject)
    steps = [count for count in sizes["steps"] if count < total]
    if total <= max(sizes["steps"]) or not steps:
        steps = [total, *steps]
    samplers = ("euler",) if subject.engine.info.schedule.is_flow else SAMPLERS
    fitting = [one for one in samplers if steps[0] < total or total > MOST_STEPS.get(one, 0)]
    return step_degradation(
        subject.engine,
        samples=sizes["samples"],
        steps=steps,
        samplers=fitting,
        features=subject.features,
        reference=subject.reference,
        seed=plan.seed,
        progress=plan.progress,
    )


def _smoothness(subject: Subject, plan: Plan) -> Any:
    samplers = _flow_samplers(subject)
    return interpolation_smoothness(
        subject.engine, **plan.sizes("smoothness"), samplers=samplers, seed=plan.seed, progress=plan.progress
    )


def _paths(_subject: Subject, plan: Plan) -> Any:
    return paths(**plan.sizes("paths"), seed=plan.seed, progress=plan.progress)


def _round_trip(subject: Subject, plan: Plan, *, told: bool) -> Any:
    sizes = plan.sizes("round_trip_told" if told else "round_trip")
    images, labels = _images_to_encode(subject, sizes["images"], plan)
    total = _total(subject)
    return round_trip(
        subject.engine,
        images,
        steps=[count for count in sizes["steps"] if count <= total] or [total],
        refinements=sizes["refinements"],
        cond=labels if told else None,
        progress=plan.progress,
    )


def _guidance(subject: Subject, plan: Plan) -> Any:
    sizes = plan.sizes("guidance")
    if subject.engine.info.schedule.is_flow:
        sizes["variants"] = {}
    elif sizes["variants"] is VARIANTS:
        sizes["variants"] = None
    return guidance_sweep(
        subject.engine,
        **{**sizes, "steps": _fitting(subject, sizes["steps"])},
        sampler=_ode_sampler(subject),
        features=subject.features,
        reference=subject.reference,
        seed=plan.seed,
        progress=plan.progress,
    )


def _guidance_interval(subject: Subject, plan: Plan) -> Any:
    sizes = plan.sizes("guidance_interval")
    usual = float(subject.engine.info.defaults.get("guidance_scale", 1.0))
    return interval_saving(
        subject.engine,
        **{**sizes, "steps": _fitting(subject, sizes["steps"])},
        guidance_scale=3.0 if usual in (0.0, 1.0) else usual,
        sampler=_ode_sampler(subject),
        features=subject.features,
        reference=subject.reference,
        seed=plan.seed,
        progress=plan.progress,
    )


def _frontier(subject: Subject, plan: Plan) -> Any:
    sizes = plan.sizes("frontier")
    return frontier(
        subject.engine,
        student=subject.student,
        features=subject.features,
        reference=subject.reference,
        samples=sizes["samples"],
        latency_repeats=sizes["latency_repeats"],
        configurations=_frontier_configurations(subject, sizes["ddpm_steps"]),
        flops_per_pass=subject.flops,
        student_flops_per_pass=subject.student_flops,
        seed=plan.seed,
        progress=plan.progress,
    )


def _frontier_configurations(subject: Subject, ddpm_steps: int) -> list[SamplerChoice] | None:
    """None, for all that ``frontier`` takes by itself, unless DDPM is not to run in full: fewer of the others then."""
    info, total = subject.engine.info, _total(subject)
    if info.schedule.is_flow or ddpm_steps >= total:
        return None
    scale = float(info.defaults.get("guidance_scale", 1.0)) if in_turn(info, 1) else 1.0
    few: list[tuple[str, int, float]] = [("ddpm", ddpm_steps, 1.0), ("ddpm_strided", 50, 1.0), ("ddim", 50, 1.0)]
    few += [("ddim", steps, scale) for steps in (10, 20, 50)] + [("dpmpp_2m", 10, scale)]
    return [(name, {"steps": steps, "guidance_scale": one}) for name, steps, one in dict.fromkeys(few) if steps < total]


def _images_to_encode(subject: Subject, count: int, plan: Plan) -> tuple[Any, list[int] | None]:
    """Real images spread over all there are, so over the classes; the model's own samples where there are none."""
    info = subject.engine.info
    if subject.real is None:
        labels = in_turn(info, count)
        images = subject.engine.sample(count, cond=labels, seed=plan.seed, progress=plan.progress)
    else:
        chosen = np.linspace(0, len(subject.real) - 1, min(count, len(subject.real))).round().astype(int)
        images = subject.real[chosen]
        known = None if subject.real_labels is None else [int(label) for label in subject.real_labels[chosen]]
        labels = known if known and class_labels(info, known, len(known)) is not None else None
    return (np.clip(images, *info.data_range) if info.range_known else images), labels


def _flow_samplers(subject: Subject) -> list[SamplerChoice] | None:
    """The one sampler of a flow; None leaves the choice to the experiment."""
    info = subject.engine.info
    return [("euler", {"steps": default_steps(info, "euler")})] if info.schedule.is_flow else None


def _ode_sampler(subject: Subject) -> str:
    return "euler" if subject.engine.info.schedule.is_flow else "ddim"


def _total(subject: Subject) -> int:
    return subject.engine.info.schedule.num_train_timesteps


def _fitting(subject: Subject, steps: int | None) -> int | None:
    return None if steps is None else min(steps, _total(subject))


def _no_classes(subject: Subject) -> str | None:
    return None if in_turn(subject.engine.info, 1) else "the model names no classes to guide by"


def _no_way_back(subject: Subject) -> str | None:
    return "a flow has no DDIM inversion" if subject.engine.info.schedule.is_flow else None


def _nothing_to_tell(subject: Subject) -> str | None:
    if not in_turn(subject.engine.info, 1):
        return "the model names no classes to be told"
    if subject.real is not None and subject.real_labels is None:
        return "the classes of the real samples are not known"
    return _no_way_back(subject)


EXPERIMENTS: Mapping[str, Experiment] = {
    "reproducibility": Experiment(
        "Reproducibility",
        "One starting noise, drawn again and again, each time in a call of its own. A deterministic sampler returns the"
        " same bits; a stochastic one does too if its step noise has the same seed, and something else if not.",
        _reproducibility,
        draw_reproducibility,
        findings.of_reproducibility,
    ),
    "degradation": Experiment(
        "Step degradation",
        "The same samples at falling step counts, without guidance. Left: how far they move from the full run; right,"
        " where samples are judged: how far they move from real data.",
        _degradation,
        draw_degradation,
        findings.of_degradation,
    ),
    "smoothness": Experiment(
        "Interpolation",
        "A walk between two noises, drawn several times. If nothing random is added on the way, neighbouring frames are"
        " alike and every run is the same walk.",
        _smoothness,
        draw_smoothness,
        findings.of_smoothness,
    ),
    "paths": Experiment(
        "Paths in two dimensions",
        "How samplers get from noise to data, on a mixture of Gaussians whose noise prediction is exact, so that what"
        " differs is the sampler's own. This experiment does not use the model.",
        _paths,
        draw_paths,
        findings.of_paths,
    ),
    "round_trip": Experiment(
        "Encoding and back, told nothing",
        "Images are encoded to the noise that generates them, and drawn from it again. A refinement is one more network"
        " pass a step on the way there.",
        lambda subject, plan: _round_trip(subject, plan, told=False),
        draw_round_trip,
        findings.of_round_trip,
        _no_way_back,
    ),
    "round_trip_told": Experiment(
        "Encoding and back, told the class",
        "The same, with the network told what each image is, both ways.",
        lambda subject, plan: _round_trip(subject, plan, told=True),
        draw_round_trip,
        findings.of_round_trip,
        _nothing_to_tell,
    ),
    "guidance": Experiment(
        "Guidance",
        "The same samples at each guidance scale. Up to a point it makes them easier to name; more of it takes their"
        " variety, and then saturates them.",
        _guidance,
        draw_guidance_sweep,
        findings.of_guidance,
        _no_classes,
    ),
    "guidance_interval": Experiment(
        "Guidance in an interval",
        "Guidance at middle noise levels alone (Kynkäänniemi et al., 2024): elsewhere the unconditional pass is not"
        " computed.",
        _guidance_interval,
        draw_interval_saving,
        findings.of_interval,
        _no_classes,
    ),
    "frontier": Experiment(
        "The latency-quality frontier",
        "What each way to sample costs, and what it gives: latency of one sample drawn alone, network passes and"
        " operations a sample, and distance to real data where samples are judged.",
        _frontier,
        draw_frontier,
        findings.of_frontier,
    ),
}
