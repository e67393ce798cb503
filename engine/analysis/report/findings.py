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
from stepfuse.analysis.experiments.round_trip import RoundTrip
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.smoothness import Smoothness, SmoothnessRow
from stepfuse.analysis.experiments.wording import plural, saving, short

#: The verdict that a page shows in bold, as Markdown has it.
FAILED = "**does not hold**"


def of_reproducibility(result: Reproducibility) -> list[str]:
    """Which samplers return the same bits, and how much the others' runs differ."""
    found = []
    for row in result.rows:
        title = sampler_title(row.sampler, row.steps, row.options)
        seeds = "with other seeds for the step noise" if row.seeds == "different" else "with one seed"
        spread = f" ± {short(row.pairwise_mse_std, 2)}" if result.runs > 2 else ""  # two runs are one pair
        apart = f"an MSE of {short(row.pairwise_mse_mean)}{spread} between two of"
        of = "the same bits in all" if row.bit_identical else apart
        found.append(f"{title}, {seeds}: {of} {result.runs} runs.")
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
            values = _by_steps([(row.distance, row.steps) for row in rows if row.distance is not None])
            more = longest.distance and len(rows) > 1
            ratio = f" ({short(shortest.distance / longest.distance, 2)} times the first)" if more else ""
            found.append(f"{title}: Fréchet distance {values}{ratio}.")
        elif apart := [row for row in rows if sampler_title(row.sampler, row.steps) != row.compared_with]:
            values = _by_steps([(row.mse, row.steps) for row in apart])
            found.append(f"{title}: MSE to {longest.compared_with} {values}.")
        else:
            found.append(f"{title}: {_steps(longest.steps)} alone, so there is no other run to compare with.")
    if result.unrelated_mse is not None:
        found.append(
            f"Full runs from different starting noises have an MSE of {short(result.unrelated_mse)}: where a sampler"
            " adds noise, another step count comes near that, whatever its quality."
        )
    return found


def of_smoothness(result: Smoothness) -> list[str]:
    """The error between neighbouring frames, and whether another run gives the same walk."""
    found = []
    smoothest, *others = sorted(result.rows, key=lambda row: row.neighbour_mse)
    if not others:
        found.append(f"Mean MSE between neighbouring frames: {_smooth(smoothest)}.")
    for other in others:
        ratio = other.neighbour_mse / smoothest.neighbour_mse if smoothest.neighbour_mse else 0.0
        more = f", {short(ratio)} times as much" if ratio else ""
        found.append(f"Mean MSE between neighbouring frames: {_smooth(smoothest)}; {_smooth(other)}{more}.")
    for row in result.rows:
        again = "exactly 0" if row.variance == 0 else short(row.variance)
        title = sampler_title(row.sampler, row.steps, row.options)
        found.append(f"Variance across {result.runs} walks, {title}: {again}.")
    return found


def of_paths(result: Paths) -> list[str]:
    """Length and reversals of the paths, where they end, and whether the start determines the end."""
    found = []
    for row in sorted(result.rows, key=lambda row: row.path_length):
        ends = "the start decides the end" if row.runs_apart == 0 else f"two runs end {short(row.runs_apart)} apart"
        found.append(
            f"{sampler_title(row.sampler, row.steps, row.options)}: path length {short(row.path_length)},"
            f" {plural(row.reversals, 'turn')} back, {ends}; ends {short(row.distance, 2)} from exact draws"
            f" (sliced Wasserstein; exact draws themselves: {short(result.floor, 2)})."
        )
    return found


def of_round_trip(result: RoundTrip) -> list[str]:
    """The error of the round trip at 100 steps, or at the most there are, by refinements."""
    counts = sorted({row.steps for row in result.rows})
    steps = 100 if 100 in counts else counts[-1]
    rows = [row for row in result.rows if row.steps == steps]
    best = min(rows, key=lambda row: row.mse)
    several = result.images_encoded > 1
    come = f"{result.images_encoded} images come" if several else "1 image comes"
    worst = f" ({short(best.mse_worst, 2)} the worst)" if several else ""
    found = [
        f"DDIM {steps} + {steps} steps: {come} back with a mean squared error of {short(best.mse, 2)}{worst},"
        f" {plural(best.refinements, 'refinement')} a step, {_passes(best.passes)} both ways."
    ]
    if len(rows) > 1:
        gains = (
            f"{short(row.mse, 2)} with {plural(row.refinements, 'refinement')} ({_passes(row.passes)})" for row in rows
        )
        found.append(f"At DDIM {steps} + {steps} steps: {', '.join(gains)}.")
    same = [row for row in result.rows if row.refinements == best.refinements]
    if len(same) > 1:
        by_steps = ", ".join(f"{short(row.mse, 2)} at DDIM {row.steps} + {row.steps}" for row in same)
        found.append(f"With {plural(best.refinements, 'refinement')} a step: {by_steps}.")
    return found


def of_guidance(result: GuidanceSweep) -> list[str]:
    """The scale of least distance, the accuracy by scale, and over-saturation at the largest scale."""
    rows = [row for row in result.rows if row.variant == PLAIN]
    least, most = (pick(rows, key=lambda row: row.guidance_scale) for pick in (min, max))
    of = sampler_title(rows[0].sampler, rows[0].steps)
    found = []
    if (best := result.sweet_spot) is not None and best.distance is not None:
        rest = ", ".join(f"{row.guidance_scale:g}: {short(row.distance)}" for row in rows if row.distance is not None)
        found.append(
            f"{of}: least Fréchet distance {short(best.distance)} at guidance {best.guidance_scale:g} ({rest})."
        )
    if judged := [row for row in rows if row.accuracy is not None]:
        text = ", ".join(f"{row.accuracy:.1%} at {row.guidance_scale:g}" for row in judged)
        real = "" if result.real_accuracy is None else f" (real images: {result.real_accuracy:.1%})"
        found.append(f"Named as asked for: {text}{real}.")
    other = f"; guidance {least.guidance_scale:g}: {least.beyond_range:.1%}" if least is not most else ""
    found.append(
        f"{of}, guidance {most.guidance_scale:g}: {most.beyond_range:.1%} of all values lie beyond the data"
        f" range{other}."
    )
    for row in result.rows:
        if row.variant != PLAIN:
            distance = "" if row.distance is None else f", Fréchet distance {short(row.distance)}"
            found.append(f"{row.variant} at guidance {row.guidance_scale:g}: {row.beyond_range:.1%} beyond{distance}.")
    return found


def of_interval(result: IntervalSaving) -> list[str]:
    """Passes and time that the interval saves, and its distance and accuracy."""
    everywhere, inside = result.rows
    of = f"{sampler_title(result.sampler, result.steps)}, guidance {result.guidance_scale:g}"
    found = [
        f"{of} in {inside.interval[0]:g} to {inside.interval[1]:g} alone: {_passes(inside.passes)} a sample"
        f" instead of {everywhere.passes:g}, which {saving(result.passes_saved, 'the passes')} and"
        f" {saving(result.seconds_saved, 'the time')}."
    ]
    if everywhere.distance is not None and inside.distance is not None:
        found.append(f"Fréchet distance {short(inside.distance)} instead of {short(everywhere.distance)}.")
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
    distance = "" if row.distance is None else f", Fréchet distance {short(row.distance)}"
    return f"{row.label}, {short(row.latency_ms)} ms a sample, {_passes(row.passes)}{distance}"


def _by_steps(values: Sequence[tuple[float, int]]) -> str:
    """Such as ``12.1 in 50, 14.2 in 25 steps``."""
    *others, (last, steps) = values
    return ", ".join([*(f"{short(value)} in {count}" for value, count in others), f"{short(last)} in {_steps(steps)}"])


def _smooth(row: SmoothnessRow) -> str:
    return f"{short(row.neighbour_mse)} with {sampler_title(row.sampler, row.steps, row.options)}"


def _steps(count: int) -> str:
    return plural(count, "step")


def _passes(count: float) -> str:
    return plural(count, "network pass", "network passes")
