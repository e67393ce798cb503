"""Sentences made of numbers: signs, plurals, zeros, one step, one row, and what is missing."""

from pathlib import Path

import numpy as np
import pytest

from stepfuse.analysis.experiments.degradation import Degradation, DegradationRow
from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow
from stepfuse.analysis.experiments.guidance import PLAIN, GuidanceRow, GuidanceSweep
from stepfuse.analysis.experiments.guidance_interval import IntervalRow, IntervalSaving
from stepfuse.analysis.experiments.reproducibility import Reproducibility, ReproducibilityRow
from stepfuse.analysis.experiments.round_trip import RoundTrip, RoundTripRow
from stepfuse.analysis.experiments.smoothness import Smoothness, SmoothnessRow
from stepfuse.analysis.experiments.wording import plural, saving, short
from stepfuse.analysis.report import findings
from stepfuse.analysis.report.catalog import EXPERIMENTS
from stepfuse.analysis.report.page import page
from stepfuse.analysis.report.records import read_records
from stepfuse.analysis.report.redraw import read_result

NONE = np.empty((0, 1, 1, 1), np.float32)
RANGE = (-1.0, 1.0)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.58, "saves 58% of the time"),
        (-0.58, "takes 58% more of the time"),
        (0.0, "saves nothing of the time"),
        (-0.001, "saves nothing of the time"),
        (1.0, "saves 100% of the time"),
        (-2.0, "takes 200% more of the time"),
    ],
)
def test_a_saving_has_no_sign(share, text):
    assert saving(share, "the time") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (0.05, "0.05"), (12.345, "12.3"), (1234.5, "1234"), (-1500, "-1500"), (2e7, "2e+07")],
)
def test_a_number_has_three_digits_and_rarely_an_exponent(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("value", "text"), [(99.4, "99"), (99.96, "100"), (150.4, "150"), (0.0512, "0.051")])
def test_two_digits_have_no_exponent_either(value, text):
    assert short(value, 2) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 passes"), (1, "1 pass"), (1.0, "1 pass"), (0.99999, "1 pass"), (1.5, "1.5 passes"), (1000, "1000 passes")],
)
def test_the_written_number_decides_the_noun(count, text):
    assert plural(count, "pass", "passes") == text


def interval(everywhere, inside):
    rows = [
        IntervalRow(limits, steps, passes, seconds, None, None)
        for limits, (steps, passes, seconds) in zip([(0.0, 1.0), (0.2, 0.8)], (everywhere, inside), strict=True)
    ]
    return findings.of_interval(IntervalSaving(tuple(rows), "ddim", 1, 3.0, 1, 1, 0, RANGE, NONE))[0]


def test_an_interval_that_takes_longer_says_so():
    assert interval((50, 100.0, 1.0), (30, 80.0, 1.58)) == (
        "DDIM 1 step, guidance 3 in 0.2 to 0.8 alone: 80 network passes a sample instead of 100, which saves 20% of the"
        " passes and takes 58% more of the time."
    )
    assert interval((1, 2.0, 1.0), (0, 1.0, 1.0)).endswith(
        "1 network pass a sample instead of 2, which saves 50% of the passes and saves nothing of the time."
    )


def degradation(*rows):
    return findings.of_degradation(Degradation(tuple(rows), 1, 1.0, 0, None, RANGE, NONE))


def test_a_full_run_is_not_compared_with_itself():
    full, half = (
        DegradationRow("ddim", steps, steps, error, "DDIM 2 steps", None, None) for steps, error in ((2, 0.0), (1, 0.5))
    )
    assert degradation(full, half) == ["DDIM: MSE to DDIM 2 steps 0.5 in 1 step."]
    assert degradation(full) == ["DDIM: 2 steps alone, so there is no other run to compare with."]


def test_a_distance_of_zero_is_not_divided_by():
    rows = [
        DegradationRow("ddim", steps, steps, 0.0, "DDIM 2 steps", distance, None)
        for steps, distance in ((2, 0.0), (1, 3.0))
    ]
    assert degradation(*rows) == ["DDIM: Fréchet distance 0 in 2, 3 in 1 step."]
    rows = [
        DegradationRow("ddim", steps, steps, 0.0, "DDIM 2 steps", distance, None)
        for steps, distance in ((2, 2.0), (1, 300.0))
    ]
    assert degradation(*rows) == ["DDIM: Fréchet distance 2 in 2, 300 in 1 step (150 times the first)."]


def test_one_sampler_is_not_compared_with_another():
    row = SmoothnessRow("ddim", "eta 0", 1, 0.0, 0.0, 0.0)
    assert findings.of_smoothness(Smoothness((row,), (), 2, 2, "slerp", 0, "", RANGE, NONE)) == [
        "Mean MSE between neighbouring frames: 0 with DDIM 1 step, eta 0.",
        "Variance across 2 walks, DDIM 1 step, eta 0: exactly 0.",
    ]


def test_one_image_has_no_worst_and_one_row_no_list():
    row = RoundTripRow("ddim", 1, 1, 3.0, 0.25, 0.25, 1.0)
    assert findings.of_round_trip(RoundTrip((row,), 1, False, 1.0, RANGE, NONE, NONE, NONE)) == [
        "DDIM 1 + 1 steps: 1 image comes back with a mean squared error of 0.25, 1 refinement a step, 3 network passes"
        " both ways."
    ]


def test_one_guidance_scale_is_not_said_twice():
    row = GuidanceRow(PLAIN, 1.0, "ddim", 10, 10.0, None, None, 0.0, 0.5)
    assert findings.of_guidance(GuidanceSweep((row,), 1, 0, None, RANGE, NONE)) == [
        "DDIM 10 steps, guidance 1: 0.0% of all values lie beyond the data range."
    ]


def test_two_runs_are_one_pair_without_a_spread():
    row = ReproducibilityRow("ddpm", "", 10, "different", 0.1, 0.2, 0.0, False)
    assert findings.of_reproducibility(Reproducibility((row,), 2, 0, "", RANGE, NONE)) == [
        "DDPM 10 steps, with other seeds for the step noise: an MSE of 0.2 between two of 2 runs."
    ]


def test_a_frontier_of_one_pass_has_one_pass():
    row = FrontierRow("distilled 1", "student", "ddim", 1, "", 1.0, 1.0, 1234.5, 1.0, None, None, None)
    assert findings.of_frontier(Frontier((row,), 1, 1, 1.0, 0, RANGE)) == [
        "Fastest: distilled 1, 1234 ms a sample, 1 network pass."
    ]


REPORT = Path(__file__).parents[4] / "docs" / "analysis"
RECORDS = {record["experiment"]: record for record in read_records(REPORT)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_findings_are_of_the_committed_rows(name):
    record, experiment = RECORDS[name], EXPERIMENTS[name]
    assert record["findings"] == experiment.summarize(read_result(REPORT, record))
    assert (record["title"], record["question"]) == (experiment.title, experiment.question)


def test_the_committed_page_is_of_the_committed_records():
    assert (REPORT / "report.md").read_text() == page(list(RECORDS.values()), "fashion")
