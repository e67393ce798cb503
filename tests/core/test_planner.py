"""The planner's pure functions: the order of samples in line, which of them step next, and in which rows."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepfuse import _core
from stepfuse._core import CostCurve, Order, Passes, Policy, make_plan, order_of, rows_worthwhile, steps_alike
from stepfuse.samplers.table import COLUMNS

ROWS = {Passes.Conditional: 1, Passes.Unconditional: 1, Passes.Both: 2}
POLICIES = Policy.FirstCome, Policy.ShortestFirst, Policy.EarliestDeadline


class Candidate(NamedTuple):
    order: Order
    passes: Passes

    @property
    def rows(self):
        return ROWS[self.passes]


class Situation(NamedTuple):
    running: list[Candidate]
    waiting: list[Candidate]
    max_rows: int
    max_joins: int
    cost: CostCurve

    @property
    def candidates(self):
        """Those that may step, by their index in a plan."""
        return self.running + self.waiting[: self.max_joins]

    @property
    def line(self):
        """Indices of the candidates, the first in line first."""
        return sorted(range(len(self.candidates)), key=lambda i: key_of(self.candidates[i].order))

    @property
    def target(self):
        return rows_worthwhile(self.cost, self.rows_wanted, self.max_rows)

    @property
    def rows_wanted(self):
        return sum(one.rows for one in self.running + self.waiting)

    def plan(self):
        candidates = [[_core.Candidate(*one) for one in some] for some in (self.running, self.waiting)]
        return make_plan(*candidates, self.max_rows, self.max_joins, self.rows_wanted, self.cost)

    def limit(self, rows_ahead):
        """Rows that a candidate behind so many rows may fill."""
        return self.target if rows_ahead else self.max_rows


def key_of(order):
    return -order.priority, order.urgency, order.arrival


curves = st.builds(CostCurve, st.sampled_from([0.0, 0.5, 1.0, 8.0]), st.sampled_from([0.25, 1.0]))


@st.composite
def situations(draw):
    """Any running samples and any sorted queue, under limits that let each of them step alone; often they tie."""
    passes = st.sampled_from([Passes.Both, Passes.Both, Passes.Conditional, Passes.Unconditional])
    standings = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), passes, st.booleans()), max_size=20))
    arrivals = draw(st.permutations(range(len(standings))))
    groups = [], []
    for (priority, left, passes, waits), arrival in zip(standings, arrivals, strict=True):
        order = order_of(Policy.ShortestFirst, priority=priority, arrival=arrival, passes_left=left)
        groups[waits].append(Candidate(order, passes))
    running, waiting = groups
    waiting.sort(key=lambda one: key_of(one.order))
    max_rows = draw(st.integers(max((one.rows for one in running + waiting), default=1), 9))
    max_joins = draw(st.integers(0, len(waiting)))
    return Situation(running, waiting, max_rows, max_joins, draw(st.just(CostCurve()) | curves))


def queue_of(*passes):
    """Candidates that wait, in the order of their arrival."""
    return [Candidate(order_of(Policy.FirstCome, arrival=i), one) for i, one in enumerate(passes)]


@given(situations())
def test_rows_are_dense_unique_and_within_the_limit(situation):
    plan = situation.plan()
    used = [row for entry in plan.entries for row in (entry.row_cond, entry.row_uncond) if row >= 0]
    assert sorted(used) == list(range(plan.rows))
    assert plan.rows <= situation.max_rows
    if plan.entries:
        first = min((situation.candidates[entry.sample] for entry in plan.entries), key=lambda one: key_of(one.order))
        assert plan.rows <= max(situation.target, first.rows)


@given(situations())
def test_each_sample_gets_the_rows_its_passes_ask_for(situation):
    for entry in situation.plan().entries:
        passes = situation.candidates[entry.sample].passes
        assert (entry.row_cond >= 0) == (passes != Passes.Unconditional)
        assert (entry.row_uncond >= 0) == (passes != Passes.Conditional)


@given(situations())
def test_samples_keep_their_order_in_the_forward_and_each_stands_in_it_once(situation):
    steps = [entry.sample for entry in situation.plan().entries]
    assert steps == sorted(set(steps))


@given(situations())
def test_the_first_in_line_always_steps_whatever_a_forward_is_worth(situation):
    steps = {entry.sample for entry in situation.plan().entries}
    assert steps.issuperset(situation.line[:1])


@given(situations())
def test_no_candidate_that_fits_is_passed_and_passing_gives_one_row_only(situation):
    steps = {entry.sample for entry in situation.plan().entries}
    ahead, passed = 0, False
    for i in situation.line:
        one = situation.candidates[i]
        if i in steps:
            assert not passed or one.rows == 1
            ahead += one.rows
        elif steps & set(situation.line[situation.line.index(i) :]):  # one behind it steps
            assert ahead + one.rows > situation.limit(ahead)
            assert one.rows == 2
            passed = True


@example(Situation([], queue_of(*[Passes.Both] * 3, Passes.Conditional), 3, 4, CostCurve()))
@given(situations())
def test_no_row_is_left_free_that_a_candidate_could_use(situation):
    plan = situation.plan()
    steps = {entry.sample for entry in plan.entries}
    for i, one in enumerate(situation.candidates):
        assert i in steps or plan.rows + one.rows > situation.limit(plan.rows)


@given(situations())
def test_the_queue_moves_in_order_and_no_further_than_it_may(situation):
    joined = [entry.sample - len(situation.running) for entry in situation.plan().entries]
    joined = [i for i in joined if i >= 0]
    assert len(joined) <= situation.max_joins
    for i in range(max(joined, default=0)):
        assert i in joined or (situation.waiting[i].rows == 2 and situation.waiting[joined[-1]].rows == 1)


C, U, B = Passes.Conditional, Passes.Unconditional, Passes.Both


@pytest.mark.parametrize(
    ("running", "waiting", "max_rows", "max_joins", "entries"),
    [
        pytest.param([], [], 4, 9, [], id="nothing-to-do"),
        pytest.param([], [(0, B)], 1, 9, [], id="never-fits"),
        pytest.param([], [(0, B), (1, B), (2, B)], 4, 9, [(0, 0, 1), (1, 2, 3)], id="guided-takes-two"),
        pytest.param([(0, U), (1, B)], [(2, C)], 4, 9, [(0, -1, 0), (1, 1, 2), (2, 3, -1)], id="mixed"),
        pytest.param([(0, B)], [(1, B), (2, C)], 3, 9, [(0, 0, 1), (2, 2, -1)], id="let-pass"),
        pytest.param([], [(0, C), (1, B), (2, B), (3, U)], 2, 9, [(0, 0, -1), (3, -1, 1)], id="two-let-one-pass"),
        pytest.param([(3, C), (1, C)], [(0, C), (2, C)], 2, 9, [(1, 0, -1), (2, 1, -1)], id="the-queue-preempts"),
        pytest.param([(3, C), (1, C)], [(0, C), (2, C)], 2, 0, [(0, 0, -1), (1, 1, -1)], id="no-slot-to-begin-in"),
        pytest.param([(3, C)], [(0, C), (1, C)], 3, 1, [(0, 0, -1), (1, 1, -1)], id="one-slot-to-begin-in"),
    ],
)
def test_plan(running, waiting, max_rows, max_joins, entries):
    candidates = [
        [_core.Candidate(order_of(Policy.FirstCome, arrival=at), p) for at, p in some] for some in (running, waiting)
    ]
    plan = make_plan(*candidates, max_rows, max_joins)
    assert [(entry.sample, entry.row_cond, entry.row_uncond) for entry in plan.entries] == entries
    assert plan.rows == sum(row >= 0 for _, *rows in entries for row in rows)


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        pytest.param([C, C, C], 1, id="one-at-a-time"),
        pytest.param([B, C], 2, id="the-first-steps-though-it-takes-more"),
    ],
)
def test_a_forward_without_fixed_cost_is_worth_one_row(line, rows):
    candidates = [_core.Candidate(order_of(Policy.FirstCome, arrival=i), passes) for i, passes in enumerate(line)]
    plan = make_plan(candidates, [], 8, 8, 9, CostCurve(0.0, 1.0))
    assert ([entry.sample for entry in plan.entries], plan.rows) == ([0], rows)


@given(curves, st.integers(0, 10**6), st.integers(1, 512))
def test_rows_worthwhile_lie_between_one_and_the_limit_and_are_all_where_the_cost_is_unknown(cost, wanted, max_rows):
    assert 1 <= rows_worthwhile(cost, wanted, max_rows) <= max_rows
    assert rows_worthwhile(CostCurve(), wanted, max_rows) == max_rows


@given(
    st.lists(st.integers(0, 10**5), min_size=2, max_size=2).map(sorted),
    st.lists(st.floats(0, 1e3), min_size=2, max_size=2).map(sorted),
    st.integers(1, 512),
)
def test_more_rows_are_worthwhile_the_more_wait_and_the_dearer_a_forward_is_against_a_row(wanted, fixed, max_rows):
    found = [[rows_worthwhile(CostCurve(f, 0.5), w, max_rows) for f in fixed] for w in wanted]
    assert found[0][0] <= found[0][1] <= found[1][1]
    assert found[0][0] <= found[1][0] <= found[1][1]


standings = st.fixed_dictionaries(
    {
        "priority": st.integers(-2, 2),
        "arrival_passes": st.integers(0, 8),
        "passes_left": st.integers(1, 4),
        "deadline": st.sampled_from([1.0, 2.5, math.inf]),
    }
)
URGENCY = {
    Policy.FirstCome: lambda standing: 0,
    Policy.ShortestFirst: lambda standing: standing["passes_left"] + 0.5 * standing["arrival_passes"],
    Policy.EarliestDeadline: lambda standing: standing["deadline"],
}


@pytest.mark.parametrize("policy", POLICIES)
@given(st.lists(standings, max_size=12))
def test_the_line_is_by_priority_then_urgency_then_arrival(policy, some):
    orders = [order_of(policy, 0.5, arrival=i, **standing) for i, standing in enumerate(some)]
    expected = sorted(range(len(some)), key=lambda i: (-some[i]["priority"], URGENCY[policy](some[i]), i))
    assert [order.arrival for order in sorted(orders)] == expected


@pytest.mark.parametrize("policy", POLICIES)
@given(st.lists(standings, min_size=3, max_size=3))
def test_standing_before_is_a_strict_total_order(policy, some):
    orders = [order_of(policy, 0.5, arrival=i, **standing) for i, standing in enumerate(some)]
    assert not any(order < order for order in orders)
    for a, b in itertools.combinations(orders, 2):
        assert (a < b) != (b < a)
    for a, b, c in itertools.permutations(orders):
        assert a < c or not (a < b and b < c)


def test_shortest_first_counts_passes_that_were_computed_before_an_arrival_against_it():
    early = order_of(Policy.ShortestFirst, 0.25, arrival=0, arrival_passes=0, passes_left=10)
    assert order_of(Policy.ShortestFirst, 0.25, arrival=1, arrival_passes=35, passes_left=1) < early
    assert early < order_of(Policy.ShortestFirst, 0.25, arrival=1, arrival_passes=37, passes_left=1)


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 3.0]), min_size=1, max_size=12), st.booleans())
def test_steps_are_alike_until_the_first_that_computes_other_passes(scales, conditioned):
    rows = np.zeros((len(scales), len(COLUMNS)), np.float32)
    rows[:, COLUMNS.index("g")] = scales
    passes = [{0.0: "unconditional", 1.0: "conditional"}.get(g, "both") if conditioned else "own" for g in scales]
    alike = itertools.takewhile(passes[0].__eq__, passes)
    assert steps_alike(rows, conditioned) == len(list(alike))


def test_steps_alike_needs_a_row():
    with pytest.raises(ValueError, match="at least one"):
        steps_alike(np.zeros((0, len(COLUMNS)), np.float32), True)
