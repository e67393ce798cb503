"""Servers of the compiled core, called in any order, as others may bind to them; ``hostile_calls.py`` has single calls.

A call raises an exception or does what it says; none may touch memory that is not its own, which the address sanitizer
shows (``make -f tests/core/sanitize.mk fuzz``).
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mutations import NUMBERS, contract, fuzz

import stepfuse as sf
from stepfuse import _core

ERRORS = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, IndexError, BufferError, AttributeError)
ROWS = sf.samplers.ddim(sf.NoiseSchedule.linear(), 3, guidance_scale=2.0).rows


def make_server(elements, rows, running):
    stepper = _core.HostStepper(elements, False, [8], rows)
    return _core.Server(stepper, _core.LoopOptions(max_running=running), 8, True), stepper.buffers()


def request_to(server, elements, number, steps=3):
    x = np.ones(elements, np.float32)
    return server.request(
        number, _core.Table(ROWS[:steps], 1.0), number, False, x, None, [np.int64([1])], [np.int64([0])]
    )


@fuzz(4)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "all", "run", "cancel", "cancel_all", "close", "status", "cost"]),
            st.integers(0, 3),
            st.integers(0, 1),
            st.one_of(st.just(0.0), NUMBERS),
        ),
        max_size=9,
    )
)
def test_two_servers_whose_requests_are_mixed_up(calls):
    """A request belongs to the server that made it: its arrays have that one's sizes."""
    sizes = (64, 4)
    servers = [make_server(elements, 4, 2) for elements in sizes]
    requests = [
        request_to(server, elements, number)
        for (server, _), elements in zip(servers, sizes, strict=True)
        for number in range(2)
    ]

    def forward(buffers):
        def compute(rows):
            buffers["prediction"][:rows] = buffers["sample"][:rows]

        return compute

    for call, number, which, value in calls:
        server, buffers = servers[which]
        with contract(*ERRORS, sf.StepfuseError):
            if call == "submit":
                server.submit(requests[number], min(value, 0.01) if value == value else value)
            elif call == "all":
                server.submit_all([requests[number], requests[(number + 1) % 4]])
            elif call == "run":
                server.run(forward(buffers), lambda events: None)
            elif call == "cancel":
                server.cancel(number)
            elif call == "cost":
                server.set_cost(_core.CostCurve(0.0, value))
            else:
                getattr(server, call)()
    for server, buffers in servers:
        server.cancel_all()
        server.run(forward(buffers), lambda events: None)
        assert server.status()["running"] == server.status()["waiting"] == 0
