"""Hundreds of runs, good and bad, leave nothing behind."""

import contextlib
import gc
import sys
import weakref

import numpy as np
import psutil
import pytest
import support

import stepfuse as sf

SHAPE = (3, 64, 64)
EMBEDDING = {"text": sf.CondInput(dtype="float32", shape=(8,), null=[0.0] * 8)}
NOISE = np.zeros((4, *SHAPE), np.float32)
COND = [np.full(8, value, np.float32) for value in range(1, 5)]

KINDS = ["finished", "watched", "stopped", "raises", "nan", "refused"]
ERRORS = {"raises": OSError, "nan": sf.DenoiserError, "refused": ValueError}


@pytest.fixture
def run():
    """A function that draws four samples in one of these ways and gives weak references to the arrays it was given."""
    kind = None

    def network(x, t, cond):
        if kind == "raises":
            raise OSError("gone")
        return np.full_like(x, np.nan) if kind == "nan" else 0.1 * x

    with sf.Engine.from_callable(network, shape=SHAPE, schedule=support.SCHEDULE, cond=EMBEDDING, max_rows=4) as engine:

        def run(wanted):
            nonlocal kind
            kind, shown = wanted, []
            callback = {"stopped": lambda *_: False, "watched": lambda *seen: shown.append(seen[2])}.get(kind)
            scale = -1.0 if kind == "refused" else 2.0
            with pytest.raises(ERRORS[kind]) if kind in ERRORS else contextlib.nullcontext():
                shown.append(engine.sample(4, noise=NOISE, cond=COND, steps=2, guidance_scale=scale, callback=callback))
            return [weakref.ref(array) for array in shown]

        yield run


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_holds_a_run_s_arrays(run, kind):
    held = [sys.getrefcount(array) for array in (NOISE, *COND)]
    results = run(kind)
    gc.collect()  # tracebacks are cycles
    assert [sys.getrefcount(array) for array in (NOISE, *COND)] == held
    assert [result() for result in results] == [None] * len(results)


def test_an_engine_goes_when_its_last_user_lets_go():
    engine = support.make_engine()
    engine.sample(steps=2)
    gone = weakref.ref(engine)
    del engine
    assert gone() is None


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow(run, kind):
    for _ in range(20):  # allocators fill their pools
        run(kind)
    before = resident()
    for _ in range(300):
        run(kind)
    # 300 runs that each kept one sample of 48 KiB would add 14 MiB.
    assert resident() - before < 4 * 2**20
