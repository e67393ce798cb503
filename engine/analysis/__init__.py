"""stepfuse.analysis: experiments that measure what an engine's samples are worth, on any bundle."""

if __name__ != "stepfuse.analysis":
    raise ImportError(f"this folder installs as 'stepfuse.analysis': import that, not {__name__!r}")

from stepfuse.analysis.degradation import Degradation, draw_degradation, step_degradation
from stepfuse.analysis.figures import save_figure
from stepfuse.analysis.flops import flops_of
from stepfuse.analysis.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.frontier import Frontier, FrontierRow, default_configurations, frontier
from stepfuse.analysis.frontier_figure import draw_frontier
from stepfuse.analysis.guidance import GuidanceSweep, draw_guidance_sweep, guidance_sweep
from stepfuse.analysis.interval import IntervalSaving, draw_interval_saving, interval_saving
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.judge_folder import write_judge
from stepfuse.analysis.mixture import GaussianMixture
from stepfuse.analysis.orderings import Ordering, broken_orderings, orderings
from stepfuse.analysis.paths import Paths, paths
from stepfuse.analysis.paths_figure import draw_paths
from stepfuse.analysis.report import analyze
from stepfuse.analysis.reproducibility import Reproducibility, draw_reproducibility, reproducibility
from stepfuse.analysis.roundtrip import RoundTrip, draw_round_trip, round_trip
from stepfuse.analysis.smoothness import Smoothness, draw_smoothness, interpolation_smoothness

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
    "reproducibility",
    "round_trip",
    "save_figure",
    "step_degradation",
    "write_judge",
]
