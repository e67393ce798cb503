"""stepfuse.analysis: experiments that measure what an engine's samples are worth, on any bundle."""

if __name__ != "stepfuse.analysis":
    raise ImportError(f"this folder installs as 'stepfuse.analysis': import that, not {__name__!r}")

from stepfuse.analysis.degradation import Degradation, draw_degradation, step_degradation
from stepfuse.analysis.figures import save_figure
from stepfuse.analysis.flops import flops_of
from stepfuse.analysis.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.judge_folder import write_judge
from stepfuse.analysis.mixture import GaussianMixture
from stepfuse.analysis.reproducibility import Reproducibility, draw_reproducibility, reproducibility
from stepfuse.analysis.roundtrip import RoundTrip, draw_round_trip, round_trip
from stepfuse.analysis.smoothness import Smoothness, draw_smoothness, interpolation_smoothness

__all__ = [
    "Degradation",
    "FeatureFunction",
    "GaussianMixture",
    "Judge",
    "Reproducibility",
    "RoundTrip",
    "Smoothness",
    "Statistics",
    "draw_degradation",
    "draw_reproducibility",
    "draw_round_trip",
    "draw_smoothness",
    "flops_of",
    "frechet_distance",
    "interpolation_smoothness",
    "reproducibility",
    "round_trip",
    "save_figure",
    "step_degradation",
    "write_judge",
]
