"""The compiled core takes any argument: it gives a result or raises, and never touches memory that is not its own.

A process apart calls whatever ``_core`` has with arguments that are wrong in every way; ``make sanitize`` does the same
under the address sanitizer, where a read or write out of bounds ends that process.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support

from stepfuse import _core, samplers

HOSTILE = Path(__file__).parent / "hostile_calls.py"
TABLE = samplers.ddim(support.SCHEDULE, 2)


def server(elements=4, cond=(8,), max_rows=2, **options):
    stepper = _core.HostStepper(elements, False, list(cond), max_rows)
    return _core.Server(stepper, _core.LoopOptions(**{"max_running": 4, **options}), 8)


def request(of, id=0, elements=4, **more):
    table = _core.Table(TABLE.rows, 1.0)
    x = np.zeros(elements, np.float32)
    return of.request(id, table, 0, False, x, None, [], [np.array(0)], **more)


def classes(scope):
    for name in dir(scope):
        value = getattr(scope, name)
        if isinstance(value, type) and not issubclass(value, Exception):
            yield value
        elif type(value) is type(_core):
            yield from classes(value)


def test_no_call_of_the_core_s_ends_the_process():
    done = subprocess.run([sys.executable, HOSTILE, "2000"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "type_", sorted(set(classes(_core)), key=lambda one: one.__qualname__), ids=lambda one: one.__qualname__
)
def test_an_object_is_made_by_its_constructor_alone(type_):
    with pytest.raises(TypeError):
        type_.__new__(type_)


def test_a_request_belongs_to_the_server_that_made_it():
    small, large = server(4), server(1 << 20)
    with pytest.raises(ValueError, match="a request belongs to the server that made it"):
        large.submit(request(small))
    with pytest.raises(ValueError, match="a request belongs to the server that made it"):
        large.submit_all([request(large, elements=1 << 20), request(small)])
    assert large.status()["waiting"] == 0


def test_a_request_is_submitted_once():
    one = server()
    given = request(one)
    one.submit(given)
    with pytest.raises(ValueError, match="submitted once"):
        one.submit(given)
    with pytest.raises(ValueError, match="submitted once"):
        one.submit_all([given])


def test_a_gate_belongs_to_one_server():
    gate, first, second = _core.Gate(), server(), server()
    first.submit(request(first, gate=gate))
    for use in (lambda: second.submit(request(second, gate=gate)), lambda: second.open(gate)):
        with pytest.raises(ValueError, match="a gate belongs to"):
            use()


@pytest.mark.parametrize("ageing", [float("nan"), float("inf"), -1.0])
def test_ageing_orders_samples_only_if_it_is_a_number(ageing):
    with pytest.raises(ValueError, match="ageing must be finite and at least 0"):
        server(policy=_core.Policy.ShortestFirst, ageing=ageing)


def test_sizes_that_would_overflow_are_refused():
    for arguments in ((2**61, False, [8], 2), (4, False, [2**62], 8), (4, False, [2**63], 2)):
        with pytest.raises((ValueError, MemoryError)):
            _core.HostStepper(*arguments)
    with pytest.raises(ValueError, match="max_running must be at least 1 and at most"):
        server(max_running=2**31 - 1)


def test_arrays_that_lie_askew_are_copied_or_refused():
    """A float that does not begin at a multiple of four bytes."""
    bytes_ = np.zeros(4 * 4 + 1, np.uint8)
    askew = bytes_[1:].view(np.float32)
    even, row = np.ones(4, np.float32), np.asarray(TABLE.rows[0])
    np.testing.assert_array_equal(_core.step(askew, even, row), _core.step(askew.copy(), even, row))
    with pytest.raises(ValueError, match="written in place"):
        _core.step(even, even, row, out=askew)
    one = server()
    with pytest.raises(ValueError, match="must be C-contiguous and aligned"):
        one.request(0, _core.Table(TABLE.rows, 1.0), 0, False, askew, None, [], [np.array(0)])
