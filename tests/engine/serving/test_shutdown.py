"""How engines end: drained, aborted, abandoned, without a thread, and with the interpreter."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import support

import stepfuse as sf

TIMEOUT = 30  # seconds: nothing here takes ten; a hang must end
TABLE = sf.samplers.ddim(support.SCHEDULE, 2)
EXPECTED = support.replay(TABLE, seed=9)[0]
REQUEST = sf.Request(table=TABLE, seed=9)


class Hanging:
    """A row-wise network that hangs from its second call on, until it is released."""

    def __init__(self):
        self.hangs, self.released, self.calls = threading.Event(), threading.Event(), 0

    def __call__(self, x, t, cond):
        self.calls += 1
        if self.calls > 1:
            self.hangs.set()
            assert self.released.wait(TIMEOUT)
        return support.rowwise(x, t, cond)


@pytest.fixture
def hanging():
    network = Hanging()
    yield network
    network.released.set()


@pytest.mark.parametrize("abort", [True, False])
def test_a_hung_network_is_abandoned_and_all_results_say_so(hanging, abort, caplog):
    engine = support.make_engine(hanging, max_rows=2)
    futures = [engine.submit(sf.Request(table=TABLE, seed=seed)) for seed in range(4)]
    stream = engine.stream(REQUEST)
    assert hanging.hangs.wait(TIMEOUT)
    warmup = []

    def warm():
        try:
            engine.warmup()
        except sf.EngineClosed as error:
            warmup.append(error)

    thread = threading.Thread(target=warm)
    thread.start()
    while not engine._service._loop._work:
        time.sleep(0.001)
    began = time.monotonic()
    engine.close(abort=abort, timeout=0.1)
    assert time.monotonic() - began < 5
    for future in futures:
        with pytest.raises(sf.EngineClosed, match="the engine was closed before request"):
            future.result(0)
    with pytest.raises(sf.EngineClosed):
        list(stream)
    thread.join(TIMEOUT)
    assert len(warmup) == 1
    assert "its thread is abandoned" in caplog.text
    with pytest.raises(sf.EngineClosed):
        engine.submit(REQUEST)
    engine.close()
    # When the network does come back its thread ends, and lets everything go.
    loop = engine._service._loop._thread
    hanging.released.set()
    loop.join(TIMEOUT)
    assert not loop.is_alive()
    assert engine.stats()["waiting"] == engine.stats()["running"] == 0


def test_a_sample_whose_network_hangs_ends_with_the_engine(hanging):
    engine = support.make_engine(hanging)
    raised = []

    def sample():
        try:
            engine.sample(2, table=TABLE)
        except sf.EngineClosed as error:
            raised.append(error)

    caller = threading.Thread(target=sample)
    caller.start()
    assert hanging.hangs.wait(TIMEOUT)
    engine.close(abort=True, timeout=0.05)
    caller.join(TIMEOUT)
    assert len(raised) == 1


def test_a_timeout_gives_up_what_is_not_drawn_by_then():
    def slow(x, t, cond):
        time.sleep(0.01)
        return support.rowwise(x, t, cond)

    engine = support.make_engine(slow, max_rows=1)
    futures = [engine.submit(sf.Request(steps=10, seed=i)) for i in range(100)]
    engine.close(timeout=0.3)
    ends = [future.exception(0) for future in futures]
    assert ends[0] is None
    assert isinstance(ends[-1], sf.EngineClosed)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with support.make_engine() as engine, pytest.raises(ValueError, match="timeout must be at least 0 seconds, got"):
        engine.close(timeout=timeout)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_onnxruntime_gives_a_forward_up_when_asked_if_the_last_was_long(tmp_path, monkeypatch, seconds):
    from stepfuse.backends.host import onnxruntime as host

    monkeypatch.setattr(host, "_LONG", seconds)
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    backend = host.OnnxRuntimeBackend(host.open_session(bundle.denoiser, threads=1), bundle.denoiser, bundle.info, 2)
    backend.forward(2)
    backend.interrupt()
    if seconds:
        backend.forward(2)
    else:
        with pytest.raises(sf.DenoiserError, match="terminate"):
            backend.forward(2)


# What starts a thread: since Python 3.13 under another name.
START = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"


def no_threads(*_, **__):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda engine: engine.sample(2, table=TABLE), id="sample"),
        pytest.param(lambda engine: engine.sample(2, table=TABLE, callback=lambda *_: None), id="callback"),
        pytest.param(lambda engine: engine.submit(REQUEST), id="submit"),
        pytest.param(lambda engine: engine.stream(REQUEST), id="stream"),
        pytest.param(lambda engine: engine.warmup(), id="warmup"),
        pytest.param(lambda engine: engine.calibrate(), id="calibrate"),
    ],
)
def test_a_shortage_of_threads_is_said_and_passes(monkeypatch, call):
    with support.make_engine() as engine:
        with monkeypatch.context() as patched:
            patched.setattr(threading, START, no_threads)
            with pytest.raises(RuntimeError, match="can't start new thread") as raised:
                call(engine)
            assert not isinstance(raised.value, sf.EngineClosed)
        assert engine.stats()["submitted"] == 0
        np.testing.assert_array_equal(engine.sample(1, table=TABLE, seed=9)[0], EXPECTED)


def test_an_exception_in_an_idle_thread_harms_one_request_at_most():
    import ctypes

    with support.make_engine() as engine:
        engine.sample(1, table=TABLE, seed=9)
        time.sleep(0.02)
        loop = engine._service._loop._thread
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(loop.ident), ctypes.py_object(SystemExit))
        error = engine.submit(REQUEST).exception(TIMEOUT)  # None where the thread was still on its way to be idle
        assert error is None or (isinstance(error, sf.DenoiserError) and "SystemExit" in str(error)), error
        np.testing.assert_array_equal(engine.submit(REQUEST).result(TIMEOUT), EXPECTED)


def test_an_engine_that_is_let_go_ends_its_thread():
    engine = support.make_engine()
    engine.sample(1, table=TABLE)
    loop = engine._service._loop._thread
    del engine
    loop.join(TIMEOUT)
    assert not loop.is_alive()


def test_a_network_that_is_let_go_of_at_the_end_is_freed_before_the_interpreter():
    """On the loop's thread, which the interpreter's end would stop halfway: in OpenVINO's destructors by an abort."""
    program = process("""
        class Network:
            def __call__(self, x, t, c): return x
            def __del__(self):
                time.sleep(0.3)
                print("freed", flush=True)
        make(Network()).sample(1, steps=2, seed=0)
        """)
    out, err = program.communicate(timeout=TIMEOUT)
    assert (program.returncode, out) == (0, "freed\n"), err


# A shell starts what runs in the background with SIGINT ignored.
PROLOGUE = """
import signal, threading, time, numpy as np, stepfuse as sf
signal.signal(signal.SIGINT, signal.default_int_handler)
schedule = sf.NoiseSchedule.linear()
def make(network): return sf.Engine.from_callable(network, shape=(1, 2, 3), schedule=schedule, max_rows=4)
def slow(x, t, c): time.sleep(0.005); return x
entered = []
def hang(x, t, c): print("hangs", flush=True); entered.append(1); time.sleep(1000)
"""


def process(code):
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_daemon_threads_that_go_on_submitting_do_not_keep_the_process():
    """What was submitted when the main thread ended is drawn, and what comes later refused."""
    program = process("""
        engine = make(slow)
        def client():
            while True:
                engine.submit(sf.Request(steps=5, seed=1)).result()
        for _ in range(12): threading.Thread(target=client, daemon=True).start()
        first = [engine.submit(sf.Request(steps=20, seed=i)) for i in range(8)]
        for one in first: one.add_done_callback(lambda one: print("drawn", one.exception(), flush=True))
        threading.excepthook = lambda args: print(args.exc_type.__name__, flush=True)
        """)
    out, err = program.communicate(timeout=TIMEOUT)
    assert program.returncode == 0, err
    assert out.count("drawn None") == 8
    assert set(out.replace("drawn None", "").replace("EngineClosed", "").split()) == set()


def test_ctrl_c_while_the_exit_draws_ends_the_process_by_it():
    program = process("""
        import atexit
        engines = [make(slow), make(slow)]
        atexit.register(print, "main ends", flush=True)
        futures = [engine.submit(sf.Request(steps=500, seed=1)) for engine in engines for _ in range(100)]
        """)
    assert program.stdout.readline() == "main ends\n"
    time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=TIMEOUT)
    assert program.returncode == -signal.SIGINT, err
    assert err.strip().splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_process_ends_whose_network_hangs():
    abandoned = process("""
        engine = make(hang)
        future = engine.submit(sf.Request(steps=5))
        while not entered: time.sleep(0.01)
        engine.close(abort=True, timeout=0.1)
        print(type(future.exception()).__name__, flush=True)
        """)
    interrupted = process("""
        engine = make(hang)
        future = engine.submit(sf.Request(steps=5))
        """)
    assert interrupted.stdout.readline() == "hangs\n"
    time.sleep(0.3)
    interrupted.send_signal(signal.SIGINT)
    out, err = abandoned.communicate(timeout=TIMEOUT)
    assert (abandoned.returncode, out) == (0, "hangs\nEngineClosed\n"), err
    interrupted.communicate(timeout=TIMEOUT)
    assert interrupted.returncode == -signal.SIGINT


# Each has a minute and a half of requests queued when Ctrl-C comes.
INTERRUPTED = {
    "result": "futures[-1].result()",
    "elsewhere": "time.sleep(100)",
    "sample": "engine.sample(2, steps=500)",
    "stream": "list(engine.stream(REQUEST))",
    "as_completed": "list(engine.as_completed(sf.Request(steps=500, seed=i) for i in range(300)))",
    "asyncio": "asyncio.run(main())",
    "context": """
with engine:
    futures[-1].result()""",
    "context-of-a-task": "asyncio.run(main_in_context())",
    "close": "engine.close()",
    "exit-code": """
try: futures[-1].result()
except KeyboardInterrupt: sys.exit(130)""",
    "hook": """
sys.excepthook = lambda *_: None
futures[-1].result()""",
}
SETTING = """
import asyncio, sys
REQUEST = sf.Request(steps=500)
engine = make(slow)
futures = [engine.submit(sf.Request(steps=500, seed=i)) for i in range(150)]
async def main():
    await asyncio.gather(*(engine.asample(steps=500, seed=i) for i in range(9)))
async def main_in_context():
    with engine: await engine.asample(steps=500)
print("goes on", flush=True)
"""


def test_ctrl_c_ends_the_process_at_once_wherever_it_comes():
    programs = {name: process(SETTING + code) for name, code in INTERRUPTED.items()}
    for program in programs.values():
        assert program.stdout.readline() == "goes on\n"
    time.sleep(0.1)
    began = time.monotonic()
    for program in programs.values():
        program.send_signal(signal.SIGINT)
    for name, program in programs.items():
        _, err = program.communicate(timeout=TIMEOUT)
        assert program.returncode == (130 if name == "exit-code" else -signal.SIGINT), f"{name}: {err}"
    assert time.monotonic() - began < 20  # of a hundred, on a machine that is busy, too


def test_ctrl_c_at_a_prompt_does_not_end_what_is_submitted_later():
    program = process("""
        import sys
        engine = make(slow)
        sys.ps1 = ">>> "
        sys.last_type = KeyboardInterrupt
        engine.submit(sf.Request(steps=500)).add_done_callback(lambda one: print("drawn", one.exception(), flush=True))
        """)
    out, err = program.communicate(timeout=TIMEOUT)
    assert (program.returncode, out) == (0, "drawn None\n"), err


def test_an_engine_left_by_an_exception_draws_what_was_submitted():
    engine = support.make_engine()
    future = engine.submit(REQUEST)
    engine.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    np.testing.assert_array_equal(future.result(0), EXPECTED)
