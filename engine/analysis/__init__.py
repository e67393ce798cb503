"""stepfuse.analysis: experiments that measure what an engine's samples are worth, on any bundle."""

if __name__ != "stepfuse.analysis":
    raise ImportError(f"this folder installs as 'stepfuse.analysis': import that, not {__name__!r}")

from stepfuse.analysis.flops import flops_of
from stepfuse.analysis.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.judge_folder import write_judge

__all__ = [
    "FeatureFunction",
    "Judge",
    "Statistics",
    "flops_of",
    "frechet_distance",
    "write_judge",
]
