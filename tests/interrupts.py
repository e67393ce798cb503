"""Ctrl-C at any bytecode of the calling thread."""

import dis
import functools
import inspect
import sys
import threading

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

    def __init__(self, at, modules):
        self.at, self.modules, self.seen = at, modules, 0

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _trace(self, frame, event, argument):
        if not frame.f_globals.get("__name__", "").startswith(self.modules):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode" and frame.f_lasti in where_it_may_come(frame.f_code):
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self._trace


def ended(work, timeout):
    """Whether this returns in so many seconds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()
