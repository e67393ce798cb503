"""What a model costs on one's own machine; ``stepfuse.bench`` is the call."""

from stepfuse.benchmarking.benchmark import bench
from stepfuse.benchmarking.comparison import Compared, Comparison, compare
from stepfuse.benchmarking.result import BenchResult, Case, Configuration, Error, Load, Start

__all__ = [
    "BenchResult",
    "Case",
    "Compared",
    "Comparison",
    "Configuration",
    "Error",
    "Load",
    "Start",
    "bench",
    "compare",
]
