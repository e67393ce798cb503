"""The loop on a virtual clock: whole loads, and what their traces say of order, starvation and cost."""

import collections
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from stepfuse._core import CostCurve, LoopOptions, Policy, Table, replay, rows_worthwhile
from stepfuse.samplers.table import COLUMNS
from stepfuse.serving.config import AGEING

PLAIN = {"s": 1.0, "lo": -np.inf, "hi": np.inf, "q_x": 1.0}  # a step that leaves the state as it is


class Arrival(NamedTuple):
    at: float
    scales: list[float]  # the guidance of each step
    conditioned: bool = True
    priority: int = 0

    @property
    def table(self):
        rows = [[{**PLAIN, "g": g}.get(name, 0.0) for name in COLUMNS] for g in self.scales]
        return Table(np.array(rows, np.float32).reshape(-1, 16), 1.0)

    def rows(self, step=0):
        """Rows of the forward that this step takes."""
        return 2 if self.conditioned and self.scales[step] not in (0.0, 1.0) else 1

    @property
    def passes(self):
        return sum(map(self.rows, range(len(self.scales))))


class Cost(NamedTuple):
    fixed: float = 0.0
    row: float = 1.0


class Row(NamedTuple):
    iteration: int
    began: float
    ended: float
    sample: int
    step: int
    row: int


class Stint(NamedTuple):
    """What a sample did in an iteration that it ran in."""

    iteration: int
    step: int
    rows: int


class Run:
    """A load replayed, and its trace by iteration and by sample.

    ``cost`` is what the clock charges for a forward, ``believed`` what the planner knows of it.
    """

    def __init__(self, load, max_rows, *, cost=Cost(), believed=None, **options):  # noqa: B008
        believed = CostCurve() if believed is None else CostCurve(*believed)
        options = LoopOptions(**{"max_running": 100, "cost": believed, **options})
        tables, conditioned = [one.table for one in load], [one.conditioned for one in load]
        at, priorities = [one.at for one in load], [one.priority for one in load]
        found = replay(tables, at, conditioned, priorities, max_rows, options, CostCurve(*cost), trace=True)
        self.began, self.finished, self.counters = found["began"], found["finished"], found["counters"]
        self.trace = [Row(*entry) for entry in found["trace"]]
        self.iterations = [list(rows) for _, rows in itertools.groupby(self.trace, key=lambda row: row.iteration)]
        self.stints = [[] for _ in load]
        for (sample, iteration, step), rows in collections.Counter(
            (r.sample, r.iteration, r.step) for r in self.trace
        ).items():
            self.stints[sample].append(Stint(iteration, step, rows))

    def first_iteration(self, sample):
        return self.stints[sample][0].iteration

    def last_iteration(self, sample):
        return self.stints[sample][-1].iteration

    def next_step(self, sample, iteration):
        """The step that a sample that has not ended is to do when this iteration begins."""
        return next(stint.step for stint in self.stints[sample] if stint.iteration >= iteration)


guidance = st.lists(st.sampled_from([0.0, 1.0, 3.0, 3.0]), min_size=1, max_size=8)
unguided = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8)


@st.composite
def loads(draw, scales=guidance, gaps=st.sampled_from([0.0, 0.0, 0.5, 2.0, 7.0]), priorities=st.just(0)):  # noqa: B008
    """Arrivals that often come together, and often while a forward runs."""
    times = itertools.accumulate(draw(st.lists(gaps, min_size=1, max_size=12)))
    return [Arrival(at, draw(scales), draw(st.integers(0, 3)) > 0, draw(priorities)) for at in times]


costs = st.builds(Cost, st.sampled_from([0.0, 1.0, 8.0]), st.sampled_from([1.0, 2.0]))
servings = st.fixed_dictionaries(
    {
        "max_rows": st.integers(2, 7),
        "cost": costs,
        "believed": st.none() | costs,
        "policy": st.sampled_from([Policy.FirstCome, Policy.ShortestFirst, Policy.EarliestDeadline]),
        "ageing": st.sampled_from([0.0, 0.25, 2.0]),
        "max_running": st.integers(1, 12),
        "pad": st.booleans(),
    }
)
mixed = loads(priorities=st.integers(0, 1))


@given(mixed, servings)
def test_every_sample_does_each_step_once_and_in_order(load, serving):
    run = Run(load, **serving)
    for arrival, stints in zip(load, run.stints, strict=True):
        steps = range(len(arrival.scales))
        assert [(stint.step, stint.rows) for stint in stints] == [(step, arrival.rows(step)) for step in steps]
        assert sorted({stint.iteration for stint in stints}) == [stint.iteration for stint in stints]
    passes, counters = sum(arrival.passes for arrival in load), run.counters
    assert (counters["submitted"], counters["samples"]) == (len(load), len(load))
    assert (counters["forwards"], counters["network_passes"]) == (len(run.iterations), passes)
    assert counters["steps"] == sum(len(arrival.scales) for arrival in load)
    assert counters["padded_rows"] == (len(run.iterations) * serving["max_rows"] - passes if serving["pad"] else 0)


@given(mixed, servings)
def test_no_forward_is_too_wide_and_no_more_run_than_may(load, serving):
    run = Run(load, **serving)
    for iteration in run.iterations:
        assert sorted(row.row for row in iteration) == list(range(len(iteration)))
        assert len(iteration) <= serving["max_rows"]
    spans = [(run.first_iteration(sample), run.last_iteration(sample)) for sample in range(len(load))]
    for iteration in range(len(run.iterations)):
        assert sum(first <= iteration <= last for first, last in spans) <= serving["max_running"]


@given(mixed, servings)
def test_the_clock_moves_by_what_forwards_cost_and_stops_only_while_there_is_no_sample(load, serving):
    run, now = Run(load, **serving), 0.0
    for number, iteration in enumerate(run.iterations):
        assert {row.iteration for row in iteration} == {number}
        now = max(now, min(arrival.at for sample, arrival in enumerate(load) if run.last_iteration(sample) >= number))
        [(began, ended)] = {(row.began, row.ended) for row in iteration}
        assert began == now
        now += serving["cost"].fixed + serving["cost"].row * (serving["max_rows"] if serving["pad"] else len(iteration))
        assert ended == now
    for sample, arrival in enumerate(load):
        rows = [row for row in run.trace if row.sample == sample]
        assert arrival.at <= run.began[sample] <= rows[0].began
        assert run.finished[sample] == rows[-1].ended


JOINING = [Arrival(0.0, [1.0]), Arrival(0.0, [1.0] * 10), Arrival(0.5, [1.0])]


def test_a_sample_submitted_during_a_forward_is_considered_for_the_next_one():
    run = Run(JOINING, 1, policy=Policy.ShortestFirst, max_running=1)
    assert run.finished.tolist() == [1.0, 12.0, 2.0]


def test_a_sample_begins_when_its_first_forward_does():
    run = Run(JOINING, 1, policy=Policy.ShortestFirst)
    assert run.began.tolist() == [0.0, 2.0, 1.0]


@given(loads(gaps=st.just(0.0), scales=unguided), servings)
def test_one_row_at_a_time_takes_the_sum_of_all_costs_whatever_the_policy(load, serving):
    run = Run(load, **{**serving, "max_rows": 1, "cost": Cost(2.0, 0.5)})
    assert run.finished.max() == 2.5 * sum(arrival.passes for arrival in load)


@example([Arrival(0.0, [1.0]), Arrival(0.0, [3.0]), Arrival(0.0, [1.0])], 2)
@given(loads(gaps=st.just(0.0)), st.integers(2, 7))
def test_forwards_are_full_while_enough_are_there(load, max_rows):
    """Only the last row of a forward may stay free, and that only if each sample left out needs two."""
    run = Run(load, max_rows)
    for number, iteration in enumerate(run.iterations):
        stepped = {row.sample for row in iteration}
        for sample, arrival in enumerate(load):
            if sample not in stepped and run.last_iteration(sample) > number:
                assert len(iteration) + arrival.rows(run.next_step(sample, number)) > max_rows


@given(loads(gaps=st.just(0.0), scales=unguided), st.integers(2, 7), costs)
def test_forwards_have_the_rows_that_are_worthwhile_for_all_that_run_or_wait(load, max_rows, believed):
    run = Run(load, max_rows, believed=believed)
    for number, iteration in enumerate(run.iterations):
        wanted = sum(run.last_iteration(sample) >= number for sample in range(len(load)))
        assert len(iteration) == min(wanted, rows_worthwhile(CostCurve(*believed), wanted, max_rows))


@given(loads(), servings)
def test_first_come_begins_in_the_order_of_arrival(load, serving):
    """Only an unguided first step may go before an earlier guided one, into a row that is left over."""
    run = Run(load, **{**serving, "policy": Policy.FirstCome})
    for early, late in itertools.combinations(range(len(load)), 2):
        if run.first_iteration(late) < run.first_iteration(early):
            assert (load[early].rows(), load[late].rows()) == (2, 1)


@given(loads(scales=unguided), servings)
def test_first_come_never_lets_the_unguided_pass_each_other(load, serving):
    run = Run(load, **{**serving, "policy": Policy.FirstCome})
    began = [run.first_iteration(sample) for sample in range(len(load))]
    assert began == sorted(began)


@given(loads(gaps=st.sampled_from([0.0, 0.5, 2.0, 7.0, 15.0])), servings, st.sampled_from([0.25, 1.0, 4.0]))
def test_ageing_bounds_starvation(load, serving, ageing):
    """Under shortest-first a sample yields no more than a left-over row to those that come p / ageing passes after it.

    Let E be a request of p passes submitted when the loop had computed a passes, and call late every request submitted
    when it had computed more than a + p / ageing, with the same priority. As long as max_running holds none back, E
    stands in line before all that are late, to its end. So in each iteration, until E has finished, either E runs, or
    the late ones have one row of the forward at most: the one that is left where E's next step takes two.

    A forward in progress at a submission is counted against the claim: as computed for E, as not computed for the
    late. E's wait is bounded, then: in an iteration in which E does not step a sample before it in line does, and of
    those there are finitely many, with finitely many passes.
    """
    run = Run(load, **{**serving, "policy": Policy.ShortestFirst, "ageing": ageing, "max_running": len(load)})
    at_most = [sum(row.began < arrival.at for row in run.trace) for arrival in load]
    at_least = [sum(row.ended < arrival.at for row in run.trace) for arrival in load]
    for early, arrival in enumerate(load):
        late = {other for other in range(len(load)) if at_least[other] > at_most[early] + arrival.passes / ageing}
        event("some are late" if late else "none is late")
        for number, iteration in enumerate(run.iterations[: run.last_iteration(early)]):
            theirs = [row for row in iteration if row.sample in late]
            if theirs and early not in {row.sample for row in iteration}:
                assert len(theirs) == 1
                assert arrival.rows(run.next_step(early, number)) == 2
                assert len(iteration) > 1  # the first in line is not let pass


STREAM = [Arrival(0.0, [1.0] * 4), *(Arrival(float(second), [1.0]) for second in range(50))]


@pytest.mark.parametrize(
    ("options", "finished"),
    [
        pytest.param({"policy": Policy.ShortestFirst}, 54, id="without-ageing-the-longest-starves"),
        # A sample that comes at second k, as a forward ends, finds k - 1 passes counted: an urgency of
        # 1 + (k - 1) / 2, against that of the first to come, 4, less 1 a step.
        pytest.param(
            {"policy": Policy.ShortestFirst, "ageing": 0.5}, 11, id="aged-it-goes-before-those-that-came-later"
        ),
        pytest.param({"policy": Policy.FirstCome}, 4, id="first-come"),
    ],
)
def test_a_stream_of_short_requests_starves_a_long_one_unless_it_ages(options, finished):
    run = Run(STREAM, 1, **options)
    assert run.finished[0] == finished
    assert run.finished.max() == 54


@pytest.mark.parametrize("policy", AGEING)
@pytest.mark.parametrize("passes", [2, 3])
def test_a_flood_of_the_shortest_requests_holds_another_back_for_as_long_as_ageing_says(policy, passes):
    """Requests of one pass arrive as fast as they are computed, without end, from the moment another one comes.

    That one, of p passes, has an urgency of p; one of a single pass that comes when c passes are computed has
    1 + ageing c. So the longer one waits until (p - 1) / ageing passes are computed, and then has its p in a row.
    """
    credit = (passes - 1) / AGEING[policy]
    flood = [Arrival(float(second), [1.0]) for second in range(int(credit) + 10)]
    run = Run([Arrival(0.0, [1.0] * passes), *flood], 1, policy=Policy.ShortestFirst, ageing=AGEING[policy])
    began = run.first_iteration(0)
    assert credit <= began <= credit + 3
    assert [stint.iteration for stint in run.stints[0]] == list(range(began, began + passes))


def test_shortest_first_goes_by_what_is_left_also_of_a_paused_sample():
    """The first to come has 4 passes left when it yields to 3, and then goes before 5."""
    load = [Arrival(0.0, [1.0] * 10), Arrival(5.5, [1.0] * 3), Arrival(6.5, [1.0] * 5)]
    assert Run(load, 1, policy=Policy.ShortestFirst).finished.tolist() == [13.0, 9.0, 18.0]


def test_a_higher_priority_is_served_first_whatever_the_policy():
    load = [Arrival(0.0, [1.0] * 3), Arrival(0.0, [1.0] * 3, priority=1)]
    for policy in (Policy.FirstCome, Policy.ShortestFirst, Policy.EarliestDeadline):
        assert Run(load, 1, policy=policy).finished.tolist() == [6.0, 3.0]


def test_a_planner_that_knows_of_no_fixed_cost_runs_samples_one_after_the_other():
    load = [Arrival(0.0, [1.0] * 3), Arrival(0.0, [1.0] * 3)]
    assert Run(load, 4).finished.tolist() == [6.0, 6.0]
    assert Run(load, 4, believed=Cost(0.0, 1.0)).finished.tolist() == [3.0, 6.0]


@pytest.mark.parametrize(
    ("load", "max_rows", "message"),
    [
        pytest.param(
            [Arrival(1.0, [1.0]), Arrival(0.5, [1.0])],
            2,
            "arrivals must be finite, from 0 on and in order",
            id="out-of-order",
        ),
        pytest.param([Arrival(0.0, [3.0])], 1, "a guided step takes 2 rows of a forward", id="never-fits"),
        pytest.param([Arrival(0.0, [])], 1, "a table of at least one step", id="nothing-to-do"),
        pytest.param([Arrival(0.0, [1.0])], 0, "max_rows must be at least 1", id="no-rows"),
    ],
)
def test_a_load_that_can_never_run_is_refused(load, max_rows, message):
    with pytest.raises(ValueError, match=message):
        Run(load, max_rows)


def test_every_arrival_needs_all_its_fields():
    with pytest.raises(ValueError, match="each arrival needs a table, a time"):
        replay([Arrival(0.0, [1.0]).table], [0.0], [True], [], 1, LoopOptions(max_running=1), CostCurve())
