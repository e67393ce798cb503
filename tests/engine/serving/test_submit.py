"""Requests in the background: futures, awaiting, batching, and that one bad request harms no other."""

import asyncio
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import support

import stepfuse as sf

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end


@pytest.fixture
def engine():
    with support.make_engine() as engine:
        yield engine


class Gate:
    """A row-wise network whose first call waits until it is opened, so that requests pile up behind it."""

    def __init__(self):
        self.entered, self.opened, self.calls = threading.Event(), threading.Event(), []

    def __call__(self, x, t, cond):
        self.calls.append(len(x))
        self.entered.set()
        assert self.opened.wait(TIMEOUT)
        return support.rowwise(x, t, cond)


def test_a_future_holds_what_sample_gives(engine):
    arguments = {"cond": "bag", "sampler": "dpmpp_2m", "steps": 5, "guidance_scale": 3.0, "seed": 3}
    image = engine.submit(sf.Request(**arguments)).result(TIMEOUT)
    np.testing.assert_array_equal(image, engine.sample(1, **arguments)[0])


def test_a_request_takes_noise_tables_and_options(engine):
    noise = sf.normal(9, support.SHAPE)
    table = sf.samplers.heun(support.SCHEDULE, 3)
    image = engine.submit(sf.Request(table=table, noise=noise, cond=2)).result(TIMEOUT)
    np.testing.assert_array_equal(image, engine.sample(1, table=table, noise=noise[None], cond=2)[0])
    image = engine.submit(sf.Request(steps=4, options={"spacing": "trailing"}, seed=1)).result(TIMEOUT)
    np.testing.assert_array_equal(image, engine.sample(1, steps=4, spacing="trailing", seed=1)[0])


def test_it_can_be_awaited(engine):
    async def gather():
        return await asyncio.gather(*(engine.asample(cond=i, steps=3 + i, seed=i) for i in range(4)))

    for i, image in enumerate(asyncio.run(asyncio.wait_for(gather(), TIMEOUT))):
        np.testing.assert_array_equal(image, engine.sample(1, cond=i, steps=3 + i, seed=i)[0])


def test_requests_that_wait_share_a_batch():
    gate = Gate()
    with support.make_engine(gate) as engine:
        first = engine.submit(sf.Request(steps=1, seed=0))
        assert gate.entered.wait(TIMEOUT)
        others = [engine.submit(sf.Request(cond=i, steps=2, seed=i)) for i in range(5)]
        gate.opened.set()
        images = [future.result(TIMEOUT) for future in [first, *others]]
        assert gate.calls == [1, 5, 5]
        for i, image in enumerate(images[1:]):
            np.testing.assert_array_equal(image, engine.sample(1, cond=i, steps=2, seed=i)[0])


def test_a_waiting_request_can_be_cancelled():
    gate = Gate()
    with support.make_engine(gate) as engine:
        first = engine.submit(sf.Request(steps=1, seed=0))
        assert gate.entered.wait(TIMEOUT)
        second = engine.submit(sf.Request(steps=1, seed=1))
        assert second.cancel()
        gate.opened.set()
        first.result(TIMEOUT)
        with pytest.raises(CancelledError):
            second.result(TIMEOUT)


def test_only_the_guilty_request_fails():
    def spoiled(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 3] = np.nan
        return prediction

    with support.make_engine(spoiled) as engine:
        futures = [engine.submit(sf.Request(cond=i, steps=3, seed=i)) for i in range(6)]
        for i, future in enumerate(futures):
            if i == 3:
                with pytest.raises(sf.DenoiserError, match="non-finite at step 0 of 3"):
                    future.result(TIMEOUT)
            else:
                np.testing.assert_array_equal(future.result(TIMEOUT), support.replay(_table(), seed=i, cond=i)[0])


def _table():
    return sf.samplers.ddim(support.SCHEDULE, 3)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        pytest.param(sf.Request(steps=0), ValueError, "steps must be between 1 and 1000, got 0", id="steps"),
        pytest.param(sf.Request(cond="spaceship"), ValueError, "'spaceship'", id="class"),
        pytest.param(sf.Request(noise=np.zeros((1, *support.SHAPE))), ValueError, "noise must have shape", id="noise"),
    ],
)
def test_bad_requests_are_refused_at_once(engine, request_, error, message):
    with pytest.raises(error, match=message):
        engine.submit(request_)


def test_closing_draws_what_was_submitted_and_refuses_what_comes_later():
    engine = support.make_engine()
    futures = [engine.submit(sf.Request(steps=4, seed=i)) for i in range(8)]
    engine.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(sf.Request(steps=4))
    engine.close()


def test_closing_from_a_future_s_callback_is_refused():
    gate, refusals = Gate(), []

    def close(_future):
        try:
            engine.close()
        except RuntimeError as error:
            refusals.append(str(error))

    with support.make_engine(gate) as engine:
        engine.submit(sf.Request(steps=1)).add_done_callback(close)
        gate.opened.set()
    assert len(refusals) == 1
    assert "may submit to it, but neither wait for it nor close it" in refusals[0]


def test_closing_from_inside_a_run_is_refused_also_while_requests_wait(engine):
    def close(step, total, preview):
        waiting.append(engine.submit(sf.Request(steps=2, seed=1)))
        engine.close()

    waiting = []
    with pytest.raises(RuntimeError, match="cannot be closed from a callback"):
        engine.sample(1, steps=2, callback=close)
    np.testing.assert_array_equal(waiting[0].result(TIMEOUT), engine.sample(1, steps=2, seed=1)[0])


def test_many_threads_submit_and_sample_at_once(engine):
    expected = [engine.sample(1, steps=3, seed=i)[0] for i in range(24)]
    results = [None] * 24

    def work(start):
        for i in range(start, 24, 4):
            if i % 2:
                results[i] = engine.submit(sf.Request(steps=3, seed=i)).result(TIMEOUT)
            else:
                results[i] = engine.sample(1, steps=3, seed=i)[0]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, want)
