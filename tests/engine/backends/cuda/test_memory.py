"""Copies to the device: how values are stored there, and which errors mean that its memory is exhausted."""

import numpy as np
import pytest

from stepfuse._core import cuda
from stepfuse.backends.cuda.memory import Rows, Staging, is_out_of_memory

#: Ties to even and away from it, signed zeros, subnormals, infinities.
VALUES = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1.7, 0.0, -0.0, 1e-40, np.inf, -np.inf], np.float32)


def stored(fake, values, dtype):
    """The bits that a network of this dtype finds in its memory."""
    context = fake.open()
    stream = cuda.Stream(context)
    rows = Rows.allocate(context, "text", len(values), (), dtype)
    Staging(context, stream).put([(rows, values)])
    bits = np.empty(len(values), np.uint16)
    rows.buffer.download(stream, bits)
    stream.synchronize()
    return bits


def test_bfloat16_is_rounded_as_torch_does(fake):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = np.concatenate([VALUES, rng.standard_normal(1000, np.float32) * np.float32(1e3)])
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(stored(fake, values, "bfloat16"), want)


def test_bfloat16_keeps_not_a_number(fake):
    bits = stored(fake, np.float32([np.nan, -np.nan]), "bfloat16").astype(np.uint32) << 16
    assert np.isnan(bits.view(np.float32)).all()


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("bfloat16", np.finfo(np.float32).max)])
def test_a_number_beyond_a_dtype_is_refused(fake, dtype, value):
    with pytest.raises(ValueError, match=f"text must fit the network's {dtype}, got"):
        stored(fake, np.float32([1, value]), dtype)


def test_memory_of_another_owner_is_written_within_its_bounds(fake):
    context = fake.open()
    stream = cuda.Stream(context)
    owner = cuda.DeviceBuffer(context, 16)
    rows = Rows.at(context, owner.address, "sample", 2, (2,), "float32")
    Staging(context, stream).put([(rows, np.float32([1, 2, 3, 4]))])
    got = np.empty(4, np.float32)
    owner.download(stream, got)
    stream.synchronize()
    np.testing.assert_array_equal(got, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="a copy must stay within the buffer's 16 bytes, got 20"):
        Staging(context, stream).put([(rows, np.zeros(5, np.float32))])
    del rows
    assert fake.live.count("device memory") == 1


def test_the_driver_s_errors_have_codes_and_libraries_have_texts(fake):
    fake.set(memory=100)
    with pytest.raises(cuda.CudaError) as out_of_memory:
        cuda.DeviceBuffer(fake.open(), 1000)
    assert is_out_of_memory(out_of_memory.value)
    fake.set(memory=1 << 30)
    fake.fail(0, 999)
    with pytest.raises(cuda.CudaError) as other:
        cuda.DeviceBuffer(fake.open(), 1000)
    assert not is_out_of_memory(other.value, ["failed"])
    assert is_out_of_memory(RuntimeError("Failed to allocate memory"), ["failed to allocate"])
    assert not is_out_of_memory(RuntimeError("out of memory"))
    del out_of_memory, other
