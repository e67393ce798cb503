"""The driver API itself: what the recording driver of tests/cuda stands for."""

import numpy as np
import pytest

from stepfuse._core import cuda
from stepfuse.backends.cuda.kernels import packed

NAME = "fused_step.float32.float32.plain.small"


def test_the_context_is_torch_s_gpu(torch, context):
    properties = torch.cuda.get_device_properties(0)
    assert context.name == properties.name
    assert context.compute_capability == 10 * properties.major + properties.minor
    assert context.multiprocessors == properties.multi_processor_count
    free, total = context.memory
    assert 0 < free <= total


def test_memory_goes_there_and_back(context):
    stream, data = cuda.Stream(context), np.random.default_rng(0).bytes(1 << 20)
    buffer = cuda.DeviceBuffer(context, len(data) + 16)
    buffer.upload(stream, data, 16)
    back = bytearray(len(data))
    buffer.download(stream, back, 16)
    stream.synchronize()
    assert bytes(back) == data


def test_events_take_the_time_of_what_lies_between(torch, context):
    stream = torch.cuda.Stream()
    ours = cuda.Stream.borrow(context, stream.cuda_stream)
    first, second = cuda.Event(context), cuda.Event(context)
    ours.record(first)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # cycles: some milliseconds
    ours.record(second)
    second.synchronize()
    assert 1e-3 < second.seconds_since(first) < 1


def test_out_of_memory_is_an_error_and_harms_nothing(context):
    _, total = context.memory
    with pytest.raises(cuda.CudaError, match=f"asked for {2 * total} bytes") as error:
        cuda.DeviceBuffer(context, 2 * total)
    assert error.value.out_of_memory
    cuda.DeviceBuffer(context, 1 << 20)


def test_an_invalid_image_is_an_error_and_harms_nothing(context, cubins):
    for image in (b"no image", b".version 8.0\n.target sm_80\n.address_size 64\nnonsense\n"):
        with pytest.raises(cuda.CudaError, match="the GPU is of sm_"):
            cuda.Module(context, image)
    packed(cubins, NAME, context.compute_capability).load(context)


def test_there_is_no_second_world(context):
    with pytest.raises(cuda.CudaError, match="below the number of visible GPUs"):
        cuda.open(1000)
