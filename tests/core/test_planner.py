"""The planner's policy, a pure function: which samples step next, and in which rows of the forward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepfuse._core import Passes, SampleView, make_plan

ROWS = {Passes.Conditional: 1, Passes.Unconditional: 1, Passes.Both: 2}

# (passes of the next step, most rows of any step to come)
samples = st.sampled_from([(passes, peak) for passes, rows in ROWS.items() for peak in range(rows, 3)])


def plan_of(running, waiting, max_rows):
    return make_plan([SampleView(*one) for one in running], [SampleView(*one) for one in waiting], max_rows)


@st.composite
def situations(draw):
    """Running samples whose peaks fit, as earlier plans leave them, and any queue."""
    max_rows = draw(st.integers(1, 16))
    running, reserved = [], 0
    for one in draw(st.lists(samples, max_size=16)):
        if reserved + one[1] <= max_rows:
            running.append(one)
            reserved += one[1]
    return running, draw(st.lists(samples, max_size=16)), max_rows


@given(situations())
def test_rows_are_dense_unique_and_within_the_limit(situation):
    plan = plan_of(*situation)
    used = [row for entry in plan.entries for row in (entry.row_cond, entry.row_uncond) if row >= 0]
    assert sorted(used) == list(range(plan.rows))
    assert plan.rows <= situation[2]


@given(situations())
def test_each_sample_gets_the_rows_its_passes_ask_for(situation):
    running, waiting, _ = situation
    plan = plan_of(*situation)
    for entry in plan.entries:
        passes, _ = (running + waiting)[entry.sample]
        assert (entry.row_cond >= 0) + (entry.row_uncond >= 0) == ROWS[passes]
        assert (entry.row_cond >= 0) == (passes != Passes.Unconditional)
        assert (entry.row_uncond >= 0) == (passes != Passes.Conditional)


@given(situations())
def test_running_samples_all_step_and_newcomers_stand_behind_them(situation):
    running, _, _ = situation
    plan = plan_of(*situation)
    assert [entry.sample for entry in plan.entries] == list(range(len(running) + plan.admitted))


@given(situations())
def test_the_queue_moves_in_order_as_far_as_peaks_fit(situation):
    running, waiting, max_rows = situation
    plan = plan_of(*situation)
    reserved = sum(peak for _, peak in running + waiting[: plan.admitted])
    assert reserved <= max_rows
    if plan.admitted < len(waiting):  # the next one does not fit, and nobody overtakes it
        assert reserved + waiting[plan.admitted][1] > max_rows


@given(situations())
def test_admitting_keeps_the_situation_plannable(situation):
    running, waiting, max_rows = situation
    admitted = plan_of(*situation).admitted
    at_peak = [(Passes.Both if peak == 2 else passes, peak) for passes, peak in running + waiting[:admitted]]
    assert plan_of(at_peak, waiting[admitted:], max_rows).rows <= max_rows


@pytest.mark.parametrize(
    ("running", "waiting", "max_rows", "entries", "admitted"),
    [
        pytest.param([], [], 4, [], 0, id="nothing-to-do"),
        pytest.param([], [(Passes.Both, 2)], 1, [], 0, id="never-fits"),
        pytest.param([], [(Passes.Both, 2)] * 3, 4, [(0, 0, 1), (1, 2, 3)], 2, id="guided-takes-two"),
        pytest.param(
            [(Passes.Unconditional, 1), (Passes.Both, 2)],
            [(Passes.Conditional, 1)],
            4,
            [(0, -1, 0), (1, 1, 2), (2, 3, -1)],
            1,
            id="mixed",
        ),
        pytest.param(
            [(Passes.Both, 2)], [(Passes.Both, 2), (Passes.Conditional, 1)], 3, [(0, 0, 1)], 0, id="no-overtaking"
        ),
        pytest.param(
            [(Passes.Conditional, 2)], [(Passes.Conditional, 1)] * 2, 3, [(0, 0, -1), (1, 1, -1)], 1, id="peak-reserved"
        ),
    ],
)
def test_plan(running, waiting, max_rows, entries, admitted):
    plan = plan_of(running, waiting, max_rows)
    assert [(entry.sample, entry.row_cond, entry.row_uncond) for entry in plan.entries] == entries
    assert plan.admitted == admitted
    assert plan.rows == sum(row >= 0 for _, *rows in entries for row in rows)
