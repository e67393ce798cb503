"""The compiled loop behind its server, driven directly: what each forward is given, and what becomes of each sample."""

import collections
import functools
import threading
import time
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

from stepfuse import _core, samplers
from stepfuse._core import CostCurve, EventKind, Gate, Policy

NULL_COND = [np.array(support.NULL)]
MAKERS = samplers.ddim, samplers.heun, samplers.dpmpp_2m
DDIM, HEUN, DPMPP = (functools.partial(make, support.SCHEDULE) for make in MAKERS)
ENDS = EventKind.Finished, EventKind.Failed, EventKind.Cancelled, EventKind.Expired


class Event(NamedTuple):
    kind: EventKind
    id: int
    step: int
    error: Any
    wait_seconds: float
    run_seconds: float


class Driver:
    """A server over a row-wise network that checks its invariants every iteration, and the inputs of every forward."""

    def __init__(self, max_rows=16, *, network=support.rowwise, integer_timestep=False, max_waiting=1000, **options):
        options = _core.LoopOptions(**{"max_running": 100, **options})
        stepper = _core.HostStepper(support.ELEMENTS, integer_timestep, [8], max_rows)
        self.server = _core.Server(stepper, options, max_waiting, check=True)
        self.network, self.forwards, self.states, self.events = network, [], {}, []
        views = stepper.buffers()
        self.labels = views["cond"][0].view(np.int64).reshape(-1)
        self.inputs = views["sample"].reshape(-1, *support.SHAPE), views["timestep"].reshape(-1), self.labels
        self.prediction = views["prediction"].reshape(-1, *support.SHAPE)

    def request(self, id, table, *, seed=0, cond=None, x0=None, **options):
        self.states[id] = np.empty(support.SHAPE, np.float32)
        compiled = _core.Table(table.rows, table.init_scale)
        conditioning = [] if cond is None else [np.array(cond)]
        return self.server.request(
            id, compiled, seed, False, self.states[id].reshape(-1), x0, conditioning, NULL_COND, **options
        )

    def submit(self, id, table, *, wait=0.0, **sample):
        return self.server.submit(self.request(id, table, **sample), wait)

    def run(self):
        """Runs until nothing is left; returns the events meanwhile."""
        before = len(self.events)
        self.server.run(self.forward, self.on_events)
        return self.events[before:]

    def forward(self, rows):
        x, t, labels = (view[:rows].copy() for view in self.inputs)
        self.forwards.append((x, t, labels))
        self.prediction[:rows] = self.network(x, t, {"class_labels": labels})

    def on_events(self, events):
        self.events.extend(Event(*event) for event in events)

    def events_of(self, kind):
        return [event for event in self.events if event.kind == kind]

    def ids(self, kind):
        return [event.id for event in self.events_of(kind)]


def check_result(driver, id, *, table, seed=0, cond=None, **_):
    np.testing.assert_array_equal(driver.states[id], support.replay(table, seed=seed, cond=cond)[0])


def after(forwards, act, network=support.rowwise):
    """A network that calls ``act()`` inside the forward behind so many others."""
    count = iter(range(10**6))

    def acting(x, t, cond):
        if next(count) == forwards:
            act()
        return network(x, t, cond)

    return acting


TRAJECTORIES = {
    "guided-then-retires": {"table": DDIM(2, guidance_scale=3.0), "cond": 1, "seed": 1},
    "conditional-only": {"table": DDIM(4), "cond": 2, "seed": 2},
    "scaled-input-with-history": {"table": HEUN(3, guidance_scale=2.0), "cond": 3, "seed": 3},
    "unconditional-only": {"table": DDIM(3, guidance_scale=0.0), "cond": 4, "seed": 4},
    "no-conditioning": {"table": DPMPP(5, guidance_scale=3.0), "cond": None, "seed": 5},
    "noisy": {"table": DDIM(4, eta=1.0, guidance_scale=1.5), "cond": 6, "seed": 6},
    "guidance-ends-midway": {"table": DDIM(6, guidance_scale=3.0, guidance_interval=(0.5, 1.0)), "cond": 5, "seed": 7},
}
MIX = list(TRAJECTORIES.values())


def test_each_forward_holds_every_sample_s_rows_in_order_also_after_neighbours_retire():
    driver = Driver()
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()
    assert sorted(driver.ids(EventKind.Finished)) == list(range(len(MIX)))

    alone = [support.replay(**sample)[2] for sample in MIX]
    assert len(driver.forwards) == max(map(len, alone))
    for iteration, seen in enumerate(driver.forwards):
        expected = zip(*(forwards[iteration] for forwards in alone if iteration < len(forwards)), strict=True)
        for values, rows in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(values, np.concatenate(rows))
    for id, sample in enumerate(MIX):
        check_result(driver, id, **sample)


def test_integer_networks_get_timesteps_rounded_as_the_samplers_do():
    driver = Driver(integer_timestep=True)
    driver.submit(0, DDIM(timesteps=[900.5, 500.6, 20.0]))
    driver.run()
    given = [t for _, t, _ in driver.forwards]
    assert all(t.dtype == np.int64 for t in given)
    assert np.concatenate(given).tolist() == [900, 501, 20]


def test_starting_noise_is_scaled_and_the_predicted_clean_sample_is_shown():
    table, noise, preview = HEUN(3), support.replay(DDIM(2), seed=8)[0], np.empty(support.ELEMENTS, np.float32)
    driver, state = Driver(), noise.reshape(-1).copy()
    compiled = _core.Table(table.rows, table.init_scale)
    driver.server.submit(driver.server.request(0, compiled, 0, True, state, preview, [], NULL_COND))
    driver.run()
    np.testing.assert_array_equal(driver.forwards[0][0][0], table["s"][0] * (noise * np.float32(table.init_scale)))

    drawn = np.empty(support.ELEMENTS, np.float32)
    driver.submit(1, table, x0=drawn)
    driver.run()
    np.testing.assert_array_equal(drawn.reshape(support.SHAPE), support.replay(table)[1][-1])


@pytest.mark.parametrize("pad", [pytest.param(False, id="dense"), pytest.param(True, id="padded")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label", [pytest.param(1, id="conditional"), pytest.param(support.NULL, id="unconditional")])
def test_a_sample_that_goes_non_finite_fails_with_its_row_and_leaves_its_neighbours_alone(value, label, pad):
    table = DDIM(5, guidance_scale=3.0)
    before = {"table": DDIM(7, guidance_scale=2.0), "cond": 3, "seed": 30}
    behind = {"table": HEUN(4), "cond": 4, "seed": 40}

    def network(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[(t == table["t"][2]) & (cond["class_labels"] == label), ..., -1] = value
        return prediction

    driver = Driver(network=network, pad=pad)
    driver.submit(100, **before)
    driver.submit(200, table, cond=1)
    driver.submit(300, **behind)
    driver.run()
    [failed] = driver.events_of(EventKind.Failed)
    assert (failed.id, failed.step) == (200, 2)
    np.testing.assert_array_equal(failed.error, table[2])
    check_result(driver, 100, **before)
    check_result(driver, 300, **behind)
    assert driver.server.status()["failures"] == 1


def test_all_that_fail_in_one_iteration_have_an_event():
    driver = Driver(network=lambda x, t, cond: np.full_like(x, np.nan))
    for id in (4, 2):
        driver.submit(id, DDIM(3))
    assert [(event.kind, event.id, event.step) for event in driver.run()] == [
        (EventKind.Failed, 4, 0),
        (EventKind.Failed, 2, 0),
    ]


class RefusalError(Exception):
    """What a network raises for a class that it refuses."""


def refusing(refused, raised):
    """A network that raises while any row has one of these (label, timestep), and keeps what it raised."""

    def network(x, t, cond):
        for label, timestep in refused:
            if np.any((cond["class_labels"] == label) & (t == timestep)):
                raised.append(RefusalError(label, len(x)))
                raise raised[-1]
        return support.rowwise(x, t, cond)

    return network


@pytest.mark.parametrize("pad", [pytest.param(False, id="dense"), pytest.param(True, id="padded")])
def test_when_a_forward_raises_its_samples_are_run_alone_and_only_the_faulty_fail(pad):
    raised = []
    refused = [(2, MIX[1]["table"]["t"][1]), (6, MIX[5]["table"]["t"][1]), (1, MIX[0]["table"]["t"][0])]
    driver = Driver(network=refusing(refused, raised), pad=pad)
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()

    retried = driver.events_of(EventKind.Retried)
    assert [(event.id, event.step) for event in retried] == [
        *((id, 7) for id in range(7)),
        *((id, 6) for id in range(1, 7)),
    ]
    failed = {event.id: event for event in driver.events_of(EventKind.Failed)}
    assert {id: event.step for id, event in failed.items()} == {0: 0, 1: 1, 5: 1}
    reported = [retried[0], failed[0], retried[7], failed[1], failed[5]]
    assert all(event.error is error for event, error in zip(reported, raised, strict=True))  # the very objects
    alone = [failed[id].error for id in (0, 1, 5)]
    assert [error.args[0] for error in alone] == [1, 2, 6]
    assert all(error.args[1] == (16 if pad else rows) for error, rows in zip(alone, (2, 1, 2), strict=True))
    for id, sample in enumerate(MIX):
        if id not in failed:
            check_result(driver, id, **sample)
    status = driver.server.status()
    assert (status["failures"], status["failed_forwards"]) == (3, 5)


def test_a_network_that_recovers_from_an_error_fails_no_sample():
    def hiccup():
        raise RefusalError

    driver = Driver(network=after(2, hiccup))
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()
    assert [event.step for event in driver.events_of(EventKind.Retried)] == [6] * 6  # one has only one step
    assert sorted(driver.ids(EventKind.Finished)) == list(range(len(MIX)))
    for id, sample in enumerate(MIX):
        check_result(driver, id, **sample)
    widths = [len(t) for _, t, _ in driver.forwards]
    assert max(widths[3:9]) == 2  # six samples are left, each of them alone
    assert widths[9] > 2  # then together again


def test_while_samples_are_run_alone_others_may_join_and_leave():
    fresh = {"table": DDIM(3, guidance_scale=2.0), "cond": 0, "seed": 50}

    def hiccup():
        raise RefusalError

    def join_and_leave():
        driver.submit(50, **fresh)
        driver.server.cancel(1)  # is run now
        driver.server.cancel(4)  # is to be run alone

    driver = Driver(network=after(1, hiccup, after(2, join_and_leave)))
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()
    assert driver.ids(EventKind.Cancelled) == [1, 4]
    for id, sample in [*enumerate(MIX), (50, fresh)]:
        if id not in (1, 4):
            check_result(driver, id, **sample)


def test_cancelling_withdraws_the_waiting_and_the_running_but_not_the_unknown():
    driver = Driver(max_rows=2, max_running=1, network=after(1, lambda: driver.server.cancel(0)))
    for id in range(3):
        driver.submit(id, DDIM(4, guidance_scale=3.0), cond=id, seed=id)
    driver.server.cancel(2)
    assert not driver.server.cancel(99)
    assert [(event.kind, event.id, event.step) for event in driver.run()] == [
        (EventKind.Cancelled, 2, 0),
        (EventKind.Cancelled, 0, 1),  # its step in the forward in progress is thrown away
        (EventKind.Finished, 1, 4),
    ]
    check_result(driver, 1, table=DDIM(4, guidance_scale=3.0), cond=1, seed=1)
    assert not driver.server.cancel(1)
    status = driver.server.status()
    assert (status["cancelled"], status["samples"], status["waiting"], status["running"]) == (2, 1, 0, 0)


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("outcome", ["raises", "not-finite"])
def test_a_failure_in_a_forward_does_not_change_the_end_of_a_sample_cancelled_in_it(outcome, neighbours):
    def network(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        if len(driver.forwards) == 2:
            driver.server.cancel(0)
            if outcome == "raises":
                raise RefusalError
            prediction[0] = np.nan
        return prediction

    driver = Driver(network=network)
    for id in range(neighbours + 1):
        driver.submit(id, **MIX[id + 1])
    driver.run()
    assert [(event.kind, event.step) for event in driver.events if event.id == 0 and event.kind in ENDS] == [
        (EventKind.Cancelled, 1)
    ]
    assert sorted(driver.ids(EventKind.Finished)) == list(range(1, neighbours + 1))
    for id in range(1, neighbours + 1):
        check_result(driver, id, **MIX[id + 1])


def test_what_is_cancelled_between_runs_has_its_event_in_the_next_one():
    driver, gate = Driver(), Gate()
    driver.submit(0, DDIM(3), gate=gate)
    driver.run()
    assert driver.server.cancel(0)
    assert [(event.kind, event.step) for event in driver.run()] == [(EventKind.Cancelled, 1)]


def test_everything_can_be_cancelled_at_once_and_its_memory_is_forgotten():
    driver = Driver(max_rows=4, network=after(1, lambda: driver.server.cancel_all()))
    for id in range(5):
        driver.submit(id, DDIM(5, guidance_scale=3.0), cond=2)
    driver.run()
    assert sorted(driver.ids(EventKind.Cancelled)) == list(range(5))
    fresh = {"table": DDIM(4, guidance_scale=3.0), "cond": 5, "seed": 9}
    driver.submit(0, **fresh)
    driver.run()
    check_result(driver, 0, **fresh)
    assert len(driver.forwards) == 2 + 4


def test_samples_submitted_and_cancelled_inside_a_forward_join_and_leave_at_the_next_iteration():
    def act():
        driver.submit(7, **MIX[0])
        driver.server.cancel(1)

    driver = Driver(network=after(1, act))
    for id, sample in enumerate(MIX[1:4], start=1):
        driver.submit(id, **sample)
    driver.run()
    labels = [labels.tolist() for _, _, labels in driver.forwards]
    assert labels[1] == [2, 3, support.NULL, support.NULL]
    assert labels[2] == [3, support.NULL, support.NULL, 1, support.NULL]
    for id, sample in [(2, MIX[2]), (3, MIX[3]), (7, MIX[0])]:
        check_result(driver, id, **sample)


def test_a_waiting_sample_expires_and_so_does_a_running_one_between_steps():
    def outlast():
        while time.monotonic() < expiry:
            time.sleep(0.01)

    driver = Driver(network=after(2, outlast))
    driver.submit(0, DDIM(9), timeout=0.0)
    driver.submit(1, DDIM(9), timeout=0.3)
    expiry = time.monotonic() + 0.3
    driver.submit(2, DDIM(9), timeout=60.0)
    driver.submit(3, DDIM(9))
    driver.run()
    expired = driver.events_of(EventKind.Expired)
    assert [(event.id, event.step) for event in expired] == [(0, 0), (1, 3)]
    assert expired[0].run_seconds == 0
    assert expired[1].wait_seconds + expired[1].run_seconds >= 0.3
    assert driver.ids(EventKind.Finished) == [2, 3]
    assert driver.server.status()["expired"] == 2


def test_a_full_queue_refuses_unless_asked_to_take_any_number_or_to_wait_for_room():
    driver = Driver(max_waiting=2, max_running=1)
    for id in range(2):
        driver.submit(id, DDIM(2))
    for wait in (0.0, 0.01):
        with pytest.raises(_core.QueueFull, match="2 requests wait"):
            driver.submit(2, DDIM(2), wait=wait)
    driver.submit(3, DDIM(2), wait=None)
    driver.server.submit_all([driver.request(id, DDIM(2)) for id in (4, 5)])
    with pytest.raises(_core.QueueFull, match="5 requests wait"):
        driver.submit(6, DDIM(2))

    loop = threading.Thread(target=driver.run)
    loop.start()
    starts = driver.submit(7, DDIM(2), wait=60.0)
    loop.join()
    if starts:  # the loop had ended before
        driver.run()
    assert driver.ids(EventKind.Finished) == [0, 1, 3, 4, 5, 7]


def test_samples_submitted_together_step_together_or_not_at_all():
    driver = Driver(max_rows=4, network=after(1, lambda: driver.server.submit_all(together)))
    driver.submit(9, DDIM(9))
    together = [driver.request(id, **sample) for id, sample in enumerate(MIX[1:3])]
    driver.run()
    assert [len(t) for _, t, _ in driver.forwards[:3]] == [1, 1, 4]
    for id, sample in enumerate(MIX[1:3]):
        check_result(driver, id, **sample)

    narrow = Driver(max_rows=1)
    with pytest.raises(ValueError, match="a guided step takes 2 rows"):
        narrow.server.submit_all([narrow.request(0, DDIM(2)), narrow.request(1, **MIX[0])])
    assert narrow.server.status()["waiting"] == 0


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"id": 0}, id="an-id-twice"),
        pytest.param({"id": 1, "deadline": 1e-9}, id="a-deadline-that-cannot-be-met"),
    ],
)
def test_none_of_several_is_queued_if_one_is_refused_on_account_of_those_before_it(second):
    driver = Driver(cost=CostCurve(1.0, 1.0))
    with pytest.raises((ValueError, _core.DeadlineError)):
        driver.server.submit_all([driver.request(0, DDIM(2)), driver.request(table=DDIM(2), **second)])
    assert driver.server.status()["waiting"] == 0


def test_a_closed_server_computes_what_it_has_and_takes_nothing_more():
    driver = Driver()
    driver.submit(0, **MIX[0])
    driver.server.close()
    with pytest.raises(_core.EngineClosed, match="the engine is closed"):
        driver.submit(1, **MIX[1], wait=60.0)
    with pytest.raises(_core.EngineClosed):
        driver.server.submit_all([driver.request(1, **MIX[1])])
    driver.run()
    check_result(driver, 0, **MIX[0])


def test_a_call_returns_true_while_no_thread_runs_the_server():
    returned = []

    def submit_and_run():
        returned.append(driver.submit(2, DDIM(2)))
        driver.server.run(driver.forward, returned.append)  # returns at once: a run is in progress

    driver = Driver(network=after(0, submit_and_run))
    for id in range(2):
        assert driver.submit(id, DDIM(2))  # true again: the first caller may never get to it
    assert driver.server.cancel(1)
    assert driver.server.open(Gate())
    driver.run()
    assert returned == [False]
    assert not driver.server.cancel(99), "there is nothing to run for"
    assert driver.server.cancel_all()


def test_a_gated_group_steps_once_a_run_and_rests_until_it_is_opened_while_others_go_on():
    driver, gate = Driver(), Gate()
    for id, sample in enumerate(MIX[1:3], start=1):
        driver.submit(id, **sample, gate=gate, watched=True)
    driver.submit(0, **MIX[0])
    first = driver.run()
    assert [event.id for event in first if event.kind == EventKind.Stepped] == [1, 2]
    assert [event.id for event in first if event.kind == EventKind.Finished] == [0]
    assert driver.run() == []
    assert driver.server.status()["running"] == 2

    iterations = 1
    while driver.server.status()["running"]:
        assert driver.server.open(gate)
        iterations += 1
        assert {event.step for event in driver.run() if event.kind == EventKind.Stepped} == {iterations}
    assert iterations == max(len(sample["table"]) for sample in MIX[1:3])
    for id, sample in enumerate(MIX[:3]):
        check_result(driver, id, **sample)


def test_a_gated_group_wider_than_a_forward_steps_in_parts():
    driver, gate = Driver(max_rows=4), Gate()
    for id in range(3):
        driver.submit(id, DDIM(2, guidance_scale=3.0), cond=id, seed=id, gate=gate)
    steps = []
    while driver.server.status()["samples"] < 3:
        driver.run()
        steps.append(driver.server.status()["steps"])
        driver.server.open(gate)
    assert steps == [2, 4, 5, 6]
    for id in range(3):
        check_result(driver, id, table=DDIM(2, guidance_scale=3.0), cond=id, seed=id)


def test_a_gate_opened_by_the_listener_keeps_the_run_going():
    class Opening(Driver):
        def on_events(self, events):
            super().on_events(events)
            if any(kind == EventKind.Stepped for kind, *_ in events):
                assert not self.server.open(gate)

    driver, gate = Opening(), Gate()
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample, gate=gate, watched=True)
    driver.run()
    for id, sample in enumerate(MIX):
        check_result(driver, id, **sample)


def test_a_gated_group_whose_forward_raised_takes_an_opening_for_each_that_is_run_alone():
    def hiccup():
        raise RefusalError

    driver, gate, steps = Driver(network=after(1, hiccup)), Gate(), []
    for id, sample in enumerate(MIX[1:3]):
        driver.submit(id, **sample, gate=gate, watched=True)
    while driver.server.status()["samples"] < 2:
        steps.append([(event.id, event.step) for event in driver.run() if event.kind == EventKind.Stepped])
        driver.server.open(gate)
    assert steps[:4] == [[(0, 1), (1, 1)], [(0, 2)], [(1, 2)], [(0, 3), (1, 3)]]
    for id, sample in enumerate(MIX[1:3]):
        check_result(driver, id, **sample)


def test_each_step_of_a_watched_sample_has_an_event_in_order_before_its_end():
    driver = Driver()
    driver.submit(0, DDIM(3), watched=True)
    driver.submit(1, DDIM(2))
    driver.submit(2, DDIM(2), watched=True)
    assert [(event.kind, event.id, event.step) for event in driver.run()] == [
        (EventKind.Stepped, 0, 1),
        (EventKind.Stepped, 2, 1),
        (EventKind.Stepped, 0, 2),
        (EventKind.Stepped, 2, 2),
        (EventKind.Finished, 1, 2),
        (EventKind.Finished, 2, 2),
        (EventKind.Stepped, 0, 3),
        (EventKind.Finished, 0, 3),
    ]


def test_a_higher_priority_goes_before_between_steps_and_the_paused_sample_loses_nothing():
    patient, urgent = MIX[2], MIX[5]  # one keeps a history, one adds noise; both are guided
    driver = Driver(max_rows=2, network=after(2, lambda: driver.submit(1, **urgent, priority=1)))
    driver.submit(0, **patient)
    driver.run()
    assert driver.ids(EventKind.Finished) == [1, 0]
    order = [labels[0] for _, _, labels in driver.forwards]
    steps = len(patient["table"])
    assert order == [patient["cond"]] * 3 + [urgent["cond"]] * 4 + [patient["cond"]] * (steps - 3)
    check_result(driver, 0, **patient)
    check_result(driver, 1, **urgent)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        pytest.param({"policy": Policy.FirstCome}, [0, 1, 2, 3], id="first-come"),
        pytest.param({"policy": Policy.ShortestFirst}, [2, 3, 1, 0], id="shortest-first"),
        pytest.param({"policy": Policy.EarliestDeadline}, [1, 0, 2, 3], id="earliest-deadline"),
    ],
)
def test_samples_finish_in_the_order_of_the_policy(options, order):
    driver = Driver(max_rows=1, **options)
    for id, (steps, deadline) in enumerate([(6, 2000.0), (5, 1000.0), (2, None), (2, None)]):
        driver.submit(id, DDIM(steps), deadline=deadline)
    driver.run()
    assert [event.id for event in driver.events] == order


def test_a_deadline_that_cannot_be_met_is_refused_once_a_forward_s_cost_is_known():
    driver = Driver(max_rows=4)
    driver.submit(0, DDIM(5), deadline=1e-9)  # nothing is known yet
    driver.server.set_cost(CostCurve(10.0, 1.0))
    with pytest.raises(_core.DeadlineError, match=r"it is (40\.000|39\.999) s away, the estimate is 73\.500 s, with 5"):
        driver.submit(1, DDIM(4), deadline=40.0)  # (5 passes / 4 rows + 4 steps) (10 + 4) s
    driver.submit(1, DDIM(4), deadline=80.0)
    driver.run()
    status = driver.server.status()
    assert (status["samples"], status["deadline_misses"], status["submitted"]) == (2, 1, 2)


@pytest.mark.parametrize("max_rows", [4, 16])
def test_padding_makes_every_forward_as_wide_and_changes_no_sample(max_rows):
    driver = Driver(max_rows, pad=True)
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()
    assert {len(t) for _, t, _ in driver.forwards} == {max_rows}
    for id, sample in enumerate(MIX):
        check_result(driver, id, **sample)
    status = driver.server.status()
    assert status["network_passes"] + status["padded_rows"] == max_rows * len(driver.forwards)


def test_everything_that_happened_is_counted():
    driver = Driver(max_rows=6)
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    driver.run()
    status = driver.server.status()
    rows, steps = sum(len(t) for _, t, _ in driver.forwards), sum(len(sample["table"]) for sample in MIX)
    assert (status["submitted"], status["samples"], status["steps"]) == (len(MIX), len(MIX), steps)
    assert (status["forwards"], status["network_passes"], status["padded_rows"]) == (len(driver.forwards), rows, 0)
    counted = {name: (sum(status[name]["counts"]), status[name]["sum"]) for name in status if name in HISTOGRAMS}
    assert {name: counts for name, (counts, _) in counted.items()} == {
        "wait_seconds": len(MIX),
        "latency_seconds": len(MIX),
        "forward_seconds": len(driver.forwards),
        "forward_rows": len(driver.forwards),
    }
    assert counted["forward_rows"][1] == rows
    assert counted["forward_seconds"][1] == pytest.approx(status["network_seconds"])
    finished = driver.events_of(EventKind.Finished)
    assert counted["latency_seconds"][1] == pytest.approx(sum(e.wait_seconds + e.run_seconds for e in finished))
    assert all(len(status[name]["counts"]) == len(status[name]["bounds"]) + 1 for name in HISTOGRAMS)


HISTOGRAMS = "wait_seconds", "latency_seconds", "forward_seconds", "forward_rows"


def test_memory_is_kept_until_the_event_of_a_sample_s_end_and_no_longer():
    seen = []

    class Watching(Driver):
        def on_events(self, events):
            seen.append(state() is not None)

    driver = Watching()
    driver.submit(0, DDIM(2))
    state = weakref.ref(driver.states.pop(0))
    driver.run()
    assert seen == [True]
    assert state() is None


def test_a_listener_that_raises_ends_the_run_and_all_samples_but_not_the_server():
    def raises(events):
        raise RefusalError

    driver = Driver(max_rows=2)
    for id, sample in enumerate(MIX):
        driver.submit(id, **sample)
    with pytest.raises(RefusalError):
        driver.server.run(driver.forward, raises)
    status = driver.server.status()
    assert (status["waiting"], status["running"]) == (0, 0)
    assert driver.submit(0, **MIX[0])
    driver.run()
    check_result(driver, 0, **MIX[0])


def test_many_threads_may_submit_and_run_the_server_when_the_call_returns_true():
    driver, failures = Driver(max_rows=6, max_waiting=4), []

    def submit(first):
        try:
            for id in range(first, first + 10):
                if driver.submit(id, **MIX[id % len(MIX)], wait=60.0):
                    driver.run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=submit, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(driver.ids(EventKind.Finished)) == list(range(40))
    for id in range(40):
        check_result(driver, id, **MIX[id % len(MIX)])


def test_a_guided_sample_needs_two_rows():
    with pytest.raises(ValueError, match="a guided step takes 2 rows of a forward, max_rows is 1"):
        Driver(max_rows=1).submit(0, DDIM(2, guidance_scale=3.0), cond=1)


def test_an_id_is_free_again_when_its_sample_has_ended():
    driver = Driver()
    driver.submit(0, DDIM(2))
    with pytest.raises(ValueError, match="id 0 is taken"):
        driver.submit(0, DDIM(2))
    driver.run()
    driver.submit(0, DDIM(2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(
            {"x": np.empty(support.ELEMENTS - 1, np.float32)}, ValueError, "x must have 80 bytes, got 76", id="state"
        ),
        pytest.param({"x": np.empty(support.ELEMENTS)}, TypeError, "incompatible", id="state-dtype"),
        pytest.param({"x": np.empty(40, np.float32)[::2]}, TypeError, "incompatible", id="strided-state"),
        pytest.param({"x": np.broadcast_to(np.float32(0), 20).copy()}, None, None, id="fine"),
        pytest.param({"x0": np.empty(1, np.float32)}, ValueError, "x0 must have 80 bytes, got 4", id="preview"),
        pytest.param({"cond": [np.array(1, np.int32)]}, ValueError, "cond must have 8 bytes, got 4", id="condition"),
        pytest.param({"cond": [np.array(1)] * 2}, ValueError, "one value for each conditioning input", id="two-conds"),
        pytest.param({"null_cond": []}, ValueError, "one value for each conditioning input", id="no-null"),
        pytest.param(
            {"table": np.empty((0, 16), np.float32)}, ValueError, "a table of at least one step", id="no-step"
        ),
    ],
)
def test_sizes_are_checked_before_memory_is_touched(change, error, message):
    request = {
        "table": DDIM(2).rows,
        "x": np.empty(support.ELEMENTS, np.float32),
        "x0": None,
        "cond": [np.array(1)],
        "null_cond": NULL_COND,
        **change,
    }
    request["table"] = _core.Table(request["table"], 1.0)
    server = Driver().server
    if error is None:
        server.submit(server.request(0, seed=0, has_noise=False, **request))
        return
    with pytest.raises(error, match=message):
        server.submit(server.request(0, seed=0, has_noise=False, **request))


def test_memory_that_may_not_be_written_is_refused():
    state, server = np.empty(support.ELEMENTS, np.float32), Driver().server
    state.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        server.request(0, _core.Table(DDIM(2).rows, 1.0), 0, False, state, None, [], NULL_COND)


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_running": 0}, {"max_waiting": 0}])
def test_a_server_without_room_is_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        Driver(**options)


samples = st.fixed_dictionaries(
    {
        "table": st.builds(
            lambda make, steps, scale, start: make(steps, guidance_scale=scale, guidance_interval=(start, 1.0)),
            st.sampled_from([DDIM, HEUN, DPMPP, functools.partial(DDIM, eta=0.7)]),
            st.integers(1, 6),
            st.sampled_from([0.0, 1.0, 3.0]),
            st.sampled_from([0.0, 0.5]),
        ),
        "cond": st.none() | st.integers(0, support.NULL - 1),
        "seed": st.integers(0, 2**64 - 1),
    }
)
loads = st.lists(
    st.fixed_dictionaries(
        {
            "sample": samples,
            "forward": st.integers(0, 8),  # that it arrives in; 0 is before the first
            "priority": st.integers(0, 1),
            "cancelled": st.none() | st.none() | st.integers(1, 12),  # inside that forward
        }
    ),
    min_size=1,
    max_size=8,
)
servings = st.fixed_dictionaries(
    {
        "max_rows": st.integers(2, 9),
        "max_running": st.integers(1, 9),
        "policy": st.sampled_from([Policy.FirstCome, Policy.ShortestFirst, Policy.EarliestDeadline]),
        "ageing": st.sampled_from([0.0, 0.1, 2.0]),
        "cost": st.just(CostCurve()) | st.builds(CostCurve, st.sampled_from([0.0, 1.0, 9.0]), st.just(1.0)),
        "pad": st.booleans(),
    }
)


def rows_of(forwards):
    """Rows (input, timestep, class) of forwards, each as often as it is among them."""
    return collections.Counter(
        (x.tobytes(), float(t), int(label)) for rows in forwards for x, t, label in zip(*rows, strict=True)
    )


@settings(deadline=None, max_examples=150)
@given(loads, servings, st.sets(st.integers(1, 12), max_size=2))
def test_any_mix_through_any_width_gives_each_sample_what_it_gets_alone(load, serving, hiccups):
    """Whenever it arrives, whatever is cancelled beside it, and whether or not the network raises at times."""
    counter, succeeded, hiccup = iter(range(1, 10**6)), [], RefusalError()
    to_come = dict(enumerate(load))

    def arrive(forward):
        for id in [id for id, one in to_come.items() if one["forward"] <= forward]:
            one = to_come.pop(id)
            driver.submit(id, **one["sample"], priority=one["priority"], watched=id % 2 == 0)

    def network(x, t, cond):
        forward = next(counter)
        arrive(forward)
        for id, one in enumerate(load):
            if one["cancelled"] == forward:
                driver.server.cancel(id)
        if forward in hiccups:
            raise hiccup
        succeeded.append((x, t, cond["class_labels"]))
        return support.rowwise(x, t, cond)

    driver = Driver(network=network, **serving)
    arrive(0)
    driver.run()
    arrive(8)  # those due in a forward that never ran
    driver.run()

    ends = {event.id: event for event in driver.events if event.kind in ENDS}
    assert sorted(ends) == list(range(len(load)))
    assert sum(event.kind in ENDS for event in driver.events) == len(load)
    done, all_steps = collections.Counter(), collections.Counter()
    for id, one in enumerate(load):
        forwards = support.replay(**one["sample"])[2]
        end = ends[id]
        assert end.kind == EventKind.Finished or end.error is hiccup or one["cancelled"] is not None
        if end.kind == EventKind.Finished:
            check_result(driver, id, **one["sample"])
        watched = [event.step for event in driver.events if event.kind == EventKind.Stepped and event.id == id]
        assert watched == ([] if id % 2 else list(range(1, end.step + 1)))
        done += rows_of(forwards[: end.step])
        all_steps += rows_of(forwards)
    assert len([end for end in ends.values() if end.kind == EventKind.Failed]) <= len(hiccups)
    widths = {len(t) for _, t, _ in driver.forwards}
    assert max(widths) <= serving["max_rows"]
    if serving["pad"]:
        assert widths == {serving["max_rows"]}
    else:  # each step's rows were computed once; a cancelled sample's last ones may have been for nothing
        assert done <= rows_of(succeeded) <= all_steps
