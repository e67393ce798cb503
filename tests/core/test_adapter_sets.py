"""Samples with different sets of adapters in one loop: which share forwards, and how the sets take turns."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from stepfuse import _core
from stepfuse._core import CostCurve, LoopOptions, Passes, Policy, make_plan, order_of
from stepfuse.samplers.table import COLUMNS

PLAIN = {"s": 1.0, "lo": -np.inf, "hi": np.inf, "q_x": 1.0, "g": 1.0}  # a step that leaves the state as it is


def table(steps):
    return _core.Table(np.array([[PLAIN.get(name, 0.0) for name in COLUMNS]] * steps, np.float32), 1.0)


Arrival = collections.namedtuple("Arrival", ["at", "steps", "adapters", "priority"], defaults=[0])
Row = collections.namedtuple("Row", ["iteration", "began", "ended", "sample", "step", "row"])


def run(load, *, max_rows=4, max_running=100, **options):
    """The rows of each forward, of a forward a second."""
    found = _core.replay(
        [table(one.steps) for one in load],
        [one.at for one in load],
        [True] * len(load),
        [one.priority for one in load],
        max_rows,
        LoopOptions(max_running=max_running, **options),
        CostCurve(1.0, 0.0),
        trace=True,
        adapters=[one.adapters for one in load],
    )
    forwards = collections.defaultdict(list)
    for entry in found["trace"]:
        forwards[entry[0]].append(Row(*entry))
    return [forwards[number] for number in sorted(forwards)]


@st.composite
def loads(draw):
    """Arrivals of a few sets, which often come together, and often while a forward runs."""
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=14))
    at, load = 0.0, []
    for gap in gaps:
        at += gap
        load.append(Arrival(at, draw(st.integers(1, 6)), draw(st.integers(0, 3))))
    return load


servings = st.fixed_dictionaries(
    {
        "max_rows": st.integers(1, 5),
        "max_running": st.integers(1, 8),
        "policy": st.sampled_from([Policy.FirstCome, Policy.ShortestFirst, Policy.EarliestDeadline]),
        "pad": st.booleans(),
        "cost": st.sampled_from([CostCurve(), CostCurve(1.0, 0.5)]),
    }
)


@given(loads(), servings)
def test_a_forward_has_samples_of_one_set_and_every_sample_is_drawn(load, serving):
    forwards = run(load, **serving)
    for rows in forwards:
        assert len({load[row.sample].adapters for row in rows}) == 1
    steps = collections.Counter(row.sample for rows in forwards for row in rows)
    assert steps == {sample: one.steps for sample, one in enumerate(load)}


@given(loads(), servings)
def test_between_two_forwards_of_a_set_that_has_samples_each_other_set_has_at_most_one(load, serving):
    """As long as every sample may begin when it comes: no set starves, whatever the policy and however many samples
    the other sets have."""
    forwards = run(load, **{**serving, "max_running": len(load)})
    order = [load[rows[0].sample].adapters for rows in forwards]
    for adapters in set(order):
        own = [number for number, one in enumerate(order) if one == adapters]
        for first, second in itertools.pairwise(own):
            if any(load[row.sample].adapters == adapters for row in unfinished(load, forwards, first)):
                between = collections.Counter(order[first + 1 : second])
                event("others in between" if between else "none in between")
                assert all(count == 1 for count in between.values())


def unfinished(load, forwards, number):
    """The last rows of samples that have come before this forward ends and step after it."""
    ended = forwards[number][0].ended
    last = {row.sample: row for rows in forwards for row in rows}
    return [row for row in last.values() if row.began >= ended and load[row.sample].at <= forwards[number][0].began]


@given(st.integers(1, 6), st.integers(1, 3))
def test_a_set_with_one_sample_is_not_starved_by_streams_of_others(steps, streams):
    """Every second brings a short sample of each of several sets; the one sample has a forward of every few."""
    load = [Arrival(0.0, steps, 9)]
    load += [Arrival(float(second), 1, 1 + one) for second in range(40) for one in range(streams)]
    forwards = run(load)
    last = max(number for number, rows in enumerate(forwards) for row in rows if row.sample == 0)
    assert last < steps * (streams + 1)


def test_new_sets_that_come_all_the_time_starve_no_set():
    load = [Arrival(0.0, 5, 1), *(Arrival(float(second), 1, 2 + second) for second in range(60))]
    last = max(number for number, rows in enumerate(run(load)) if rows[0].sample == 0)
    assert last < 20  # one new set a forward, so nearly every other one is the old set's


def test_sets_alternate_and_share_forwards_among_themselves():
    load = [Arrival(0.0, 3, adapters) for adapters in (0, 0, 7, 7)]
    assert [sorted(row.sample for row in rows) for rows in run(load)] == [[0, 1], [2, 3]] * 3


def test_a_set_of_higher_priority_goes_first():
    load = [Arrival(0.0, 2, 0), Arrival(0.0, 2, 7, 1)]
    assert [rows[0].sample for rows in run(load)] == [1, 1, 0, 0]


def test_waiting_samples_of_a_set_without_room_to_begin_hold_no_other_set_up():
    load = [Arrival(0.0, 2, 0), Arrival(0.0, 1, 7)]
    assert [rows[0].sample for rows in run(load, max_running=1)] == [0, 0, 1]


def test_a_long_queue_of_one_set_is_no_wait_for_another():
    load = [*(Arrival(0.0, 1, 0) for _ in range(100)), Arrival(0.0, 1, 7)]
    assert [rows[0].sample for rows in run(load, max_rows=1)].index(100) <= 1


@pytest.mark.parametrize(("joins", "entries"), [(0, [0]), (1, [1]), (2, [1, 2])])
def test_a_plan_is_of_the_set_served_longest_ago_that_may_step(joins, entries):
    running = [_core.Candidate(order_of(Policy.FirstCome, arrival=1), Passes.Conditional, 5, 8)]
    waiting = [_core.Candidate(order_of(Policy.FirstCome, arrival=n), Passes.Conditional, 6, 3) for n in (2, 3)]
    assert [one.sample for one in make_plan(running, waiting, 4, joins).entries] == entries
