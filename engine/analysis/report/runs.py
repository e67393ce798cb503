"""How each experiment of a report is run on a subject: sizes, samplers and images that fit the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepfuse.analysis.experiments.degradation import MOST_STEPS, SAMPLERS, step_degradation
from stepfuse.analysis.experiments.frontier import frontier
from stepfuse.analysis.experiments.guidance import VARIANTS, guidance_sweep
from stepfuse.analysis.experiments.guidance_interval import interval_saving
from stepfuse.analysis.experiments.paths import paths
from stepfuse.analysis.experiments.reproducibility import reproducibility
from stepfuse.analysis.experiments.round_trip import round_trip
from stepfuse.analysis.experiments.sampling import SamplerChoice, class_labels, cycled_classes
from stepfuse.analysis.experiments.smoothness import interpolation_smoothness
from stepfuse.analysis.report.options import ReportOptions
from stepfuse.analysis.report.subject import Subject
from stepfuse.requests.sampler_defaults import default_steps


def run_reproducibility(subject: Subject, options: ReportOptions) -> Any:
    """Runs from one starting noise; a flow has Euler alone."""
    samplers = _flow_samplers(subject)
    return reproducibility(
        subject.engine,
        **options.sizes("reproducibility"),
        samplers=samplers,
        seed=options.seed,
        progress=options.progress,
    )


def run_degradation(subject: Subject, options: ReportOptions) -> Any:
    """Falling step counts as far as the schedule goes; all of T where it is shorter than the longest."""
    sizes = options.sizes("degradation")
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
        **_judged(subject, options),
    )


def run_smoothness(subject: Subject, options: ReportOptions) -> Any:
    """Interpolations between two noises; a flow has Euler alone."""
    samplers = _flow_samplers(subject)
    return interpolation_smoothness(
        subject.engine, **options.sizes("smoothness"), samplers=samplers, seed=options.seed, progress=options.progress
    )


def run_paths(_subject: Subject, options: ReportOptions) -> Any:
    """The paths in two dimensions, which do not depend on the model."""
    return paths(**options.sizes("paths"), seed=options.seed, progress=options.progress)


def run_round_trip(subject: Subject, options: ReportOptions, *, conditioned: bool) -> Any:
    """Encoding and back, conditioned on the classes of the images or unconditional."""
    sizes = options.sizes("round_trip_conditioned" if conditioned else "round_trip")
    images, labels = _images_to_encode(subject, sizes["images"], options)
    total = _total(subject)
    return round_trip(
        subject.engine,
        images,
        steps=[count for count in sizes["steps"] if count <= total] or [total],
        refinements=sizes["refinements"],
        cond=labels if conditioned else None,
        progress=options.progress,
    )


def run_guidance(subject: Subject, options: ReportOptions) -> Any:
    """The sweep over guidance scales, with the variants that the sampler has."""
    sizes = options.sizes("guidance")
    if subject.engine.info.schedule.is_flow:
        sizes["variants"] = {}
    elif sizes["variants"] is VARIANTS:
        sizes["variants"] = None
    return guidance_sweep(
        subject.engine,
        **{**sizes, "steps": _fitting(subject, sizes["steps"])},
        sampler=_ode_sampler(subject),
        **_judged(subject, options),
    )


def run_guidance_interval(subject: Subject, options: ReportOptions) -> Any:
    """Guidance in an interval, at the model's default scale or at 3 if that is 0 or 1."""
    sizes = options.sizes("guidance_interval")
    usual = float(subject.engine.info.defaults.get("guidance_scale", 1.0))
    return interval_saving(
        subject.engine,
        **{**sizes, "steps": _fitting(subject, sizes["steps"])},
        guidance_scale=3.0 if usual in (0.0, 1.0) else usual,
        sampler=_ode_sampler(subject),
        **_judged(subject, options),
    )


def run_frontier(subject: Subject, options: ReportOptions) -> Any:
    """The frontier of the model and its student."""
    sizes = options.sizes("frontier")
    return frontier(
        subject.engine,
        student=subject.student,
        samples=sizes["samples"],
        latency_repeats=sizes["latency_repeats"],
        configurations=_frontier_configurations(subject, sizes["ddpm_steps"]),
        flops_per_pass=subject.flops,
        student_flops_per_pass=subject.student_flops,
        **_judged(subject, options),
    )


def _judged(subject: Subject, options: ReportOptions) -> dict[str, Any]:
    """The arguments that all experiments with judged samples share."""
    return {
        "features": subject.features,
        "reference": subject.reference,
        "seed": options.seed,
        "progress": options.progress,
    }


def _frontier_configurations(subject: Subject, ddpm_steps: int) -> list[SamplerChoice] | None:
    """A shorter list for the quick sizes, where DDPM does not run all T steps; None for the default one."""
    info, total = subject.engine.info, _total(subject)
    if info.schedule.is_flow or ddpm_steps >= total:
        return None
    scale = float(info.defaults.get("guidance_scale", 1.0)) if cycled_classes(info, 1) else 1.0
    few: list[tuple[str, int, float]] = [("ddpm", ddpm_steps, 1.0), ("ddpm_strided", 50, 1.0), ("ddim", 50, 1.0)]
    few += [("ddim", steps, scale) for steps in (10, 20, 50)] + [("dpmpp_2m", 10, scale)]
    return [(name, {"steps": steps, "guidance_scale": one}) for name, steps, one in dict.fromkeys(few) if steps < total]


def _images_to_encode(subject: Subject, count: int, options: ReportOptions) -> tuple[Any, list[int] | None]:
    """Images and labels: real ones spread evenly over all, so over the classes, or the model's own samples."""
    info = subject.engine.info
    if subject.real is None:
        labels = cycled_classes(info, count)
        images = subject.engine.sample(count, cond=labels, seed=options.seed, progress=options.progress)
    else:
        chosen = np.linspace(0, len(subject.real) - 1, min(count, len(subject.real))).round().astype(int)
        images = subject.real[chosen]
        known = None if subject.real_labels is None else [int(label) for label in subject.real_labels[chosen]]
        labels = known if known and class_labels(info, known, len(known)) is not None else None
    return (np.clip(images, *info.data_range) if info.range_known else images), labels


def _flow_samplers(subject: Subject) -> list[SamplerChoice] | None:
    """Euler for a flow; None, for the experiment's default samplers, otherwise."""
    info = subject.engine.info
    return [("euler", {"steps": default_steps(info, "euler")})] if info.schedule.is_flow else None


def _ode_sampler(subject: Subject) -> str:
    return "euler" if subject.engine.info.schedule.is_flow else "ddim"


def _total(subject: Subject) -> int:
    return subject.engine.info.schedule.num_train_timesteps


def _fitting(subject: Subject, steps: int | None) -> int | None:
    return None if steps is None else min(steps, _total(subject))
