"""The compiled core by itself, as others may bind to it: calls in any order, with arguments of any kind.

Each raises an exception or does what it says; none may touch memory that is not its own, which the address sanitizer
shows (``make -f tests/core/sanitize.mk bindings``).
"""

import inspect

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mutations import NUMBERS, TEXTS, contract, fuzz

import stepfuse as sf
from stepfuse import _core

ERRORS = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, IndexError, BufferError, AttributeError)
ROWS = sf.samplers.ddim(sf.NoiseSchedule.linear(), 3, guidance_scale=2.0).rows

ARRAYS = st.builds(
    lambda shape, kind, order: np.ones(shape, dtype=kind, order=order),
    st.sampled_from([(), (0,), (1,), (4,), (16,), (3, 16), (4, 2), (16, 3), (2, 2, 4)]),
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "O"]),
    st.sampled_from(["C", "F"]),
)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def own(kind, *arguments, **options):
    """An object of the core made with these arguments, or, where they do not do, without being initialised."""
    try:
        return kind(*arguments, **options)
    except ERRORS:
        return kind.__new__(kind)


BARE = [kind for kind in vars(_core).values() if inspect.isclass(kind) and not issubclass(kind, BaseException)]
SMALL = st.sampled_from([-1, 0, 1, 2, 4, 8])
OBJECTS = st.one_of(
    st.sampled_from(BARE).map(lambda kind: kind.__new__(kind)),
    st.builds(
        lambda rows, scale: own(_core.Table, rows, scale),
        st.one_of(st.just(ROWS), ARRAYS),
        st.one_of(st.just(1.0), NUMBERS),
    ),
    st.builds(lambda fixed, row: own(_core.CostCurve, fixed, row), NUMBERS, NUMBERS),
    st.builds(lambda running, ageing: own(_core.LoopOptions, max_running=running, ageing=ageing), SMALL, NUMBERS),
    st.builds(lambda elements, rows: own(_core.HostStepper, elements, False, [8], rows), SMALL, SMALL),
    st.builds(lambda image, mask, levels: own(_core.KnownRegion, image, mask, levels), ARRAYS, ARRAYS, ARRAYS),
    st.builds(_core.Gate),
    st.builds(_core.Adaptive),
)
ANY = st.one_of(
    ARRAYS,
    ARRAYS.map(read_only),
    OBJECTS,
    NUMBERS,
    SMALL,
    TEXTS,
    st.none(),
    st.booleans(),
    st.lists(NUMBERS, max_size=3),
    st.lists(ARRAYS, max_size=3),
    st.lists(OBJECTS, max_size=3),
    st.binary(max_size=8),
    st.just(lambda *_: None),
)
FUNCTIONS = [
    value for name, value in vars(_core).items() if callable(value) and not inspect.isclass(value) and name[0] != "_"
]


@fuzz(10)
@given(
    st.sampled_from(FUNCTIONS + BARE),
    st.lists(ANY, max_size=7),
    st.dictionaries(
        st.sampled_from(["isa", "out", "h", "z", "eps_uncond", "max_rows", "cost", "trace"]), ANY, max_size=2
    ),
)
def test_functions_and_constructors(function, arguments, named):
    with contract(*ERRORS):
        function(*arguments, **named)


@fuzz(10)
@given(OBJECTS, st.data())
def test_methods(thing, data):
    names = [name for name in dir(thing) if not name.startswith("__") or name in ("__lt__", "__eq__", "__repr__")]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else ():
        with contract(*ERRORS):
            value = getattr(thing, name)
            if callable(value):
                value(*data.draw(st.lists(ANY, max_size=3)))


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
