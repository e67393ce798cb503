"""A long day: 100,000 tiny requests, one in a hundred at fault."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stepfuse as sf
import stepfuse.engine
from stepfuse.serving.future import as_completed

REQUESTS = 100_000
FAULTS = {100: "raises", 200: "spoils", 300: "cancelled", 400: "times out"}  # by the request's number modulo 400
ALLOWED_GROWTH = 8 << 20  # bytes: what the test itself keeps of 80,000 requests is the set of their numbers
MEMORY = Path("/proc/self/statm")


def network(x, t, cond):
    kind = cond["kind"]
    if 1 in kind:
        raise RuntimeError("kind 1")
    prediction = x * np.float32(0.5)
    prediction[kind == 2] = np.nan
    return prediction


def request(number):
    fault = FAULTS.get(number % 400 or 400)
    return sf.Request(
        cond={"raises": 1, "spoils": 2}.get(fault, 0),
        steps=1 + number % 3,
        seed=number,
        timeout=1e-9 if fault == "times out" else None,
        id=str(number),
    )


def resident_bytes():
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not MEMORY.exists(), reason=f"memory is read from {MEMORY}")
def test_a_hundred_thousand_requests_lose_nothing_and_keep_no_memory():
    """In a process of its own: that of many tests frees and takes memory for what they left."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def soak():
    logging.getLogger("stepfuse").setLevel(logging.CRITICAL)
    stepfuse.engine.CHECK_INVARIANTS = True
    schedule = sf.NoiseSchedule.linear()
    cond = {"kind": sf.CondInput(dtype="int64", null=-1)}
    seen, cancelled, early = set(), [], 0

    def requests():
        for number in range(REQUESTS):
            yield request(number)

    def submit(one):
        future = engine.submit(one)
        if FAULTS.get(int(one.id) % 400 or 400) == "cancelled":
            cancelled.append(future.cancel())
        return future

    with sf.Engine.from_callable(network, shape=(4,), schedule=schedule, cond=cond) as engine:
        alone = {}
        for one, future in as_completed(submit, requests(), 512):
            number = int(one.id)
            assert number not in seen
            seen.add(number)
            fault = FAULTS.get(number % 400 or 400)
            if fault == "cancelled":
                assert future.cancelled() or future.exception() is None
            elif fault:
                error = {"raises": RuntimeError, "spoils": sf.DenoiserError, "times out": sf.RequestTimeout}[fault]
                assert isinstance(future.exception(), error)
            else:
                image = future.result()
                if number % 1000 == 1:
                    alone[number] = image
            if len(seen) == REQUESTS // 5:
                early = resident_bytes()
        grown = resident_bytes() - early
        for number, image in alone.items():
            np.testing.assert_array_equal(image, engine.sample(1, cond=0, steps=1 + number % 3, seed=number)[0])
        stats = engine.stats()
    assert len(seen) == REQUESTS
    quarter = REQUESTS // 400
    assert stats["failures"] == 2 * quarter
    assert stats["expired"] == quarter
    assert 0 < stats["cancelled"] <= sum(cancelled) <= quarter  # some have ended before
    ended = [stats[name] for name in ("samples", "failures", "cancelled", "expired")]
    assert sum(ended) == REQUESTS + len(alone)
    assert grown < ALLOWED_GROWTH, f"{grown / 1e6:.1f} MB more after the first fifth"


if __name__ == "__main__":
    soak()
