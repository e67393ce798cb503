"""Ctrl-C at any bytecode: the engine then gives the right bits, and closes with nothing left in it."""

import asyncio
import dis
import functools
import inspect
import sys
import threading

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


TOGETHER = {"PRECALL", "CALL", "RETURN_GENERATOR", "SEND", "YIELD_VALUE", "RESUME", "JUMP_BACKWARD_NO_INTERRUPT"}


@functools.cache
def where_it_may_come(code):
    """Offsets of opcodes before which an exception may be raised.

    Not between those that work together, where no signal comes either and CPython 3.11 would be left in disorder:
    it keeps the names of a call's arguments from the opcode before the call, and a coroutine's frame from one that
    suspends it.
    """
    apart = {one.offset for one in dis.get_instructions(code) if one.opname not in TOGETHER}
    return apart - {0} if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE) else apart


class Interrupt:
    """Raises KeyboardInterrupt before the ``at``-th opcode that this thread comes to in these modules."""

    def __init__(self, at):
        self.at, self.seen = at, 0

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _trace(self, frame, event, argument):
        if not frame.f_globals.get("__name__", "").startswith(MODULES):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode" and frame.f_lasti in where_it_may_come(frame.f_code):
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self._trace


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


def ended(work, *arguments, **options):
    """Whether this returns in time."""
    thread = threading.Thread(target=work, args=arguments, kwargs=options, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return not thread.is_alive()


def interrupt_and_check(call, at):
    """Whether the call came as far as the ``at``-th opcode."""
    engine = support.make_engine()
    queued = [engine.submit(sf.Request(table=TABLE, seed=seed)) for seed in (9, 10)] if at % 2 else []
    interrupt = Interrupt(at)
    try:
        with interrupt:
            call(engine)
    except KeyboardInterrupt:
        pass
    if engine._service.phase.name == "Open":
        again = engine.submit(sf.Request(table=TABLE, seed=9))
        np.testing.assert_array_equal(again.result(TIMEOUT), EXPECTED)
    assert ended(engine.close), f"close() waits for ever after opcode {at}"
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
