"""An engine on the recording driver: its network, and the samples that it should draw."""

import contextlib

import numpy as np
import pytest
import support
from recording_driver import forward_arguments

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda import loop as cuda_loop
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine

INFO = ModelInfo(shape=support.SHAPE, schedule=support.SCHEDULE, cond=support.COND, range_known=False)
BUCKETS = (8, 4, 2)


class Network:
    """The tests' network on the fake: captured forwards of some row counts, or eager ones."""

    storage = "float32"

    def __init__(self, fake, step_on, rows=8, buckets=BUCKETS, fn=support.rowwise):
        self.context = fake.open()
        self.stream = cuda.Stream(self.context)
        self.max_rows = rows
        n = support.ELEMENTS
        self.memory = {
            "sample": np.zeros((rows, n), np.float32),
            "prediction": np.zeros((rows, n), np.float32),
            "timestep": np.zeros(rows, np.float32),
            "class_labels": np.full(rows, support.NULL, np.int64),
        }
        self.addresses = {name: memory.ctypes.data for name, memory in self.memory.items()}
        self.cond_storage = {"class_labels": "int64"}
        self.forwards = forwards = []  # rows of each
        labels = self.memory["class_labels"]

        def network(x, t):  # no method: the fake keeps it, and must not keep what is to be released
            forwards.append(len(x))
            shaped = x.reshape(len(x), *support.SHAPE)
            return fn(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

        self.kernels, self._forward = step_on(self.context, network)
        self.graphs = {}
        for bucket in buckets:
            capture = cuda.Capture(self.stream)
            self.forward(bucket)
            self.graphs[bucket] = capture.end()

    def forward(self, rows):
        at = [self.addresses[name] for name in ("sample", "timestep", "prediction")]
        self._forward.launch(self.stream, rows, forward_arguments(rows, support.ELEMENTS, *at))

    def ordered(self):
        return contextlib.nullcontext()


@pytest.fixture
def made(fake, step_on):
    """``made(**options)``: an engine on the fake, which does what it is given as late as it may."""
    engines = []

    def make(*, late=True, serving=None, **options):
        fake.late(late)
        network = Network(fake, step_on, **options)
        serving = serving or sf.Serving(max_rows=network.max_rows)
        engine = Engine(INFO, cuda_loop.LoopBackend(network, INFO, network.kernels, serving.row_limit), serving)
        engines.append(engine)
        engine.network = network
        return engine

    yield make
    for engine in engines:
        engine.close()
        del engine.network
        engine._service._core = engine._service._loop = None
    engines.clear()


def hosts(n, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **arguments)
