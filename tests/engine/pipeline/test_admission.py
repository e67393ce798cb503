"""Which request is encoded next."""

from dataclasses import dataclass
from functools import partial

import pytest

import stepfuse as sf
from stepfuse.pipeline.admission import next_to_encode, order_of
from stepfuse.requests.terms import Terms

SMALL, LARGE = (4, 4, 4), (4, 8, 8)


@dataclass(frozen=True)
class Job:
    name: str
    order: tuple
    shape: tuple = SMALL


def job(name, number, *, shape=SMALL, priority=0):
    return Job(name, (-priority, 0.0, number), shape)


def chosen(waiting, in_flight, *, most_running=2, most_shapes=2):
    found = next_to_encode(waiting, in_flight, lambda shape: most_running, lambda _, others: len(others) < most_shapes)
    return found and found.name


def test_the_first_in_line_is_taken_while_the_denoiser_can_run_it():
    waiting = [job("c", 3), job("b", 2)]
    assert chosen([], []) is None
    assert chosen(waiting, []) == "b"
    assert chosen(waiting, [job("a", 1)]) == "b"
    assert chosen(waiting, [job("a", 1), job("other", 0)]) is None


def test_those_behind_it_do_not_keep_it_out():
    assert chosen([job("high", 9, priority=1)], [job("a", 1), job("b", 2)]) == "high"
    assert chosen([job("high", 9, priority=1)], [job("a", 1, priority=1), job("b", 2, priority=1)]) is None


def test_each_size_has_room_of_its_own_for_as_many_as_there_may_be():
    full = [job("a", 1), job("b", 2)]
    assert chosen([job("large", 3, shape=LARGE)], full) == "large"
    assert chosen([job("large", 3, shape=LARGE)], full, most_shapes=1) is None
    # The first in line alone is looked at: it is passed over by none.
    assert chosen([job("large", 2, shape=LARGE), job("c", 3)], [job("a", 1)], most_shapes=1) is None


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        (sf.Serving(policy="fifo"), ["high", "long", "short", "late"]),
        (sf.Serving(policy="shortest", ageing=0.5), ["high", "short", "late", "long"]),
        (sf.Serving(policy="shortest", ageing=1.0), ["high", "short", "long", "late"]),
        (sf.Serving(), ["high", "short", "late", "long"]),
    ],
    ids=["fifo", "shortest", "shortest-aged", "auto"],
)
def test_the_order_is_the_engine_s_policy(serving, expected):
    requests = [("long", 0, 100, 0), ("short", 0, 2, 10), ("late", 0, 2, 100), ("high", 1, 1000, 0)]
    orders = {}
    for number, (name, priority, passes, before) in enumerate(requests):
        terms, passes_before = Terms(priority, None, None, None), partial(int, before)
        orders[name] = order_of(serving, terms, passes=passes, passes_before=passes_before, number=number)
    assert sorted(orders, key=orders.get) == expected


def test_the_earliest_deadline_goes_first_and_none_last():
    serving = sf.Serving(policy="deadline")
    deadlines = {"none": None, "late": 20.0, "soon": 10.0}
    orders = {
        name: order_of(serving, Terms(0, deadline, None, None), passes=1, passes_before=lambda: 0, number=i)
        for i, (name, deadline) in enumerate(deadlines.items())
    }
    assert sorted(orders, key=orders.get) == ["soon", "late", "none"]
