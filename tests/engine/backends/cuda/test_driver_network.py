"""A network on the driver's own memory, on the recording driver: what is copied, waited for, converted and captured."""

import ctypes
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import support
from recording_driver import forward_arguments
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.batch_memory import BatchMemory
from stepfuse.backends.cuda.driver_network import DriverNetwork
from stepfuse.backends.cuda.static_batch import StaticBatch
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import CaptureError

INFO = ModelInfo(shape=support.SHAPE, schedule=support.SCHEDULE, cond=support.COND)
ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}
#: Takes all the memory that a step may work in.
KEPT = {
    "guidance_rescale": 0.5,
    "image": np.full(support.SHAPE, 0.5, np.float32),
    "mask": np.float32([[1, 1, 0.5, 0, 0]] * 4),
}
OUT_OF_MEMORY = 2


def array_at(address, shape, dtype):
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


class HostNetwork(DriverNetwork):
    """The engine's test network as a kernel of the recording driver's; ``before`` is called before each launch."""

    def __init__(self, context, step_on, max_rows=8, before=lambda network, rows: None):
        super().__init__(context, INFO, max_rows)
        labels = array_at(self.addresses["class_labels"], (max_rows,), np.int64)

        def network(x, t):  # no method: the driver keeps it, and must not keep what is to be released
            shaped = x.reshape(len(x), *support.SHAPE)
            return support.rowwise(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

        self._steps, self._kernel = step_on(context, network)
        self._before = before

    def forward(self, rows):
        self._before(self, rows)
        at = [self.addresses[name] for name in ("sample", "timestep", "prediction")]
        self._kernel.launch(self.stream, rows, forward_arguments(rows, support.ELEMENTS, *at))

    def get(self, slots, n, **kind):
        """As of StepKernels."""
        return self._steps.get(slots, n, **kind)

    def named(self, name):
        return self._steps.named(name)


class Bare(DriverNetwork):
    def forward(self, rows):
        raise AssertionError


@pytest.fixture
def made(fake, step_on):
    def make(form="unrolled", buckets=(8, 4, 2), memory_bytes=None, optional=False, **options):
        network = HostNetwork(fake.open(), step_on, **options)
        trajectories = Trajectories(INFO, network, network, form=form)
        if buckets:
            network.capture(buckets, memory_bytes, optional=optional)
        return trajectories, network

    return make


def engine_s(n, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **arguments)


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"buckets": ()}, {"buckets": (3,)}], ids=str)
def test_samples_are_the_engine_s_to_the_bit(made, options):
    trajectories, _ = made(**options)
    for n in (1, 3, 9):  # nine guided samples take several launches of any
        got = trajectories.sample(n, **ARGUMENTS)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, engine_s(n, **ARGUMENTS))


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"buckets": ()}], ids=str)
def test_parts_of_images_are_kept_in_memory_that_is_there_once(made, fake, options):
    trajectories, _ = made(**options)
    want = engine_s(3, **ARGUMENTS, **KEPT)
    np.testing.assert_allclose(
        trajectories.sample(3, **ARGUMENTS, **KEPT), want, rtol=0, atol=ADAPTED_SAMPLES * np.abs(want).max()
    )
    fake.log()
    trajectories.sample(3, **ARGUMENTS, **KEPT)
    assert "cuMemAlloc" not in fake.names()


def test_a_batch_is_a_copy_each_a_launch_and_the_wait_for_its_result(made, fake):
    trajectories, _ = made()
    trajectories.sample(2, **ARGUMENTS)
    fake.log()
    trajectories.sample(2, **ARGUMENTS)
    copies = ["cuMemcpyHtoDAsync"] * 5  # states, seeds, the first rows, their timesteps and labels
    frames = ["cuEventSynchronize", "cuMemcpyHtoDAsync", "cuEventRecord"]
    result = ["cuMemcpyDtoHAsync", "cuStreamSynchronize"]
    assert fake.names() == ["cuEventQuery", *copies, "cuEventRecord", *frames, "cuGraphLaunch", *result]


def batch(rows, **changed):
    memory = {
        "x": np.zeros((rows, *support.SHAPE), np.float32),
        "seed": np.zeros(rows, np.int64),
        "sample": np.zeros((rows, *support.SHAPE), np.float32),
        "timestep": np.zeros(rows, np.float32),
        "cond": {},
    }
    return StaticBatch(**{**memory, **changed})


def test_pinned_memory_is_not_overwritten_while_a_copy_of_it_is_under_way(fake):
    memory = BatchMemory(Bare(fake.open(), INFO, 4), INFO)
    fake.late(True)
    fake.log()
    for words in (8, 4, 100):
        memory.upload_frames(np.zeros(words, np.uint32))
    made = ["cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuEventRecord"]
    reused = ["cuEventQuery", "cuEventSynchronize", "cuMemcpyHtoDAsync", "cuEventRecord"]
    names = fake.names()
    assert names[1 : 1 + len(made) + len(reused)] == [*made, *reused]  # after the wait for what reads the memory
    # Memory that is too small is replaced once nothing reads it: neither kernels of the device's, nor copies.
    assert names[9:12] == ["cuStreamSynchronize", "cuMemAlloc", "cuMemFree"]
    assert names[12:15] == ["cuEventQuery", "cuMemHostAlloc", "cuMemFreeHost"]


def test_an_upload_that_fails_leaves_nothing_that_is_not_waited_for(fake):
    memory = BatchMemory(Bare(fake.open(), INFO, 4), INFO)
    memory.begin(batch(2))
    fake.log()
    fake.fail(2, OUT_OF_MEMORY)
    with pytest.raises(cuda.CudaError, match="cuMemcpyHtoDAsync failed"):
        memory.begin(batch(2))
    assert fake.names()[-1] == "cuEventRecord"
    fake.log()
    memory.begin(batch(2))
    assert fake.names()[0] == "cuEventQuery"


def test_values_are_held_in_what_the_network_takes(fake):
    info = ModelInfo(
        shape=(3,),
        schedule=support.SCHEDULE,
        timestep_dtype="int64",
        cond={
            "text": sf.CondInput(dtype="float32", shape=(2, 2), null=0.5),
            "scale": sf.CondInput(dtype="float32", null=1.0),
            "flag": sf.CondInput(dtype="bool", null=False),
        },
    )
    network = Bare(fake.open(), info, 4, storage="float16", cond_storage={"text": "float16"})
    assert network.storage == "float16"
    assert network.cond_storage == {"text": "float16", "scale": "float32", "flag": "bool"}
    np.testing.assert_array_equal(array_at(network.addresses["text"], (4, 2, 2), np.float16), 0.5)
    memory = BatchMemory(network, info)
    rng = np.random.default_rng(0)
    sample, text = rng.standard_normal((2, 3), np.float32), rng.standard_normal((2, 2, 2), np.float32)
    scale, flag, whole = np.float32([2, 3]), np.array([True, False]), np.int64([999, 0])
    memory.begin(
        StaticBatch(sample, np.int64([1, 2]), sample, whole, {"text": text, "scale": scale, "flag": flag}),
    )
    for name, shape, dtype, want in (
        ("sample", (4, 3), np.float16, sample.astype(np.float16)),
        ("timestep", (4,), np.int64, whole),
        ("text", (4, 2, 2), np.float16, text.astype(np.float16)),
        ("scale", (4,), np.float32, scale),
        ("flag", (4,), np.bool_, flag),
    ):
        np.testing.assert_array_equal(array_at(network.addresses[name], shape, dtype)[:2], want, err_msg=name)
    np.testing.assert_array_equal(
        network.copy_of(memory.states, 2), sample
    )  # states are float32 whatever the network takes


def test_values_that_do_not_fit_are_refused_and_nothing_is_written(fake):
    info = ModelInfo(
        shape=(3,), schedule=support.SCHEDULE, cond={"text": sf.CondInput(dtype="float32", shape=(2,), null=0.0)}
    )
    memory = BatchMemory(Bare(fake.open(), info, 4, cond_storage={"text": "float16"}), info)
    x = np.ones((1, 3), np.float32)
    fake.log()
    with pytest.raises(ValueError, match=r"text must fit the network's float16, got 70000\.0"):
        memory.begin(StaticBatch(x, np.int64([0]), x, np.float32([1]), {"text": np.float32([[1, 7e4]])}))
    assert "cuMemcpyHtoDAsync" not in fake.names()
    memory.begin(StaticBatch(x, np.int64([0]), x, np.float32([1]), {"text": np.float32([[np.inf, 1]])}))


def test_conditioning_may_be_named_as_the_memory_is(fake):
    info = ModelInfo(shape=(3,), schedule=support.SCHEDULE, cond={"x": sf.CondInput(dtype="int64", null=7)})
    network = Bare(fake.open(), info, 2)
    memory = BatchMemory(network, info)
    x = np.float32([[1, 2, 3]])
    memory.begin(StaticBatch(x, np.int64([0]), x, np.float32([1]), {"x": np.int64([4])}))
    np.testing.assert_array_equal(array_at(network.addresses["x"], (2,), np.int64), [4, 7])
    np.testing.assert_array_equal(network.copy_of(memory.states, 1), x)


def test_the_largest_is_captured_first_after_all_were_run(made, fake):
    ran = []
    _, network = made(before=lambda network, rows: ran.append(rows))
    assert list(network.graphs) == [8, 4, 2]
    assert ran == [8, 8, 8, 4, 4, 4, 2, 2, 2, 8, 4, 2]


def takes(buffers, bytes_of):
    """A library that takes memory for a row count when it first runs it, and keeps it."""

    def before(network, rows):
        if rows not in buffers:
            buffers[rows] = cuda.DeviceBuffer(network.context, bytes_of(rows))

    return before


def test_the_memory_needed_is_logged_before_anything_is_captured(made, caplog):
    kept = {}
    with caplog.at_level(logging.INFO, logger="stepfuse"):
        made(buckets=[8, 2], before=takes(kept, lambda rows: rows << 20))
    kept.clear()
    assert "capturing forwards of [8, 2] rows: about 10.0 MiB of 1024.0 MiB free" in caplog.text


@pytest.mark.parametrize("while_capturing", [False, True])
def test_out_of_memory_gives_up_the_largest(made, fake, caplog, while_capturing):
    def before(network, rows):
        if rows > 4 and any("cuStreamBeginCapture" in line for line in fake._lines(0)) == while_capturing:
            fake.fail(0, OUT_OF_MEMORY)

    trajectories, _ = made(before=before, buckets=[8, 6, 4, 2])
    assert trajectories.rows == [4, 2]
    assert "forwards of [8, 6] rows are given up: memory suffices for [4, 2]" in caplog.text
    np.testing.assert_array_equal(trajectories.sample(3, **ARGUMENTS), engine_s(3, **ARGUMENTS))


def test_no_memory_at_all_is_refused(made):
    with pytest.raises(CaptureError, match=r"no forward can be captured: .*smaller network"):
        made(memory_bytes=10)


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "swallows"])
def test_a_forward_that_waits_is_refused_and_leaves_the_stream_usable(made, fake, caplog, raises):
    def before(network, rows):
        try:
            network.stream.synchronize()
        except cuda.CudaError:
            if raises:
                raise

    with pytest.raises(CaptureError, match=r"of 2 rows cannot be captured: cuStream.* must not wait .*pass eager=None"):
        made(before=before, buckets=[2, 1])
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        trajectories, _ = made(before=before, buckets=[2, 1], optional=True)
    assert trajectories.eager
    assert "the network runs eagerly, a launch a kernel: a forward of 2 rows cannot be captured" in caplog.text
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS), engine_s(2, **ARGUMENTS))


def test_a_capture_that_failed_is_over_while_its_error_is_kept(fake, step_on):
    network = HostNetwork(fake.open(), step_on, before=lambda network, rows: network.stream.synchronize())
    with pytest.raises(CaptureError) as kept:
        network.capture([2])
    network.stream.synchronize()
    del kept


HOST_CALL, EMPTY, ALLOCATION = 3, 5, 10  # CUgraphNodeType


def holds(fake, kind):
    """A library whose forward enqueues work of some kind beside the kernel."""
    kept = []

    def before(network, rows):
        if not kept:
            kept.append(np.zeros(4, np.float32) if "pageable" in kind else cuda.HostBuffer(network.context, 16))
            kept.append(cuda.DeviceBuffer(network.context, 16))
        host, memory = kept
        if "copy" in kind:
            (memory.upload if "from" in kind else memory.download)(network.stream, host)
        else:
            fake.put(network.stream, {"call of the host": HOST_CALL, "allocation": ALLOCATION, "nothing": EMPTY}[kind])

    return before


KINDS = ("copy from pageable memory", "copy to pageable memory", "call of the host", "allocation")


@pytest.mark.parametrize("unified", [False, True], ids=["typed", "unified"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_replay_cannot_repeat_is_refused(made, fake, kind, unified):
    fake.set(unified=unified)
    with pytest.raises(CaptureError, match=rf"of 2 rows cannot be .* cannot repeat: {kind} \(1\)\. A captured forward"):
        made(before=holds(fake, kind), buckets=[2])
    trajectories, _ = made(before=holds(fake, kind), buckets=[2], optional=True)
    assert trajectories.eager


@pytest.mark.parametrize("unified", [False, True], ids=["typed", "unified"])
@pytest.mark.parametrize("kind", ["copy from pinned memory", "copy to pinned memory", "nothing"])
def test_what_a_replay_can_repeat_is_captured(made, fake, kind, unified):
    fake.set(unified=unified)
    trajectories, _ = made(before=holds(fake, kind), buckets=[8])
    assert not trajectories.eager
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS), engine_s(2, **ARGUMENTS))


def test_what_a_library_raises_when_it_is_first_run_passes_through(made):
    def before(network, rows):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        made(before=before)


def test_arguments_out_of_bounds_are_refused(fake):
    context = fake.open()
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        Bare(context, INFO, 0)
    with pytest.raises(TypeError, match="a network must take samples in float32 or float16, got int8"):
        Bare(context, INFO, 1, storage="int8")
    fake.set(memory=1000)
    with pytest.raises(cuda.CudaError, match=r"out of memory.*allow fewer rows"):
        Bare(context, INFO, 64)


@pytest.mark.parametrize("buckets", [[0, 2], [9], [9, 2]])
def test_buckets_out_of_bounds_are_refused(made, buckets):
    with pytest.raises(ValueError, match=r"buckets must be row counts from 1 to 8, got \["):
        made(buckets=buckets)


def test_it_needs_no_torch():
    code = "import sys, stepfuse.backends.cuda.driver_network; assert not {'torch', 'triton'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
