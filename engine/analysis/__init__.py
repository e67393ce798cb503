"""stepfuse.analysis: experiments that measure the quality and the cost of an engine's samples, on any bundle."""

if __name__ != "stepfuse.analysis":
    raise ImportError(f"this folder installs as 'stepfuse.analysis': import that, not {__name__!r}")

from stepfuse.analysis.experiments.degradation import Degradation, step_degradation
from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow, default_configurations, frontier
from stepfuse.analysis.experiments.guidance import GuidanceSweep, guidance_sweep
from stepfuse.analysis.experiments.guidance_interval import IntervalSaving, interval_saving
from stepfuse.analysis.experiments.mixture import GaussianMixture
from stepfuse.analysis.experiments.orderings import Ordering, broken_orderings, orderings
from stepfuse.analysis.experiments.paths import Paths, paths
from stepfuse.analysis.experiments.reproducibility import Reproducibility, reproducibility
from stepfuse.analysis.experiments.round_trip import RoundTrip, round_trip
from stepfuse.analysis.experiments.smoothness import Smoothness, interpolation_smoothness
from stepfuse.analysis.figures.degradation import draw_degradation
from stepfuse.analysis.figures.frontier import draw_frontier
from stepfuse.analysis.figures.guidance import draw_guidance_sweep
from stepfuse.analysis.figures.guidance_interval import draw_interval_saving
from stepfuse.analysis.figures.paths import draw_paths
from stepfuse.analysis.figures.reproducibility import draw_reproducibility
from stepfuse.analysis.figures.round_trip import draw_round_trip
from stepfuse.analysis.figures.smoothness import draw_smoothness
from stepfuse.analysis.figures.style import save_figure
from stepfuse.analysis.measures.flops import flops_of
from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.measures.judge_writer import write_judge
from stepfuse.analysis.report.redraw import redraw
from stepfuse.analysis.report.runner import analyze

__all__ = [
    "Degradation",
    "FeatureFunction",
    "Frontier",
    "FrontierRow",
    "GaussianMixture",
    "GuidanceSweep",
    "IntervalSaving",
    "Judge",
    "Ordering",
    "Paths",
    "Reproducibility",
    "RoundTrip",
    "Smoothness",
    "Statistics",
    "analyze",
    "broken_orderings",
    "default_configurations",
    "draw_degradation",
    "draw_frontier",
    "draw_guidance_sweep",
    "draw_interval_saving",
    "draw_paths",
    "draw_reproducibility",
    "draw_round_trip",
    "draw_smoothness",
    "flops_of",
    "frechet_distance",
    "frontier",
    "guidance_sweep",
    "interpolation_smoothness",
    "interval_saving",
    "orderings",
    "paths",
    "redraw",
    "reproducibility",
    "round_trip",
    "save_figure",
    "step_degradation",
    "write_judge",
]
