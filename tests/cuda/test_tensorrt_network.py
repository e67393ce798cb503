"""A TensorRT plan as a network, on a stand-in for TensorRT whose contexts launch a kernel of the recording driver.

It holds its caller to NVIDIA's rules: shapes, addresses and memory are given before a context runs, it has run with its
shapes before it is captured, and nothing of it is changed once a graph of it may be launched.
"""

import ctypes
import logging
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends import cuda_loop, cuda_tensorrt
from stepfuse.backends.cuda import Trajectories
from stepfuse.backends.cuda_capture import CaptureError
from stepfuse.backends.cuda_tensorrt import TensorRTNetwork
from stepfuse.plans.library import Library
from stepfuse.plans.options import Options
from stepfuse.plans.plan import Plan, PlanKey
from stepfuse.plans.profile import Profile
from stepfuse.plans.runtime import source_of
from stepfuse.plans.store import PlanStore
from stepfuse.plans.target import Target

TARGET = Target(("9.0",), gpu="Fake GPU", driver="580.95.05")
VERSION = "10.13.0.35"
ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}
SCRATCH = 1000  # bytes a row
TENSORS = {
    "sample": ("FLOAT", (-1, *support.SHAPE)),
    "timestep": ("FLOAT", (-1,)),
    "class_labels": ("INT64", (-1,)),
    "prediction": ("FLOAT", (-1, *support.SHAPE)),
}


def array_at(address, shape, dtype):
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


class Context:
    def __init__(self, trt):
        self.trt, self.shapes, self.at, self.memory, self.ran, self.captured = (
            weakref.proxy(trt),
            {},
            {},
            0,
            False,
            False,
        )

    def _change(self):
        if self.captured:
            self.trt.violations.append("a context of a captured graph was changed")

    def set_optimization_profile_async(self, profile, stream):
        self._change()
        self.profile = profile
        return True

    def set_input_shape(self, name, shape):
        self._change()
        least, _, most = self.trt.profiles[self.profile]
        self.shapes[name] = shape
        self.ran = False
        return least <= shape[0] <= most

    def set_tensor_address(self, name, address):
        self._change()
        self.at[name] = address
        return name in self.trt.tensors

    def update_device_memory_size_for_shapes(self):
        return SCRATCH * self.shapes["sample"][0]

    def set_device_memory(self, address, size):
        self._change()
        self.memory = size

    def is_stream_capturable(self, stream):
        return self.trt.capturable

    def execute_async_v3(self, stream):
        trt = self.trt
        rows = self.shapes["sample"][0]
        ready = {"sample", "timestep", "class_labels"} == set(self.shapes) and set(self.at) == set(trt.tensors)
        if not ready or self.memory < SCRATCH * rows:
            trt.violations.append("a context ran that was not ready")
        if trt.capturing and not self.ran:
            trt.violations.append("a context was captured that had not run with its shapes")
        self.captured = self.captured or trt.capturing
        self.ran = True
        if trt.fails:
            trt.logger.log(SimpleNamespace(name="ERROR"), "Myelin: no")
            return False
        trt.launch(rows, self.at)
        return True


class Trt:
    """``tensorrt`` as far as a runtime asks it."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")

    class ILogger:
        def __init__(self):
            pass

    def __init__(self, profiles=((1, 4, 8),), tensors=None, takes=True):
        self.profiles, self.tensors, self.takes = profiles, tensors or TENSORS, takes
        self.contexts, self.violations = [], []
        self.capturable, self.capturing, self.fails = True, False, False

    def Runtime(self, logger):  # noqa: N802
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self.deserialise)

    def deserialise(self, data):
        if not self.takes:
            self.logger.log(SimpleNamespace(name="ERROR"), "the plan is of another version")
            return None
        names = list(self.tensors)
        shapes = {name: dims[1:] for name, (_, dims) in self.tensors.items()}
        return SimpleNamespace(
            num_io_tensors=len(names),
            num_optimization_profiles=len(self.profiles),
            get_tensor_name=names.__getitem__,
            get_tensor_dtype=lambda name: SimpleNamespace(name=self.tensors[name][0]),
            get_tensor_shape=lambda name: self.tensors[name][1],
            get_tensor_profile_shape=lambda name, profile: [(rows, *shapes[name]) for rows in self.profiles[profile]],
            create_execution_context=self.make,
        )

    def make(self, strategy):
        assert strategy == "ours"
        self.contexts.append(Context(self))
        return self.contexts[-1]


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny")


def keep(bundle, *, rows=(1, 4, 8), target=TARGET, version=VERSION, data=b"a plan"):
    key = PlanKey(
        network="denoiser.onnx",
        source=source_of(bundle, "denoiser.onnx"),
        library="tensorrt",
        version=version,
        target=target,
        profiles=(Profile(rows=rows),),
        pixels_per_cell=1,
        options=Options(),
    )
    PlanStore(bundle.path, bundle=True).put(Plan(key, data, 1.0))
    return sf.Bundle.load(bundle.path)


@pytest.fixture
def made(fake, step_on, bundle, monkeypatch):
    """``made(trt)``: a network of the bundle's plan, and its kernels."""
    monkeypatch.setattr(cuda_tensorrt, "target_of", lambda gpu, capability: TARGET)
    used = []

    def make(trt=None, max_rows=8, kept=True):
        trt = trt or Trt()
        context = fake.open()
        monkeypatch.setattr(cuda, "open", lambda device=0, driver=None: context)
        whole = keep(bundle) if kept else bundle
        network = TensorRTNetwork(whole, whole.info, max_rows, library=Library(trt, "tensorrt", VERSION))
        labels = array_at(network.addresses["class_labels"], (max_rows,), np.int64)

        def predict(x, t):  # no method: the driver keeps it
            shaped = x.reshape(len(x), *support.SHAPE)
            return support.rowwise(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

        kernels, kernel = step_on(context, predict)
        stream = network.stream

        def launch(rows, at):
            values = {"t": at["timestep"], **{name: at[name] for name in ("sample", "prediction")}}
            kernel.launch(stream, rows, {"rows": rows, "n": support.ELEMENTS, **values})

        trt.launch = launch
        captures = network._captures

        def capturing(rows):
            begin = cuda.Capture

            def capture(stream):
                trt.capturing = True
                return begin(stream)

            with monkeypatch.context() as patch:
                patch.setattr(cuda, "Capture", capture)
                try:
                    return captures(rows)
                finally:
                    trt.capturing = False

        network._captures = capturing
        used.append(trt)
        return network, kernels

    yield make
    for trt in used:
        assert trt.violations == []
        vars(trt).clear()


def engine_s(n, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **arguments)


@pytest.mark.parametrize("buckets", [(8, 4, 2), ()], ids=["captured", "eager"])
@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_a_trajectory_is_the_engine_s_to_the_bit(made, buckets, form):
    network, kernels = made()
    if buckets:
        network.capture(buckets)
    trajectories = Trajectories(network.info, network, kernels, form=form)
    for n in (1, 3):
        np.testing.assert_array_equal(trajectories.sample(n, **ARGUMENTS), engine_s(n, **ARGUMENTS))
    del network._captures, trajectories


@pytest.mark.parametrize("buckets", [(8, 4, 2), ()], ids=["captured", "eager"])
def test_requests_join_and_leave_between_steps(made, buckets):
    network, kernels = made()
    if buckets:
        network.capture(buckets)
    with sf.Engine(network.info, cuda_loop.on_gpu(network, kernels), sf.Serving(max_rows=8)) as engine:
        futures = [engine.submit(sf.Request(cond=i % 7, seed=i, steps=3 + i % 4)) for i in range(12)]
        images = [future.result() for future in futures]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, engine_s(1, cond=i % 7, seed=i, steps=3 + i % 4)[0])
    del network._captures
    engine._service._core = None


def test_all_row_counts_work_in_the_memory_of_the_largest(made, fake):
    trt = Trt()
    network, _ = made(trt)
    free = network.context.memory[0]
    network.capture((8, 4, 2))
    assert free - network.context.memory[0] == 8 * SCRATCH
    assert [context.captured for context in trt.contexts] == [True] * 3
    del network._captures


def test_where_memory_is_short_the_largest_are_given_up(made, caplog):
    network, kernels = made()
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        network.capture((8, 4, 2), memory_bytes=4 * SCRATCH + (2 << 20))
    assert sorted(network.graphs) == [2, 4]
    assert "forwards of [8] rows are given up" in caplog.text
    trajectories = Trajectories(network.info, network, kernels)
    np.testing.assert_array_equal(trajectories.sample(3, **ARGUMENTS), engine_s(3, **ARGUMENTS))
    del network._captures, trajectories


def test_fewer_rows_than_the_plan_has_are_padded(made):
    trt = Trt(profiles=((4, 4, 8),))
    network, kernels = made(trt)
    network.capture((8, 2, 1))
    trajectories = Trajectories(network.info, network, kernels)
    np.testing.assert_array_equal(trajectories.sample(1, **ARGUMENTS), engine_s(1, **ARGUMENTS))
    del network._captures, trajectories


def test_the_profile_that_is_tuned_for_the_nearest_rows_is_taken(made):
    trt = Trt(profiles=((1, 8, 8), (1, 1, 8), (1, 4, 4)))
    network, _ = made(trt)
    network.capture((8, 4, 2, 1))
    assert {context.shapes["sample"][0]: context.profile for context in trt.contexts} == {8: 0, 4: 2, 2: 1, 1: 1}
    del network._captures


def test_a_forward_that_fails_is_told_with_tensorrt_s_words(made):
    trt = Trt()
    network, _ = made(trt)
    trt.fails = True
    with pytest.raises(sf.DenoiserError, match="TensorRT could not run 2 rows: Myelin: no"):
        network.forward(2)
    del network._captures


def test_a_plan_that_cannot_be_captured_is_told(made):
    trt = Trt()
    network, _ = made(trt)
    trt.capturable = False
    with pytest.raises(CaptureError, match="a forward of 2 rows cannot be captured: TensorRT says that it cannot be"):
        network.capture((2,))
    del network._captures


@pytest.mark.parametrize(
    ("trt", "message"),
    [
        pytest.param(Trt(takes=False), "does not take the plan .*: the plan is of another version", id="refused"),
        pytest.param(
            Trt(tensors={**TENSORS, "sample": ("INT8", (-1, *support.SHAPE))}),
            "sample of the plan must be float16 or float32, got INT8",
            id="type",
        ),
        pytest.param(
            Trt(tensors={**TENSORS, "prediction": ("HALF", (-1, *support.SHAPE))}),
            "sample and prediction of the plan must be of one type",
            id="two-types",
        ),
        pytest.param(
            Trt(tensors={**TENSORS, "sample": ("FLOAT", (-1, 3, 8, 8))}),
            r"a row of sample of the plan must have shape \(1, 4, 5\), got \(3, 8, 8\)",
            id="shape",
        ),
        pytest.param(
            Trt(tensors={"sample": TENSORS["sample"]}), "a plan's tensors must be sample, .*, got sample", id="name"
        ),
    ],
)
def test_a_plan_of_another_network_is_refused(made, trt, message):
    with pytest.raises(sf.BundleError, match=message):
        made(trt)


def test_rows_beyond_the_plan_are_refused(made):
    with pytest.raises(ValueError, match="max_rows must be 1 to 8, which the plan is for, got 9"):
        made(max_rows=9)


def test_without_a_plan_the_command_is_told(made, bundle):
    with pytest.raises(
        sf.BundleError, match=r"no plan of denoiser.onnx runs on Fake GPU \(there is none.*stepfuse plan"
    ):
        made(kept=False)
    keep(bundle, version="9.1")
    with pytest.raises(sf.BundleError, match=r"version is '9.1', not '10.13.0.35'.*stepfuse plan"):
        made(kept=False)


def test_the_plan_of_most_rows_is_taken(made, bundle):
    keep(bundle, rows=(1, 1, 2), data=b"a small plan")
    network, _ = made()
    assert network.max_rows == 8
    del network._captures
