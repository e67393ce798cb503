"""Capture, replay and release of graphs."""

import threading

import numpy as np
import pytest

from stepfuse._core import cuda

ARGUMENTS = [("x", "*fp32", True), ("n", "i32", False), ("null", "*i8", False)]
UNSUPPORTED, INVALIDATED = 900, 901


def set_up(fake):
    context = fake.open()
    kernel = cuda.StepKernel(cuda.Module(context, b"kernel 3\n"), "kernel", ARGUMENTS, 256, 2, 8)
    return context, cuda.Stream(context), kernel


def captured(stream, kernel, times=2):
    capture = cuda.Capture(stream)
    for _ in range(times):
        kernel.launch(stream, 3, {"x": 160, "n": 1000})
    return capture.end()


def test_a_launch_is_cut_into_tiles_and_slots(fake):
    _, stream, kernel = set_up(fake)
    fake.log()
    kernel.launch(stream, 3, {"x": 160, "n": 1000})
    assert fake.log() == ["cuLaunchKernel kernel 4 3 1 64 1 1 8"]


def test_what_is_captured_runs_when_the_graph_is_launched_and_not_before(fake):
    _, stream, kernel = set_up(fake)
    ran = []
    fake.run_kernels(lambda name, words, shape: ran.append((name, list(shape[:3]))))
    fake.log()
    graph = captured(stream, kernel)
    assert fake.names() == ["cuStreamBeginCapture", "cuLaunchKernel", "cuLaunchKernel", "cuStreamEndCapture"]
    executable = cuda.GraphExec(graph)
    executable.upload(stream)
    del graph  # the executable graph is its own
    assert ran == []
    fake.log()
    for _ in range(3):
        executable.launch(stream)
    assert fake.names() == ["cuGraphLaunch"] * 3
    assert ran == [("kernel", [4, 3, 1])] * 6


def test_capture_is_of_the_thread_alone(fake):
    _, stream, kernel = set_up(fake)
    fake.log()
    captured(stream, kernel)
    assert fake.log()[0] == "cuStreamBeginCapture 1"  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda stream, buffer, kernel, event: buffer.upload(stream, np.ones(16, np.float32)), id="upload"),
        pytest.param(lambda stream, buffer, kernel, event: kernel.launch(stream, 1, {"x": 160, "n": 9}), id="launch"),
        pytest.param(lambda stream, buffer, kernel, event: stream.record(event), id="record"),
        pytest.param(lambda stream, buffer, kernel, event: stream.synchronize(), id="synchronize"),
    ],
)
@pytest.mark.parametrize("hold", [cuda.Capture, cuda.Turn])
def test_other_threads_wait_for_their_turn_on_a_stream(fake, use, hold):
    """Else what they enqueue becomes part of the graph, or comes in between; they do not keep Python's lock."""
    context, stream, kernel = set_up(fake)
    buffer, event = cuda.DeviceBuffer(context, 64), cuda.Event(context)
    done = []
    held = hold(stream)
    if hold is cuda.Turn:
        held.__enter__()
    other = threading.Thread(target=lambda: done.append(use(stream, buffer, kernel, event)))
    other.start()
    kernel.launch(stream, 3, {"x": 160, "n": 1000})
    other.join(0.1)
    assert (other.is_alive(), done) == (True, [])
    names = fake.names()
    held.end() if hold is cuda.Capture else held.__exit__(None, None, None)
    other.join(10)
    assert done == [None]
    assert [name for name in names if name.startswith(("cuLaunch", "cuMemcpy", "cuEventRecord", "cuStreamSyn"))] == [
        "cuLaunchKernel"
    ]


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(lambda context, stream: stream.synchronize(), id="synchronises"),
        pytest.param(lambda context, stream: cuda.DeviceBuffer(context, 64), id="allocates"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_leaves_the_stream_usable(fake, forbidden):
    context, stream, kernel = set_up(fake)
    capture = cuda.Capture(stream)
    with pytest.raises(cuda.CudaError, match="must neither synchronise nor allocate: warm the network up") as error:
        forbidden(context, stream)
    assert error.value.code == UNSUPPORTED
    with pytest.raises(cuda.CudaError) as error:
        capture.end()
    assert error.value.code == INVALIDATED
    stream.synchronize()
    cuda.GraphExec(captured(stream, kernel)).launch(stream)


def test_a_capture_that_is_given_up_leaves_nothing(fake):
    _, stream, kernel = set_up(fake)
    capture = cuda.Capture(stream)
    kernel.launch(stream, 1, {"x": 0, "n": 1})
    del capture
    assert "graph" not in fake.live
    stream.synchronize()


def test_a_borrowed_graph_is_not_destroyed(fake):
    context, stream, kernel = set_up(fake)
    graph = captured(stream, kernel)
    borrowed = cuda.Graph.borrow(context, graph.address)
    cuda.GraphExec(borrowed).launch(stream)
    del borrowed
    assert fake.live.count("graph") == 1
    cuda.GraphExec(graph).launch(stream)


def test_a_graph_that_cannot_be_instantiated_leaves_nothing(fake):
    _, stream, kernel = set_up(fake)
    graph = captured(stream, kernel)
    fake.fail(0, 2)
    with pytest.raises(cuda.CudaError, match="cuGraphInstantiateWithFlags failed: CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.GraphExec(graph)
    assert "executable graph" not in fake.live
    cuda.GraphExec(graph).launch(stream)


@pytest.mark.parametrize(
    ("slots", "values", "message"),
    [
        pytest.param(1, {"n": 1}, "the kernel takes x, which has no value", id="missing"),
        pytest.param(1, {"x": 0, "n": 1, "y": 2}, "the kernel takes no y", id="unknown"),
        pytest.param(1, {"x": 0, "n": 1 << 31}, "n must fit 32 bits, got 2147483648", id="wide"),
        pytest.param(1, {"x": 8, "n": 1}, "x must be a multiple of 16 for this kernel, got 8", id="unaligned"),
        pytest.param(0, {"x": 0, "n": 1}, "a launch takes 1 to 65535 slots .* got 0 of 1", id="no-slot"),
        pytest.param(1 << 16, {"x": 0, "n": 1}, "a launch takes 1 to 65535 slots", id="too-many-slots"),
        pytest.param(1, {"x": 0, "n": 0}, "of at least 1 element, got 1 of 0", id="no-element"),
    ],
)
def test_arguments_that_the_kernel_was_not_compiled_for_are_refused(fake, slots, values, message):
    _, stream, kernel = set_up(fake)
    with pytest.raises(ValueError, match=message):
        kernel.launch(stream, slots, values)


def test_kernels_are_named_and_typed(fake):
    context, _, _ = set_up(fake)
    module = cuda.Module(context, b"kernel 3\n")
    assert module.info("kernel") == {"registers": 40, "local_bytes": 0, "max_threads": 1024}
    with pytest.raises(cuda.CudaError, match=r'cuModuleGetFunction\("colonel"\) failed'):
        cuda.StepKernel(module, "colonel", ARGUMENTS, 256, 2)
    with pytest.raises(ValueError, match="type must be a pointer, i32 or i64, got 'fp64'"):
        cuda.StepKernel(module, "kernel", [("x", "fp64", False)], 256, 2)
    with pytest.raises(ValueError, match="a kernel's arguments must be those of a step, kernel takes 'y'"):
        cuda.StepKernel(module, "kernel", [("y", "*fp32", False)], 256, 2)
    with pytest.raises(ValueError, match="block and num_warps must be at least 1"):
        cuda.StepKernel(module, "kernel", ARGUMENTS, 0, 2)


def test_a_kernel_of_much_shared_memory_has_the_attribute_set(fake):
    context, _, _ = set_up(fake)
    module = cuda.Module(context, b"kernel 3\n")
    fake.log()
    cuda.StepKernel(module, "kernel", ARGUMENTS, 256, 2, 48 << 10)
    assert fake.names() == ["cuModuleGetFunction"]
    cuda.StepKernel(module, "kernel", ARGUMENTS, 256, 2, 64 << 10)
    assert fake.log()[1:] == [f"cuFuncSetAttribute 8 {64 << 10}"]
