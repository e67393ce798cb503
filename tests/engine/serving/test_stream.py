"""Previews as an image comes into being, walked with for and with async for."""

import asyncio
import gc
import threading

import numpy as np
import pytest
import support
import tolerances

import stepfuse as sf

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end
TABLE = sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=3.0, clip=2.0)
REQUEST = sf.Request(table=TABLE, cond="bag", seed=6)


class Steps:
    """A row-wise network that waits before each call until the reader has seen the step before it."""

    def __init__(self):
        self.permits = threading.Semaphore(1)

    def __call__(self, x, t, cond):
        assert self.permits.acquire(timeout=TIMEOUT)
        return support.rowwise(x, t, cond)


def check(previews):
    final, clean, _ = support.replay(TABLE, cond=1, seed=6)
    assert [(preview.step, preview.total) for preview in previews] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for preview, expected in zip(previews[:3], clean, strict=False):
        np.testing.assert_allclose(preview.x0, expected, rtol=tolerances.STEP_FLOAT32, atol=tolerances.STEP_FLOAT32)
    np.testing.assert_array_equal(previews[3].x0, final)


def test_a_reader_that_keeps_up_sees_each_step_and_then_the_image():
    steps, seen = Steps(), []
    with support.make_engine(steps) as engine:
        for preview in engine.stream(REQUEST):
            seen.append(preview)
            steps.permits.release()
    check(seen)


def test_it_can_be_walked_asynchronously_beside_others():
    steps = Steps()

    async def walk():
        seen = []
        async for preview in engine.stream(REQUEST):
            seen.append(preview)
            steps.permits.release()
        return seen

    with support.make_engine(steps) as engine:
        check(asyncio.run(asyncio.wait_for(walk(), TIMEOUT)))


def test_many_readers_in_one_event_loop():
    async def walk(seed):
        async for preview in engine.stream(sf.Request(steps=5, seed=seed)):
            last = preview
        return last.x0

    async def gather():
        return await asyncio.gather(*(walk(seed) for seed in range(50)))

    with support.make_engine(max_rows=8) as engine:
        images = asyncio.run(asyncio.wait_for(gather(), TIMEOUT))
    table = sf.samplers.ddim(support.SCHEDULE, 5)
    np.testing.assert_array_equal(images, [support.replay(table, seed=seed)[0] for seed in range(50)])


def test_a_slow_reader_holds_nothing_up_and_gets_the_latest():
    with support.make_engine() as engine:
        stream = engine.stream(REQUEST)
        engine.submit(sf.Request(steps=9)).result(TIMEOUT)  # is longer, so the stream's request has ended
        previews = list(stream)
    assert [preview.step for preview in previews] == [4]
    np.testing.assert_array_equal(previews[0].x0, support.replay(TABLE, cond=1, seed=6)[0])
    assert list(stream) == []


def test_leaving_early_withdraws_the_request():
    steps = Steps()
    with support.make_engine(steps) as engine:
        with engine.stream(REQUEST) as stream:
            assert next(stream).step == 1
        steps.permits.release(4)
        engine.close()
        assert engine.stats()["cancelled"] == 1


def left_by_break(engine):
    for _preview in engine.stream(REQUEST):
        break


def left_by_break_in_a_task(engine):
    async def read():
        async for _preview in engine.stream(REQUEST):
            break

    asyncio.run(read())


def left_by_cancelling_its_task(engine):
    async def read(stream):
        async for _preview in stream:
            pass

    async def main():
        stream = engine.stream(REQUEST)  # still referred to when the task is cancelled
        task = asyncio.ensure_future(read(stream))
        while not stream._latest.wake:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    return asyncio.run(main())


@pytest.mark.parametrize("leave", [left_by_break, left_by_break_in_a_task, left_by_cancelling_its_task])
def test_a_stream_that_its_reader_leaves_withdraws_its_request_without_the_garbage_collector(leave):
    steps = Steps()
    gc.disable()
    try:
        with support.make_engine(steps) as engine:
            kept = leave(engine)
            steps.permits.release(8)
            engine.close()
            assert engine.stats()["cancelled"] == 1
            del kept
    finally:
        gc.enable()


def walk(stream):
    async def steps():
        return [preview async for preview in stream]

    return asyncio.run(steps())


@pytest.mark.parametrize("read", [list, walk])
def test_an_error_is_raised_where_the_image_would_be(read):
    with support.make_engine(lambda x, t, cond: np.full_like(x, np.nan)) as engine:
        stream = engine.stream(REQUEST)
        with pytest.raises(sf.DenoiserError, match="request 1 went non-finite at step 0 of 4"):
            read(stream)
