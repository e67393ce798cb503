"""Samples that stay in the GPU's memory, on the recording driver: they have the bits of what comes to the host."""

import contextlib

import numpy as np
import pytest
import support
from engine_on_fake import BUCKETS, hosts

import stepfuse as sf
from stepfuse import _core
from stepfuse._core import cuda
from stepfuse.backends.device_samples import DeviceSamples
from stepfuse.serving.batch import Observers

GUIDED = {"cond": 3, "steps": 6, "guidance_scale": 3.0, "eta": 1.0}
MASKED = {**GUIDED, "image": np.full(support.SHAPE, 0.5), "mask": np.eye(*support.SHAPE[1:])[None]}


def draw(engine, n, **arguments):
    """On the host and, of each, where it is on the device."""
    observers = Observers(callback=arguments.pop("callback", None))
    batch = engine._batch(n, noise=None, observers=observers, on_device=True, **arguments)
    return batch.run(), batch.on_device


def read(engine, samples):
    stream, found = cuda.Stream(engine.network.context), np.empty((len(samples), *support.SHAPE), np.float32)
    for sample, to in zip(samples, found, strict=True):
        assert sample.shape == (1, *support.SHAPE)
        sample.buffer.download(stream, to)
    stream.synchronize()
    return found


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("buckets", [BUCKETS, ()], ids=["captured", "eager"])
@pytest.mark.parametrize("arguments", [GUIDED, MASKED, {**GUIDED, "steps": 30}], ids=["guided", "mask", "pieces"])
def test_what_stays_is_what_comes_to_the_host(made, late, buckets, arguments):
    engine = made(late=late, buckets=buckets)
    for seed in (1, 7):  # in the second call where the first one's were
        drawn, stayed = draw(engine, 3, seed=seed, **arguments)
        np.testing.assert_array_equal(drawn, hosts(3, seed=seed, **arguments))
        np.testing.assert_array_equal(read(engine, stayed), drawn)
        del stayed


def test_it_is_copied_once_behind_the_last_step(made, fake):
    engine = made()
    draw(engine, 2, seed=1, **GUIDED)
    fake.log()
    draw(engine, 2, seed=1, **GUIDED)
    copies = [i for i, name in enumerate(fake.names()) if name == "cuMemcpyDtoDAsync"]
    assert len(copies) == 2
    assert [name for name in fake.names()[copies[0] :] if name.startswith(("cuLaunch", "cuGraphLaunch"))] == []


def test_a_run_that_its_callback_stops_returns_what_is_on_the_host_alone(made):
    drawn, stayed = draw(made(), 2, seed=1, callback=lambda step, *_: step < 3, **GUIDED)
    assert stayed == [None, None]
    assert np.isfinite(drawn).all()
    watched, stayed = draw(made(), 2, seed=1, callback=lambda *_: True, **GUIDED)
    assert all(stayed)
    np.testing.assert_array_equal(watched, hosts(2, seed=1, **GUIDED))


def test_an_engine_on_the_host_has_none():
    with support.make_engine() as engine:
        drawn, stayed = draw(engine, 2, seed=1, **GUIDED)
    assert stayed == [None, None]
    np.testing.assert_array_equal(drawn, hosts(2, seed=1, **GUIDED))


@pytest.mark.parametrize("calls", range(60))
def test_whatever_call_fails_the_next_succeeds(made, fake, calls):
    engine = made()
    draw(engine, 2, seed=1, **GUIDED)
    fake.fail(calls, 999)
    with contextlib.suppress(cuda.CudaError):
        drawn, stayed = draw(engine, 2, seed=1, **GUIDED)
        fake.fail(-1, 0)
        np.testing.assert_array_equal(read(engine, stayed), drawn)
    fake.fail(-1, 0)
    drawn, stayed = draw(engine, 2, seed=1, **GUIDED)
    np.testing.assert_array_equal(drawn, hosts(2, seed=1, **GUIDED))
    np.testing.assert_array_equal(read(engine, stayed), drawn)


def test_memory_is_used_again_and_freed_in_the_end(fake):
    context = fake.open()
    free = context.memory[0]
    samples = DeviceSamples(context, (4, 8, 8))
    first, second = samples.take(), samples.take()
    taken = free - context.memory[0]
    assert taken >= 2 * 4 * 4 * 8 * 8
    address = first.buffer.address
    del first
    third = samples.take()
    assert third.buffer.address == address
    assert free - context.memory[0] == taken
    del second
    samples.close()
    assert samples.take() is None
    assert free > context.memory[0]
    del third
    assert free == context.memory[0]


def test_without_memory_a_sample_is_on_the_host_alone(made, fake):
    engine = made()
    drawn, kept = draw(engine, 1, seed=1, **GUIDED)
    free, total = engine.network.context.memory
    fake.set(memory=total - free)
    again, stayed = draw(engine, 1, seed=1, **GUIDED)
    assert stayed == [None]
    np.testing.assert_array_equal(again, drawn)
    np.testing.assert_array_equal(read(engine, kept), drawn)
    fake.set(memory=1 << 30)


def test_another_error_is_raised(fake):
    samples = DeviceSamples(fake.open(), (4, 8, 8))
    fake.fail(0, 999)
    with pytest.raises(cuda.CudaError):
        samples.take()
    fake.fail(-1, 0)
    assert samples.take() is not None


def test_the_core_refuses_another_size_and_samples_on_the_host(fake):
    context = fake.open()
    server = _core.Server(_core.HostStepper(4, False, [8], 2), _core.LoopOptions(max_running=4), 8)
    table = _core.Table(sf.samplers.ddim(support.SCHEDULE, 2).rows, 1.0)

    def request(id, size):
        copy, label = cuda.DeviceBuffer(context, size), np.array(0)
        return server.request(id, table, 0, False, np.zeros(4, np.float32), None, [], [label], device_copy=copy)

    for size in (12, 20):
        with pytest.raises(ValueError, match=f"device_copy must have 16 bytes, got {size}"):
            request(0, size)
    ends = []
    server.submit(request(1, 16))
    server.run(lambda rows: None, ends.extend)
    [(kind, _, _, error, *_)] = ends
    assert kind == _core.EventKind.Failed
    with pytest.raises(ValueError, match="device_copy must be left out"):
        raise error
