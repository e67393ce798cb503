"""Ctrl-C at any bytecode: the engine then gives the right bits, and closes with nothing left in it."""

import asyncio

import interrupts
import numpy as np
import pytest
import support

import stepfuse as sf

TIMEOUT = 20  # seconds: nothing here takes one; a hang must end
TABLE = sf.samplers.ddim(support.SCHEDULE, 2)
REQUEST = sf.Request(table=TABLE, seed=4)
EXPECTED = support.replay(TABLE, seed=9)[0]

#: Where Ctrl-C comes: in the code that queues and awaits samples. The rest of a call holds nothing that could be lost.
MODULES = ("stepfuse.serving.", "stepfuse.engine")


def watched(engine):
    engine.sample(2, table=TABLE, seed=4, callback=lambda *_: None)


def walked(engine):
    list(engine.stream(REQUEST))


def awaited(engine):
    asyncio.run(engine.asample(table=TABLE, seed=4))


async def _walk(engine):
    return [preview async for preview in engine.stream(REQUEST)]


CALLS = {
    "sample": lambda engine: engine.sample(3, table=TABLE, seed=4),
    "sample-callback": watched,
    "submit": lambda engine: engine.submit(REQUEST).result(TIMEOUT),
    "stream": walked,
    "asample": awaited,
    "async-stream": lambda engine: asyncio.run(_walk(engine)),
    "cancel": lambda engine: engine.submit(REQUEST).cancel(),
    "close": lambda engine: engine.close(),
    "abort": lambda engine: engine.close(abort=True, timeout=TIMEOUT),
}


def interrupt_and_check(call, at):
    """Whether the call came as far as the ``at``-th opcode."""
    engine = support.make_engine()
    queued = [engine.submit(sf.Request(table=TABLE, seed=seed)) for seed in (9, 10)] if at % 2 else []
    interrupt = interrupts.Interrupt(at, MODULES)
    try:
        with interrupt:
            call(engine)
    except KeyboardInterrupt:
        pass
    if engine._service.phase.name == "Open":
        again = engine.submit(sf.Request(table=TABLE, seed=9))
        np.testing.assert_array_equal(again.result(TIMEOUT), EXPECTED)
    assert interrupts.ended(engine.close, TIMEOUT), f"close() waits for ever after opcode {at}"
    status = engine._service._core.status()
    assert (status["waiting"], status["running"]) == (0, 0)
    assert all(future.done() for future in queued)
    return interrupt.seen >= at


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_engine_survives_ctrl_c_at_any_bytecode(call):
    at = 1
    while interrupt_and_check(call, at):
        at += 1 + at // 6  # some dozens of places; the slow test below takes every one


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_engine_survives_ctrl_c_at_every_bytecode(call):
    at = 1
    while interrupt_and_check(call, at):
        at += 1
