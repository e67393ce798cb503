"""The findings of each experiment in sentences that state what was measured; the first one is the headline."""

from __future__ import annotations

from collections.abc import Sequence

from stepfuse.analysis.experiments.degradation import Degradation
from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow
from stepfuse.analysis.experiments.guidance import PLAIN, GuidanceSweep
from stepfuse.analysis.experiments.guidance_interval import IntervalSaving
from stepfuse.analysis.experiments.orderings import orderings
from stepfuse.analysis.experiments.paths import Paths
from stepfuse.analysis.experiments.reproducibility import Reproducibility
from stepfuse.analysis.experiments.round_trip import RoundTrip, refinements_text
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.smoothness import Smoothness

#: The verdict that a page shows in bold, as Markdown has it.
FAILED = "**does not hold**"


def of_reproducibility(result: Reproducibility) -> list[str]:
    """Which samplers return the same bits, and how much the others' runs differ."""
    found = []
    for row in result.rows:
        title = sampler_title(row.sampler, row.steps, row.options)
        seeds = "with other seeds for the step noise" if row.seeds == "different" else "with one seed"
        spread = f"an MSE of {row.pairwise_mse_mean:.3g} ± {row.pairwise_mse_std:.2g} between two of"
        apart = "the same bits in all" if row.bit_identical else spread
        found.append(f"{title}, {seeds}: {apart} {result.runs} runs.")
    return found


def of_degradation(result: Degradation) -> list[str]:
    """Each sampler from its longest run to its shortest, by distance where there is one, DDIM first."""
    samplers = list(dict.fromkeys(row.sampler for row in result.rows))
    found = []
    for sampler in sorted(samplers, key=lambda name: name != "ddim"):
        rows = [row for row in result.rows if row.sampler == sampler]
        longest, shortest = rows[0], rows[-1]
        title = sampler_title(sampler)
        if longest.distance is not None and shortest.distance is not None:
            steps = ", ".join(f"{row.distance:.3g} in {row.steps}" for row in rows if row.distance is not None)
            ratio = (
                f" ({shortest.distance / longest.distance:.2g} times the first)"
                if longest.distance and len(rows) > 1
                else ""
            )
            found.append(f"{title}: Fréchet distance {steps} steps{ratio}.")
        else:
            text = ", ".join(f"{row.mse:.3g} in {row.steps}" for row in rows)
            found.append(f"{title}: MSE to {longest.compared_with} {text} steps.")
    if result.unrelated_mse is not None:
        found.append(
            f"Full runs from different starting noises have an MSE of {result.unrelated_mse:.3g}: where a sampler adds"
            " noise, another step count comes near that, whatever its quality."
        )
    return found


def of_smoothness(result: Smoothness) -> list[str]:
    """The error between neighbouring frames, and whether another run gives the same walk."""
    found = []
    smoothest, *others = sorted(result.rows, key=lambda row: row.neighbour_mse)
    for other in others:
        ratio = other.neighbour_mse / smoothest.neighbour_mse if smoothest.neighbour_mse else 0.0
        more = f", {ratio:,.0f} times as much" if ratio > 100 else f", {ratio:.3g} times as much" if ratio else ""
        found.append(
            f"Mean MSE between neighbouring frames: {smoothest.neighbour_mse:.3g} with"
            f" {sampler_title(smoothest.sampler, smoothest.steps, smoothest.options)};"
            f" {other.neighbour_mse:.3g} with {sampler_title(other.sampler, other.steps, other.options)}{more}."
        )
    for row in result.rows:
        again = "exactly 0" if row.variance == 0 else f"{row.variance:.3g}"
        title = sampler_title(row.sampler, row.steps, row.options)
        found.append(f"Variance across {result.runs} walks, {title}: {again}.")
    return found


def of_paths(result: Paths) -> list[str]:
    """Length and reversals of the paths, where they end, and whether the start determines the end."""
    found = []
    for row in sorted(result.rows, key=lambda row: row.path_length):
        ends = "the start decides the end" if row.runs_apart == 0 else f"two runs end {row.runs_apart:.3g} apart"
        found.append(
            f"{sampler_title(row.sampler, row.steps, row.options)}: path length {row.path_length:.3g},"
            f" {row.reversals:.3g} turns back, {ends}; ends {row.distance:.2g} from exact draws"
            f" (sliced Wasserstein; exact draws themselves: {result.floor:.2g})."
        )
    return found


def of_round_trip(result: RoundTrip) -> list[str]:
    """The error of the round trip at 100 steps, or at the most there are, by refinements."""
    counts = sorted({row.steps for row in result.rows})
    steps = 100 if 100 in counts else counts[-1]
    rows = [row for row in result.rows if row.steps == steps]
    best = min(rows, key=lambda row: row.mse)
    found = [
        f"DDIM {steps} + {steps} steps: {result.images_encoded} images come back with a mean squared error of"
        f" {best.mse:.2g} ({best.mse_worst:.2g} the worst), {refinements_text(best.refinements)} a step,"
        f" {best.passes:g} passes both ways."
    ]
    gains = ", ".join(f"{row.mse:.2g} with {refinements_text(row.refinements)} ({row.passes:g} passes)" for row in rows)
    found.append(f"At DDIM {steps} + {steps} steps: {gains}.")
    few = [row for row in result.rows if row.refinements == best.refinements]
    by_steps = ", ".join(f"{row.mse:.2g} at DDIM {row.steps} + {row.steps}" for row in few)
    found.append(f"With {refinements_text(best.refinements)} a step: {by_steps}.")
    return found


def of_guidance(result: GuidanceSweep) -> list[str]:
    """The scale of least distance, the accuracy by scale, and over-saturation at the largest scale."""
    rows = [row for row in result.rows if row.variant == PLAIN]
    most = max(rows, key=lambda row: row.guidance_scale)
    of = sampler_title(rows[0].sampler, rows[0].steps)
    found = []
    if (best := result.sweet_spot) is not None and best.distance is not None:
        rest = ", ".join(f"{row.guidance_scale:g}: {row.distance:.3g}" for row in rows if row.distance is not None)
        found.append(f"{of}: least Fréchet distance {best.distance:.3g} at guidance {best.guidance_scale:g} ({rest}).")
    if judged := [row for row in rows if row.accuracy is not None]:
        text = ", ".join(f"{row.accuracy:.1%} at {row.guidance_scale:g}" for row in judged)
        real = "" if result.real_accuracy is None else f" (real images: {result.real_accuracy:.1%})"
        found.append(f"Named as asked for: {text}{real}.")
    found.append(
        f"{of}, guidance {most.guidance_scale:g}: {most.beyond_range:.1%} of all values lie beyond the data range;"
        f" guidance {rows[0].guidance_scale:g}: {rows[0].beyond_range:.1%}."
    )
    for row in result.rows:
        if row.variant != PLAIN:
            distance = "" if row.distance is None else f", Fréchet distance {row.distance:.3g}"
            found.append(f"{row.variant} at guidance {row.guidance_scale:g}: {row.beyond_range:.1%} beyond{distance}.")
    return found


def of_interval(result: IntervalSaving) -> list[str]:
    """Passes and time that the interval saves, and its distance and accuracy."""
    everywhere, inside = result.rows
    of = f"{sampler_title(result.sampler, result.steps)}, guidance {result.guidance_scale:g}"
    found = [
        f"{of} in {inside.interval[0]:g} to {inside.interval[1]:g} alone: {inside.passes:g} network passes a sample"
        f" instead of {everywhere.passes:g}, which saves {result.passes_saved:.0%} of the passes and"
        f" {result.seconds_saved:.0%} of the time."
    ]
    if everywhere.distance is not None and inside.distance is not None:
        found.append(f"Fréchet distance {inside.distance:.3g} instead of {everywhere.distance:.3g}.")
    if everywhere.accuracy is not None and inside.accuracy is not None:
        found.append(f"Named as asked for: {inside.accuracy:.1%} instead of {everywhere.accuracy:.1%}.")
    return found


def of_frontier(result: Frontier) -> list[str]:
    """The fastest and the best row, and whether the expected orderings hold."""
    fastest = min(result.rows, key=lambda row: row.latency_ms)
    found = [f"Fastest: {_row_text(fastest)}."]
    if judged := [row for row in result.rows if row.distance is not None]:
        found.append(f"Nearest to real data: {_row_text(_nearest(judged))}.")
        for one in orderings(result):
            verdict = {True: "holds", False: FAILED, None: "reported"}[one.holds]
            found.append(f"{one.claim}: {one.measured}; {one.wanted}: {verdict}.")
    return found


def _nearest(rows: Sequence[FrontierRow]) -> FrontierRow:
    return min(rows, key=lambda row: row.distance or 0.0)


def _row_text(row: FrontierRow) -> str:
    distance = "" if row.distance is None else f", Fréchet distance {row.distance:.3g}"
    return f"{row.label}, {row.latency_ms:.3g} ms a sample, {row.passes:g} passes{distance}"
