"""Sharing an engine: policies, the queue, deadlines, cancelling, closing, faults, and what is refused."""

import asyncio
import concurrent.futures
import copy
import gc
import logging
import pickle
import queue
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

import stepfuse as sf
from stepfuse import _core

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end


class Turnstile:
    """A row-wise network that waits before each call until it is let through, and keeps what it was given."""

    def __init__(self):
        self.permits, self.entered, self.calls = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, x, t, cond):
        self.calls.append([int(label) for label in cond["class_labels"] if label != support.NULL])
        self.entered.release()
        assert self.permits.acquire(timeout=TIMEOUT)
        return support.rowwise(x, t, cond)

    def let(self, calls):
        self.permits.release(calls)

    def wait_until_called(self):
        assert self.entered.acquire(timeout=TIMEOUT)


@pytest.fixture
def turnstile():
    return Turnstile()


def plain(cond, steps, **more):
    """A request of one row a step, its class the name that the turnstile's calls show."""
    return sf.Request(cond=cond, steps=steps, seed=cond, guidance_scale=1.0, **more)


def expected(cond, steps):
    return support.replay(sf.samplers.ddim(support.SCHEDULE, steps), seed=cond, cond=cond)[0]


def begin(engine, turnstile, *requests):
    """Submits them all while the first one's first call is held up."""
    first = engine.submit(requests[0])
    turnstile.wait_until_called()
    return [first, *(engine.submit(request) for request in requests[1:])]


ORDERS = {
    "auto": ("auto", [{}, {}, {}], [[0], [2], [0], [0], [0], [1], [1], [1]]),
    "fifo": ("fifo", [{}, {}, {}], [[0], [0], [0], [0], [1], [1], [1], [2]]),
    "shortest": ("shortest", [{}, {}, {}], [[0], [2], [0], [0], [0], [1], [1], [1]]),
    "deadline": ("deadline", [{}, {"deadline": 900}, {"deadline": 800}], [[0], [2], [1], [1], [1], [0], [0], [0]]),
    "priority-before-policy": ("shortest", [{}, {"priority": 1}, {}], [[0], [1], [1], [1], [2], [0], [0], [0]]),
    "low-priority-waits": ("fifo", [{"priority": -1}, {}, {}], [[0], [1], [1], [1], [2], [0], [0], [0]]),
}


@pytest.mark.parametrize(("policy", "more", "calls"), ORDERS.values(), ids=ORDERS)
def test_the_policy_chooses_what_steps_next_and_no_image_changes(turnstile, policy, more, calls):
    with support.make_engine(turnstile, serving=sf.Serving(max_rows=1, policy=policy)) as engine:
        now = time.monotonic()
        more = [{name: now + value if name == "deadline" else value for name, value in one.items()} for one in more]
        requests = [plain(cond, steps, **more[cond]) for cond, steps in enumerate((4, 3, 1))]
        futures = begin(engine, turnstile, *requests)
        turnstile.let(8)
        for cond, (future, steps) in enumerate(zip(futures, (4, 3, 1), strict=True)):
            np.testing.assert_array_equal(future.result(TIMEOUT), expected(cond, steps))
    assert turnstile.calls == calls


def test_a_later_request_joins_at_the_next_step(turnstile):
    with support.make_engine(turnstile, max_rows=4) as engine:
        futures = begin(engine, turnstile, plain(0, 3), plain(1, 1))
        turnstile.let(3)
        np.testing.assert_array_equal(futures[1].result(TIMEOUT), expected(1, 1))
        np.testing.assert_array_equal(futures[0].result(TIMEOUT), expected(0, 3))
    assert turnstile.calls == [[0], [0, 1], [0]]


def test_a_full_queue_refuses_and_says_how_full(turnstile):
    with support.make_engine(turnstile, serving=sf.Serving(max_rows=1, max_queue=2)) as engine:
        futures = begin(engine, turnstile, plain(0, 1), plain(1, 1), plain(2, 1))
        for wait in (0.0, 0.05):
            with pytest.raises(sf.QueueFull, match="the queue is full: 2 requests wait"):
                engine.submit(plain(3, 1), wait=wait)
        assert engine.stats()["waiting"] == 2
        threading.Timer(0.05, turnstile.let, [4]).start()
        futures.append(engine.submit(plain(3, 1), wait=TIMEOUT))
        for cond, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(TIMEOUT), expected(cond, 1))


def test_one_call_of_sample_may_be_larger_than_the_queue():
    with support.make_engine(serving=sf.Serving(max_rows=2, max_queue=1, max_running=1)) as engine:
        images = engine.sample(6, steps=2, seed=0)
    table = sf.samplers.ddim(support.SCHEDULE, 2)
    np.testing.assert_array_equal(images, [support.replay(table, seed=seed)[0] for seed in range(6)])


def test_a_running_request_can_be_cancelled_between_steps(turnstile):
    with support.make_engine(turnstile, max_rows=4) as engine:
        futures = begin(engine, turnstile, plain(0, 5), plain(1, 3))
        turnstile.let(1)
        turnstile.wait_until_called()
        assert futures[0].cancel()
        turnstile.let(10)
        np.testing.assert_array_equal(futures[1].result(TIMEOUT), expected(1, 3))
        with pytest.raises(CancelledError):
            futures[0].result(TIMEOUT)
        assert not futures[1].cancel(), "it has ended"
        assert futures[1].result(TIMEOUT).shape == support.SHAPE
        engine.close()
    assert turnstile.calls == [[0], [0, 1], [1], [1]]
    assert engine.stats()["cancelled"] == 1


def test_a_request_is_given_up_at_its_timeout(turnstile):
    with support.make_engine(turnstile, max_rows=4) as engine:
        running, waiting = begin(engine, turnstile, plain(0, 5, timeout=0.02, id="slow"), plain(1, 2, timeout=1e-6))
        other = engine.submit(plain(2, 2))
        time.sleep(0.05)
        turnstile.let(10)
        with pytest.raises(
            sf.RequestTimeout, match=r"request slow was not finished within its timeout of 0.02 s: 1 of 5"
        ):
            running.result(TIMEOUT)
        with pytest.raises(TimeoutError, match="0 of 2 steps are done"):
            waiting.result(TIMEOUT)
        np.testing.assert_array_equal(other.result(TIMEOUT), expected(2, 2))
        engine.close()
    assert engine.stats()["expired"] == 2


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate(turnstile):
    with support.make_engine(turnstile, serving=sf.Serving(max_rows=1, policy="deadline")) as engine:
        engine.calibrate(sf.CostCurve(fixed=0.0, row=1.0))
        soon = time.monotonic() + 100
        futures = begin(engine, turnstile, plain(0, 60, deadline=soon))
        with pytest.raises(
            sf.DeadlineError, match=r"it is 109\.\d+ s away, the estimate is 110\.000 s, with 60 network"
        ):
            engine.submit(plain(1, 50, deadline=soon + 10))
        futures.append(engine.submit(plain(1, 50, deadline=soon + 20)))
        futures.append(engine.submit(plain(2, 50, deadline=soon - 10)))  # goes first, whatever that does to others
        turnstile.let(160)
        for cond, (future, steps) in enumerate(zip(futures, (60, 50, 50), strict=True)):
            np.testing.assert_array_equal(future.result(TIMEOUT), expected(cond, steps))
        assert engine.stats()["deadline_misses"] == 0


def test_a_deadline_missed_is_counted_and_the_image_delivered(turnstile):
    with support.make_engine(turnstile) as engine:
        futures = begin(engine, turnstile, plain(0, 1, deadline=time.monotonic() + 0.01))
        time.sleep(0.03)
        turnstile.let(1)
        np.testing.assert_array_equal(futures[0].result(TIMEOUT), expected(0, 1))
        assert engine.stats()["deadline_misses"] == 1


def test_closing_with_abort_ends_every_request(turnstile):
    engine = support.make_engine(turnstile, max_rows=2)
    futures = begin(engine, turnstile, *(plain(cond, 3) for cond in range(6)))
    closer = threading.Thread(target=engine.close, kwargs={"abort": True})
    closer.start()
    for _ in range(1000):
        if engine._service.phase == _core.Phase.Aborting:
            break
        time.sleep(0.01)
    time.sleep(0.05)  # what comes between that flag and the withdrawal takes microseconds
    turnstile.let(100)
    closer.join(TIMEOUT)
    for future in futures:
        with pytest.raises(sf.EngineClosed, match="the engine was closed before request"):
            future.result(TIMEOUT)
    assert len(turnstile.calls) == 1
    with pytest.raises(sf.EngineClosed, match="the engine is closed"):
        engine.submit(plain(0, 1))


def test_an_endless_row_of_requests_is_taken_as_room_becomes_free_and_failures_come_with_their_request():
    def endless():
        while True:
            taken.append(plain(len(taken) % 5, 2))
            yield taken[-1]

    def spoiled(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 3] = np.nan
        return prediction

    taken = []
    with support.make_engine(spoiled, serving=sf.Serving(max_queue=7)) as engine:
        finished = engine.as_completed(endless())
        for _ in range(40):
            request, future = next(finished)
            if request.cond == 3:
                assert isinstance(future.exception(), sf.DenoiserError)
            else:
                np.testing.assert_array_equal(future.result(), expected(request.cond, 2))
        finished.close()
        assert len(taken) <= 40 + 7


def test_a_request_refused_comes_out_with_its_refusal_and_the_others_go_on():
    requests = [plain(0, 2), sf.Request(steps=0, id="none"), plain(2, 2)]
    with support.make_engine() as engine:
        found = {request.id or request.cond: future for request, future in engine.as_completed(requests)}
    assert str(found["none"].exception()) == "steps must be between 1 and 1000, got 0"
    for cond in (0, 2):
        np.testing.assert_array_equal(found[cond].result(), expected(cond, 2))


def test_a_callback_may_use_the_engine_however_few_may_run():
    inner = []
    with support.make_engine(serving=sf.Serving(max_rows=1, max_running=1)) as engine:

        def draw(step, total, preview):
            inner.append(engine.submit(plain(1, 2)).result(TIMEOUT))

        outer = engine.sample(1, cond=0, steps=2, guidance_scale=1.0, seed=0, callback=draw)
    np.testing.assert_array_equal(outer[0], expected(0, 2))
    np.testing.assert_array_equal(inner, [expected(1, 2)] * 2)


def test_a_callback_hides_no_failure():
    def spoiled(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 3] = np.nan
        return prediction

    with support.make_engine(spoiled) as engine, pytest.raises(sf.DenoiserError, match="sample 0 went non-finite"):
        engine.sample(2, cond=[3, 1], steps=3, callback=lambda *_: False)


@pytest.mark.parametrize(
    "error",
    [
        StopIteration,
        StopAsyncIteration,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        asyncio.CancelledError,
        concurrent.futures.CancelledError,
    ],
    ids=lambda error: f"{error.__module__}.{error.__name__}",
)
def test_what_ends_loops_is_an_error_like_others_when_the_network_raises_it(error):
    def network(x, t, cond):
        raise error("out of data")

    async def walk(stream):
        return [preview async for preview in stream]

    with support.make_engine(network) as engine:
        message = rf"the network raised {error.__name__}\('out of data'\) for request"
        with pytest.raises(sf.DenoiserError, match=message):
            list(engine.stream(sf.Request(steps=2)))
        with pytest.raises(sf.DenoiserError, match=message):
            asyncio.run(asyncio.wait_for(walk(engine.stream(sf.Request(steps=2))), TIMEOUT))
        with pytest.raises(sf.DenoiserError, match=message):
            asyncio.run(asyncio.wait_for(engine.asample(steps=2), TIMEOUT))


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, ValueError])
def test_what_a_callback_raises_on_the_engine_s_thread_harms_no_other_request(turnstile, raised):
    def callback(_future):
        raise raised("mine")

    with support.make_engine(turnstile, max_rows=4) as engine:
        futures = begin(engine, turnstile, plain(0, 1), plain(1, 2), plain(2, 1))
        futures[0].add_done_callback(callback)
        turnstile.let(9)
        for cond, (future, steps) in enumerate(zip(futures, (1, 2, 1), strict=True)):
            np.testing.assert_array_equal(future.result(TIMEOUT), expected(cond, steps))


def test_a_filter_of_the_application_s_that_raises_harms_no_request():
    def filter_(record):
        raise OSError("disk full")

    logger = logging.getLogger("stepfuse")
    logger.addFilter(filter_)
    try:
        spoiled = support.make_engine(lambda x, t, cond: np.full_like(x, np.nan))
        with spoiled as engine, pytest.raises(sf.DenoiserError, match="sample 0 went non-finite"):
            engine.sample(2, steps=2)
    finally:
        logger.removeFilter(filter_)


def test_a_bug_in_the_loop_fails_all_that_wait_and_is_logged(turnstile, caplog, monkeypatch):
    with support.make_engine(turnstile, max_rows=2) as engine:
        futures = begin(engine, turnstile, plain(0, 2), plain(1, 2), plain(2, 2))
        raised = []

        def sample():
            try:
                engine.sample(2, cond=3, steps=2)
            except MemoryError as error:
                raised.append(error)

        caller = threading.Thread(target=sample)
        caller.start()
        while engine.stats()["submitted"] < 5:
            time.sleep(0.001)

        def bug(*arguments, **options):
            monkeypatch.undo()
            raise MemoryError("as if")

        monkeypatch.setattr("stepfuse.serving.reporting.error_of", bug)
        turnstile.let(9)
        for future in futures:
            with pytest.raises(MemoryError, match="as if"):
                future.result(TIMEOUT)
        caller.join(TIMEOUT)
        assert len(raised) == 1
        assert "the loop failed with MemoryError('as if')" in caplog.text
        np.testing.assert_array_equal(engine.submit(plain(0, 1)).result(TIMEOUT), expected(0, 1))


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda engine: engine.submit(plain(1, 1)).result(), id="result"),
        pytest.param(lambda engine: engine.submit(plain(1, 1)).exception(), id="exception"),
        pytest.param(lambda engine: next(engine.stream(plain(1, 1))), id="stream"),
        pytest.param(lambda engine: list(engine.as_completed([plain(1, 1)])), id="as_completed"),
        pytest.param(lambda engine: engine.calibrate(), id="calibrate"),
    ],
)
def test_waiting_on_the_engine_s_own_thread_is_refused(turnstile, wait):
    refused = queue.SimpleQueue()

    def callback(_future):
        try:
            wait(engine)
        except RuntimeError as error:
            refused.put(str(error))

    with support.make_engine(turnstile) as engine:
        [future] = begin(engine, turnstile, plain(0, 1))
        future.add_done_callback(callback)
        turnstile.let(9)
        assert "but neither wait for it nor close it" in refused.get(timeout=TIMEOUT)


def test_an_image_is_let_go_with_its_future():
    gc.collect()
    gc.disable()  # it would hide a circle
    try:
        with support.make_engine() as engine:
            future = engine.submit(plain(0, 2))
            stream = engine.stream(plain(0, 2))
            images = [weakref.ref(future.result(TIMEOUT)), weakref.ref(list(stream)[-1].x0)]
            images.append(weakref.ref(engine.sample(2, steps=2, callback=lambda *_: None)))
            engine.close()
            del future, stream
            assert [image() is None for image in images] == [True] * 3
    finally:
        gc.enable()


def test_an_idle_engine_takes_deadlines_however_slow_it_was(monkeypatch):
    def slow(x, t, cond):
        time.sleep(0.02)
        return support.rowwise(x, t, cond)

    with support.make_engine(slow) as engine:
        engine.submit(plain(0, 5)).result(TIMEOUT)
        image = engine.submit(plain(0, 5, deadline=time.monotonic() + 0.01)).result(TIMEOUT)
    np.testing.assert_array_equal(image, expected(0, 5))


def test_padded_forwards_are_full_whatever_a_row_costs():
    with support.make_engine(max_rows=8, deterministic=True) as engine:
        engine.calibrate(sf.CostCurve(fixed=0.1, row=1.0))
        engine.sample(8, steps=3, cond=0, guidance_scale=1.0)
        assert engine.stats()["forwards"] == 3


@pytest.mark.parametrize("max_rows", [5, 7])
def test_deterministic_images_are_independent_of_their_neighbours(tmp_path, backend, max_rows):
    path = support.write_tiny_bundle(tmp_path / "tiny").path
    with sf.Engine.load(path, backend=backend, threads=2, max_rows=max_rows, deterministic=True) as engine:
        alone = engine.sample(1, cond=1, steps=6, guidance_scale=3.0, seed=9)[0]
        for others in range(1, 6):
            mix = [engine.submit(plain(cond, 2 + cond)) for cond in range(others)]
            one = engine.submit(sf.Request(cond=1, steps=6, guidance_scale=3.0, seed=9))
            np.testing.assert_array_equal(one.result(TIMEOUT), alone)
            for future in mix:
                future.result(TIMEOUT)


def test_padding_makes_an_image_independent_of_what_shares_its_forwards():
    def by_size(x, t, cond):  # a network library that computes each number of rows in its own way
        return support.rowwise(x, t, cond) * np.float32(1 + len(x) * 1e-6)

    for deterministic in (False, True):
        with support.make_engine(by_size, max_rows=8, deterministic=deterministic) as engine:
            alone = engine.sample(1, cond=1, steps=4, seed=9)[0]
            together = engine.sample(4, cond=[1, 2, 3, 4], steps=[4, 2, 3, 5], seed=9)[0]
        assert np.array_equal(alone, together) == deterministic
        assert (engine.stats()["padded_rows"] > 0) == deterministic


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        pytest.param(
            sf.Request(cond={"text": 1}), ValueError, "cond must have names among class_labels, got text", id="cond"
        ),
        pytest.param(sf.Request(noise=np.zeros(3)), ValueError, "noise must have shape", id="shape"),
        pytest.param(sf.Request(guidance_scale=np.nan), ValueError, "guidance_scale must be .*got nan", id="nan"),
        pytest.param(sf.Request(deadline=1e-9), ValueError, "deadline must lie ahead .* it passed", id="past"),
        pytest.param(sf.Request(deadline=np.nan), ValueError, "deadline must be finite, got nan", id="deadline-nan"),
        pytest.param(
            sf.Request(deadline="soon"), TypeError, "deadline must be a number, got 'soon'", id="deadline-text"
        ),
        pytest.param(sf.Request(timeout=0), ValueError, "timeout must be above 0 seconds, got 0", id="timeout"),
        pytest.param(sf.Request(priority=1.5), TypeError, "priority must be a whole number, got 1.5", id="priority"),
        pytest.param(sf.Request(id=7), TypeError, "id must be a text of at least one character, got 7", id="id"),
        pytest.param(sf.Request(priority=1 << 40), ValueError, "priority must fit 32 bits", id="priority-large"),
    ],
)
def test_bad_requests_are_refused_in_the_caller_s_thread(request_, error, message):
    with support.make_engine() as engine:
        with pytest.raises(error, match=message):
            engine.submit(request_)
        assert engine.stats()["submitted"] == 0
        assert not engine._service._core.owners()


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"policy": "lifo"}, ValueError, "policy must be one of auto, fifo, shortest, deadline, got 'lifo'"),
        ({"max_queue": 0}, ValueError, "max_queue must be at least 1, got 0"),
        ({"max_running": 2.5}, TypeError, "max_running must be a whole number, got 2.5"),
        ({"ageing": 0.1}, ValueError, "ageing is set for policy='shortest' alone, got 0.1 with 'auto'"),
        (
            {"ageing": 0.0, "policy": "fifo"},
            ValueError,
            "ageing is set for policy='shortest' alone, got 0.0 with 'fifo'",
        ),
        ({"ageing": -0.1}, ValueError, "ageing must be finite and at least 0, got -0.1"),
        ({"max_rows": True}, TypeError, "max_rows must be a whole number, got True"),
        ({"max_rows": 10**9}, ValueError, "max_rows must be at most 65536, got 1000000000"),
        ({"max_queue": 2**40}, ValueError, "max_queue must be at most 16777216, got"),
        ({"max_running": 2**40}, ValueError, "max_running must be at most 1048576, got"),
        ({"ageing": "fast"}, TypeError, "ageing must be a number, got 'fast'"),
    ],
)
def test_bad_settings_are_refused(given_, error, message):
    with pytest.raises(error, match=message):
        sf.Serving(**given_)


def test_a_wait_is_a_number_of_seconds():
    with support.make_engine() as engine, pytest.raises(ValueError, match="wait must be at least 0 seconds, got nan"):
        engine.submit(sf.Request(), wait=float("nan"))


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_is_neither_pickled_nor_copied(do):
    with support.make_engine() as engine, pytest.raises(TypeError, match="neither pickled nor copied: load it in each"):
        do(engine)


def run_script(script):
    script = "import stepfuse as sf\n" + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_a_fork_is_told_to_load_its_own_engine():
    done = run_script(
        """
        import os
        engine = sf.Engine.load("fashion", threads=1)
        engine.sample(1, steps=1)
        if os.fork() == 0:
            for call in (engine.sample, lambda: engine.submit(sf.Request()), engine.warmup, engine.stats):
                try:
                    call()
                except RuntimeError as error:
                    print(error, flush=True)
            engine.close()
            os._exit(0)
        os.wait()
        print(engine.sample(1, steps=1).shape)
        """
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert all("belongs to process" in line and "load it after the fork" in line for line in lines[:4])
    assert lines[4] == "(1, 1, 28, 28)"


def test_a_program_that_ends_without_closing_draws_what_it_submitted():
    done = run_script(
        """
        engine = sf.Engine.load("fashion", threads=1)
        for seed in range(3):
            engine.submit(sf.Request(steps=2, seed=seed)).add_done_callback(lambda f: print(f.result().shape))
        """
    )
    assert done.stdout.splitlines() == ["(1, 28, 28)"] * 3, done.stderr


def test_ctrl_c_ends_a_wait_for_room_in_the_queue():
    done = run_script(
        """
        import signal, threading
        held = threading.Event()
        def fn(x, t, cond):
            held.wait(30)
            return x
        serving = sf.Serving(max_rows=1, max_queue=1)
        engine = sf.Engine.from_callable(fn, shape=(2,), schedule=sf.NoiseSchedule.linear(), serving=serving)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(1.0, signal.raise_signal, [signal.SIGINT]).start()
        try:
            for _ in range(4):
                engine.submit(sf.Request(steps=1), wait=60)
        except KeyboardInterrupt:
            print("interrupted")
        held.set()
        engine.close()
        """
    )
    assert done.stdout.splitlines() == ["interrupted"], done.stderr


class Random:
    """A row-wise network that raises for class 4 and spoils class 5; at some of its calls it cancels requests."""

    def __init__(self):
        self.futures, self.cancel_at, self.calls = [], {}, 0

    def __call__(self, x, t, cond):
        self.calls += 1
        for index in self.cancel_at.get(self.calls, ()):
            if index < len(self.futures):
                self.futures[index].cancel()
        if 4 in cond["class_labels"]:
            raise RuntimeError("class 4")
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 5] = np.inf
        return prediction


requests = st.builds(
    sf.Request,
    cond=st.none() | st.integers(0, 6),
    sampler=st.sampled_from(["ddim", "dpmpp_2m", "heun"]),
    steps=st.integers(1, 5),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 2**64 - 1),
    priority=st.integers(-1, 1),
    timeout=st.none() | st.just(1e-6),
)
policies = st.sampled_from([{"policy": name} for name in ("auto", "fifo", "deadline")]) | st.fixed_dictionaries(
    {"policy": st.just("shortest"), "ageing": st.sampled_from([None, 0.0, 0.01, 1.0])}
)
servings = st.builds(
    lambda policy, **more: sf.Serving(**policy, **more),
    policy=policies,
    max_rows=st.integers(2, 9),
    max_running=st.none() | st.integers(1, 5),
    deterministic=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(requests, min_size=1, max_size=12),
    servings,
    st.none() | st.builds(sf.CostCurve, st.just(1.0), st.sampled_from([0.01, 1.0, 10.0])),
    st.dictionaries(st.integers(1, 15), st.lists(st.integers(0, 11), max_size=3), max_size=4),
)
def test_every_request_gets_its_own_image_or_its_own_error(requests, serving, cost, cancel_at):
    network = Random()
    with support.make_engine(network, serving=serving) as engine:
        if cost is not None:
            engine.calibrate(cost)
        network.cancel_at = cancel_at
        for request in requests:
            network.futures.append(engine.submit(request))
        for request, future in zip(requests, network.futures, strict=True):
            check_outcome(request, future, cancellable=bool(cancel_at))
    stats = engine.stats()
    ended = [stats[name] for name in ("samples", "failures", "cancelled", "expired")]
    assert sum(ended) == stats["submitted"] == len(requests)


def check_outcome(request, future, *, cancellable):
    guilty = request.cond if request.guidance_scale != 0 else None
    try:
        error = future.exception(TIMEOUT)
    except CancelledError:
        assert cancellable
        return
    if error is None:
        assert guilty not in (4, 5)
        alone = support.replay(table_of(request), seed=request.seed, cond=request.cond)[0]
        np.testing.assert_array_equal(future.result(), alone)
    elif isinstance(error, sf.RequestTimeout):
        assert request.timeout is not None
    elif isinstance(error, sf.DenoiserError):
        assert guilty == 5
        assert f"at step 0 of {len(table_of(request))}" in str(error)
    else:
        assert guilty == 4
        assert str(error) == "class 4"


def table_of(request):
    scale = 1.0 if request.cond is None else request.guidance_scale
    return sf.samplers.SAMPLERS[request.sampler](support.SCHEDULE, request.steps, guidance_scale=scale)
