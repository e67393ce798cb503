"""The driver at run time: its calls, and the errors where it is missing, old or incomplete."""

import gc

import numpy as np
import pytest

from stepfuse._core import cuda

OUT_OF_MEMORY, NO_KERNEL_FOR_GPU, NEWER_DRIVER, NOT_FOUND = 2, 209, 36, 500


def test_a_context_describes_the_gpu(fake):
    context = fake.open()
    assert (context.name, context.compute_capability, context.multiprocessors) == ("Fake GPU", 90, 132)
    assert (context.driver_version, context.has_while_nodes) == ("13.0", True)
    assert context.memory == (1 << 30, 1 << 30)


def test_without_a_driver_it_says_what_to_do():
    with pytest.raises(cuda.CudaError, match=r"no CUDA driver \(libnothing.so.*\): install NVIDIA's driver"):
        cuda.open(driver="libnothing.so")


def test_a_library_that_is_no_driver_is_refused():
    with pytest.raises(cuda.CudaError, match=r"libm.so.6 is not a CUDA driver"):
        cuda.open(driver="libm.so.6")


def test_an_old_driver_is_refused_by_both_versions(fake):
    fake.set(version=11080)
    with pytest.raises(
        cuda.CudaError, match=r"needs a driver for CUDA 12.0 or newer, this one is for CUDA 11.8"
    ) as error:
        fake.open()
    assert error.value.code == NEWER_DRIVER
    assert fake.names() == []  # not even initialised


def test_a_driver_that_lacks_a_function_is_refused_by_its_name(fake):
    fake.set(hidden=["cuGraphUpload"])
    with pytest.raises(cuda.CudaError, match=r"this driver, for CUDA 13.0, has no cuGraphUpload") as error:
        fake.open()
    assert error.value.code == NOT_FOUND


def test_functions_are_found_by_their_exported_names_where_the_driver_has_no_other_way(old_driver):
    context = old_driver.open()
    buffer = cuda.DeviceBuffer(context, 64)
    del buffer, context
    assert old_driver.names()[-2:] == ["cuMemFree", "cuDevicePrimaryCtxRelease"]
    assert old_driver.live == []


def test_a_device_that_is_not_there_is_refused(fake):
    with pytest.raises(cuda.CudaError, match="device must be below the number of visible GPUs, 1, got 1"):
        cuda.open(1, fake.path)


def test_out_of_memory_says_what_was_asked_for_and_what_is_free(fake):
    fake.set(memory=1000)
    context = fake.open()
    kept = cuda.DeviceBuffer(context, 600)
    with pytest.raises(cuda.CudaError, match="asked for 500 bytes, of the GPU's 1000 there are 400 free") as error:
        cuda.DeviceBuffer(context, 500)
    assert (error.value.code, error.value.out_of_memory) == (OUT_OF_MEMORY, True)
    assert cuda.DeviceBuffer(context, 400).bytes == 400  # the context is as good as before
    assert kept.bytes == 600


def test_a_kernel_for_another_gpu_is_refused_with_the_driver_s_log(fake):
    context = fake.open()
    fake.fail(0, NO_KERNEL_FOR_GPU)
    with pytest.raises(cuda.CudaError, match=r"CUDA_ERROR_NO_BINARY_FOR_GPU.*stepfuse.kernels.aot.*sm_90; a line of"):
        cuda.Module(context, b"kernel 1\n")


def test_an_error_carries_the_call_and_the_driver_s_name_and_text(fake):
    context = fake.open()
    fake.fail(0, 719)
    with pytest.raises(cuda.CudaError) as error:
        cuda.Stream(context)
    assert str(error.value) == "cuStreamCreate failed: CUDA_ERROR_OF_THE_FAKE (719), as the test asked"
    assert (error.value.code, error.value.out_of_memory) == (719, False)


def test_a_release_that_fails_is_raised_by_the_next_call(fake):
    context = fake.open()
    stream = cuda.Stream(context)
    fake.fail(0, 700)
    del stream
    with pytest.raises(cuda.CudaError, match=r"releasing a handle before this call failed: .*700"):
        cuda.Stream(context)
    cuda.Stream(context)


def test_copies_go_through_pinned_and_other_memory_and_stay_within_the_buffer(fake):
    context = fake.open()
    stream, buffer = cuda.Stream(context), cuda.DeviceBuffer(context, 40)
    pinned = cuda.HostBuffer(context, 40)
    np.frombuffer(pinned, np.float32)[:] = np.arange(10)
    buffer.upload(stream, pinned)
    buffer.upload(stream, np.float32([7]), offset=8)
    found = np.empty(9, np.float32)
    buffer.download(stream, found, offset=4)
    np.testing.assert_array_equal(found, [1, 7, *range(3, 10)])
    for offset, count in ((0, 11), (36, 2), (44, 1), (2**64 - 4, 1)):
        with pytest.raises(ValueError, match="a copy must stay within the buffer's 40 bytes"):
            buffer.upload(stream, np.zeros(count, np.float32), offset)
    frozen = np.zeros(10, np.float32)
    frozen.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        buffer.download(stream, frozen)


def test_streams_and_events(fake):
    context = fake.open()
    first, second = cuda.Stream(context), cuda.Stream(context)
    begin, end = (cuda.Event(context, timing=True) for _ in range(2))
    fake.log()
    first.record(begin)
    second.wait(begin)
    fake.spend(0.0025)
    second.record(end)
    end.synchronize()
    assert end.seconds_since(begin) == pytest.approx(0.0025)
    names = ["cuEventRecord", "cuStreamWaitEvent", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime"]
    assert fake.names() == names
    with pytest.raises(cuda.CudaError, match="cuEventElapsedTime failed"):
        end.seconds_since(cuda.Event(context))


def test_a_borrowed_stream_is_not_destroyed(fake):
    context = fake.open()
    stream = cuda.Stream(context)
    borrowed = cuda.Stream.borrow(context, stream.address)
    borrowed.synchronize()
    del borrowed
    gc.collect()
    assert "stream" in fake.live
    stream.synchronize()
