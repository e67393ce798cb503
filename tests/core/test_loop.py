"""The compiled loop, driven directly: what each forward is given, and what becomes of a sample that fails."""

import functools

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

from stepfuse import _core, samplers

NULL_COND = [np.array(support.NULL)]
MAKERS = samplers.ddim, samplers.heun, samplers.dpmpp_2m
DDIM, HEUN, DPMPP = (functools.partial(make, support.SCHEDULE) for make in MAKERS)


class Driver:
    """A loop over a row-wise network that keeps the input rows of every forward and checks every turn."""

    def __init__(self, max_rows=16, integer_timestep=False, network=support.rowwise):
        self.loop = _core.Loop(support.ELEMENTS, integer_timestep, [8], max_rows)
        self.network, self.forwards, self.states = network, [], {}
        views = self.loop.buffers()
        self.labels = views["cond"][0].view(np.int64).reshape(-1)
        self.inputs = views["sample"].reshape(-1, *support.SHAPE), views["timestep"].reshape(-1), self.labels
        self.prediction = views["prediction"].reshape(-1, *support.SHAPE)

    def submit(self, id, table, *, seed=0, cond=None):
        self.states[id] = np.empty(support.SHAPE, np.float32)
        compiled = _core.Table(table.rows, table.init_scale)
        told = [] if cond is None else [np.array(cond)]
        self.loop.submit(id, compiled, seed, False, self.states[id].reshape(-1), None, told, NULL_COND)

    def run(self, on_turn=None):
        return self.loop.run(self.forward, on_turn, check=True)

    def forward(self, rows):
        x, t, labels = (view[:rows].copy() for view in self.inputs)
        self.forwards.append((x, t, labels))
        self.prediction[:rows] = self.network(x, t, {"class_labels": labels})


TRAJECTORIES = {
    "guided-then-retires": {"table": DDIM(2, guidance_scale=3.0), "cond": 1, "seed": 1},
    "conditional-only": {"table": DDIM(4), "cond": 2, "seed": 2},
    "scaled-input-with-history": {"table": HEUN(3, guidance_scale=2.0), "cond": 3, "seed": 3},
    "unconditional-only": {"table": DDIM(3, guidance_scale=0.0), "cond": 4, "seed": 4},
    "told-nothing": {"table": DPMPP(5, guidance_scale=3.0), "cond": None, "seed": 5},
    "noisy": {"table": DDIM(4, eta=1.0, guidance_scale=1.5), "cond": 6, "seed": 6},
    "guidance-ends-midway": {"table": DDIM(6, guidance_scale=3.0, guidance_interval=(0.5, 1.0)), "cond": 5, "seed": 7},
}


def check_result(driver, id, **sample):
    np.testing.assert_array_equal(driver.states[id], support.replay(**sample)[0])


def test_each_forward_holds_every_sample_s_rows_in_order_also_after_neighbours_retire():
    driver = Driver()
    for id, sample in enumerate(TRAJECTORIES.values()):
        driver.submit(id, **sample)
    assert driver.run() == []

    alone = [support.replay(**sample)[2] for sample in TRAJECTORIES.values()]
    assert len(driver.forwards) == max(map(len, alone))
    for turn, seen in enumerate(driver.forwards):
        expected = zip(*(forwards[turn] for forwards in alone if turn < len(forwards)), strict=True)
        for values, rows in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(values, np.concatenate(rows))
    for id, sample in enumerate(TRAJECTORIES.values()):
        check_result(driver, id, **sample)


def test_integer_networks_get_timesteps_rounded_as_the_samplers_do():
    driver = Driver(integer_timestep=True)
    table = DDIM(timesteps=[900.5, 500.6, 20.0])
    driver.submit(0, table)
    driver.run()
    given = [t for _, t, _ in driver.forwards]
    assert all(t.dtype == np.int64 for t in given)
    assert np.concatenate(given).tolist() == [900, 501, 20]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label", [pytest.param(1, id="conditional"), pytest.param(support.NULL, id="unconditional")])
def test_a_sample_that_goes_non_finite_is_reported_and_leaves_its_neighbours_alone(value, label):
    table = DDIM(5, guidance_scale=3.0)
    before = {"table": DDIM(7, guidance_scale=2.0), "cond": 3, "seed": 30}
    after = {"table": HEUN(4), "cond": 4, "seed": 40}

    def network(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[(t == table["t"][2]) & (cond["class_labels"] == label), ..., -1] = value
        return prediction

    driver = Driver(network=network)
    driver.submit(100, **before)
    driver.submit(200, table, cond=1)
    driver.submit(300, **after)
    [(id, step, row)] = driver.run()
    assert (id, step) == (200, 2)
    np.testing.assert_array_equal(row, table[2])

    assert driver.run() == []
    check_result(driver, 100, **before)
    check_result(driver, 300, **after)
    assert driver.loop.counters()["failures"] == 1


def test_all_that_fail_in_one_turn_are_reported():
    driver = Driver(network=lambda x, t, cond: np.full_like(x, np.nan))
    for id in (4, 2):
        driver.submit(id, DDIM(3))
    assert [(id, step) for id, step, _ in driver.run()] == [(4, 0), (2, 0)]


def test_abort_forgets_running_and_waiting_samples_and_their_conditioning():
    driver = Driver(max_rows=2)
    for id in range(2):
        driver.submit(id, DDIM(5, guidance_scale=3.0), cond=2)
    driver.run(on_turn=lambda: False)
    driver.loop.abort()
    assert len(driver.forwards) == 1

    fresh = {"table": DDIM(4, guidance_scale=3.0), "cond": 5, "seed": 9}
    driver.submit(2, **fresh)
    driver.run()
    check_result(driver, 2, **fresh)
    assert len(driver.forwards) == 1 + 4


def test_a_run_stopped_or_interrupted_goes_on_where_it_was():
    def network(x, t, cond):
        if len(driver.forwards) in (3, 5):
            raise RuntimeError("out of luck")
        return support.rowwise(x, t, cond)

    driver = Driver(max_rows=4, network=network)
    for id, sample in enumerate(TRAJECTORIES.values()):
        driver.submit(id, **sample)
    driver.run(on_turn=lambda: False)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            driver.run()
    assert driver.run() == []
    for id, sample in enumerate(TRAJECTORIES.values()):
        check_result(driver, id, **sample)


def test_a_guided_sample_needs_two_rows():
    with pytest.raises(ValueError, match="a guided step takes 2 rows of a forward, max_rows is 1"):
        Driver(max_rows=1).submit(0, DDIM(2, guidance_scale=3.0), cond=1)


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


@settings(deadline=None, max_examples=150)
@given(st.lists(samples, min_size=1, max_size=8), st.integers(2, 9), st.integers(0, 8))
def test_any_mix_through_any_width_gives_each_sample_what_it_gets_alone(mix, max_rows, late):
    driver = Driver(max_rows)
    for id, sample in enumerate(mix[:late]):
        driver.submit(id, **sample)
    driver.run(on_turn=lambda: False)  # those after join a run that has begun
    for id, sample in enumerate(mix[late:], start=len(mix[:late])):
        driver.submit(id, **sample)
    assert driver.run() == []
    for id, sample in enumerate(mix):
        check_result(driver, id, **sample)
    assert max(len(t) for _, t, _ in driver.forwards) <= max_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"x": np.empty(support.ELEMENTS - 1, np.float32)}, "x must have 80 bytes, got 76", id="state"),
        pytest.param({"x0": np.empty(1, np.float32)}, "x0 must have 80 bytes, got 4", id="preview"),
        pytest.param({"cond": [np.array(1, np.int32)]}, "cond must have 8 bytes, got 4", id="condition"),
        pytest.param({"null_cond": []}, "one value for each conditioning input", id="no-null"),
    ],
)
def test_sizes_are_checked_before_memory_is_touched(change, message):
    request = {"x": np.empty(support.ELEMENTS, np.float32), "x0": None, "cond": [np.array(1)], "null_cond": NULL_COND}
    table = _core.Table(DDIM(2).rows, 1.0)
    with pytest.raises(ValueError, match=message):
        Driver().loop.submit(0, table, 0, False, **{**request, **change})
