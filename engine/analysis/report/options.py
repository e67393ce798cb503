"""The options of a report, and the sizes that they give each experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepfuse.analysis.experiments.guidance import SCALES, VARIANTS
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.report.subject import Subject

#: Sizes of each experiment: the default ones and the quick ones. An experiment whose samples are judged needs more
#: samples than there are features: 64, for the embedded judge.
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
    "round_trip_conditioned": (
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
class ReportOptions:
    """How the experiments of a report are run.

    Attributes:
        quick: Whether they run at the quick sizes.
        seed: Seed of all noise.
        samples: Samples of each row where they are judged; None is what ``SIZES`` says.
        progress: Whether progress bars are shown.
    """

    quick: bool = False
    seed: int = 0
    samples: int | None = None
    progress: bool = False

    def sizes(self, name: str) -> dict[str, Any]:
        """The sizes of an experiment, by its name."""
        sizes = dict(SIZES[name][self.quick])
        if self.samples is not None and name in JUDGED:
            sizes["samples"] = self.samples
        return sizes


def too_few_samples(names: Sequence[str], subject: Subject, options: ReportOptions) -> str:
    """Why the named experiments have too few samples to be judged; empty if they have enough."""
    judge = subject.features
    if judge is None:
        return ""
    count = judge.feature_count if isinstance(judge, Judge) else subject.reference.mean.size if subject.reference else 0
    counts = [options.sizes(name)["samples"] for name in names if name in JUDGED]
    if not counts or min(counts) > count:
        return ""
    return f"samples must be more than the {count} features, or their covariance is singular: got {min(counts)}"
