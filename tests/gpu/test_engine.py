"""The engine's loop on a GPU: the CPU's images whatever shares the forwards, its waits, and what goes wrong."""

import gc
import itertools
import logging
import re

import numpy as np
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.errors import CaptureError
from stepfuse.serving.batch import Observers

GUIDED = {"cond": 3, "steps": 20, "eta": 1.0, "guidance_scale": 3.0, "seed": 7}
SHORT = {"cond": 3, "steps": 6, "guidance_scale": 2.0, "seed": 5}
IMAGE = np.random.default_rng(3).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
KEPT = {"image": IMAGE, "mask": np.float32([[1] * 6 + [0.5] * 2 + [0] * 8] * 16)}
ADAPTED = {"guidance_rescale": 0.7, "dynamic_threshold": (0.95, 1.5)}
MIXED = {
    "table": [
        sf.samplers.ddim(support.SCHEDULE, 12, eta=1.0, guidance_scale=3.0),
        sf.samplers.dpmpp_2m(support.SCHEDULE, 9),
        sf.samplers.ddim(support.SCHEDULE, 14, guidance_scale=2.0, guidance_interval=(0.0, 0.5)),
        sf.samplers.ddim(support.SCHEDULE, 10, guidance_scale=0.0),
        sf.samplers.ddim(support.SCHEDULE, 8),
    ],
    "cond": [2, 4, 5, 1, None],
    "seed": [11, 1 << 63, 13, 14, (1 << 64) - 1],
}
BAD = 6


@pytest.fixture
def close(near):
    """Of images of a float32 network: the CPU's."""
    return lambda got, want: near(got, want, tolerances.GPU_IMAGES * np.abs(want).max())


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"n": 4, **GUIDED}, id="guided"),
        pytest.param({"n": 9, **GUIDED}, id="more-than-fit"),
        pytest.param({"n": 5, **MIXED}, id="mixed"),
        pytest.param({"n": 2, "cond": 2, "sampler": "dpmpp_2m", "steps": 12, "seed": 1}, id="history"),
        pytest.param({"n": 2, "sampler": "heun", "steps": 8, "seed": 1}, id="unconditional"),
        pytest.param({"n": 2, **GUIDED, "negative_cond": 4}, id="negative"),
        pytest.param({"n": 3, **GUIDED, "image": IMAGE, "strength": 0.6}, id="image"),
        pytest.param({"n": 2, **GUIDED, **KEPT}, id="kept"),
        pytest.param({"n": 2, **GUIDED, "guidance_rescale": 0.7}, id="rescaled"),
        pytest.param({"n": 2, **GUIDED, "apg": (0.0, 4.0), "guidance_rescale": 0.3}, id="projected"),
        pytest.param({"n": 2, **GUIDED, "cfg_renorm": 2}, id="renormed"),
        pytest.param({"n": 2, **GUIDED, "apg": (0.3, 9.0), "apg_form": "paper"}, id="projected-clean"),
        pytest.param({"n": 2, **GUIDED, "cfg_zero_star": True, "zero_init": 1}, id="zero-star"),
        pytest.param({"n": 2, **GUIDED, "dynamic_threshold": (0.95, 1.5)}, id="thresholded"),
        pytest.param({"n": 3, **GUIDED, **KEPT, **ADAPTED, "strength": 0.7}, id="kept-and-adapted"),
    ],
)
def test_images_are_the_cpu_s(on_gpu, on_cpu, make_module, close, eager, arguments):
    want = on_cpu(make_module(), **arguments)
    engine = on_gpu(make_module(), eager=eager)
    for _ in range(2):
        got = engine.sample(**arguments)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        close(got, want)


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
@pytest.mark.parametrize("arguments", [GUIDED, {**GUIDED, **KEPT}], ids=["guided", "kept"])
def test_a_sample_that_stays_there_is_what_comes_to_the_host(on_gpu, make_module, context, eager, arguments):
    engine = on_gpu(make_module(), eager=eager)
    for seed in (7, 8):  # in the second call where the first one's were
        batch = engine._batch(3, noise=None, observers=Observers(), on_device=True, **{**arguments, "seed": seed})
        drawn, found, stream = batch.run(), np.empty((3, *IMAGE.shape), np.float32), cuda.Stream(context)
        for sample, to in zip(batch.on_device, found, strict=True):
            sample.buffer.download(stream, to)
        stream.synchronize()
        np.testing.assert_array_equal(found, drawn)
        del batch, sample


def test_requests_join_and_leave_between_steps(on_gpu, on_host, make_module, close):
    kept = {"image": IMAGE, "mask": KEPT["mask"]}
    requests = [
        sf.Request(
            cond=None if i % 9 == 8 else i % 7,
            seed=i,
            steps=3 + i % 8,
            sampler=("ddim", "dpmpp_2m", "heun")[i % 3],
            guidance_scale=(1.0, 3.0)[i % 2],
            options={"guidance_rescale": 0.5} if i % 5 == 1 else {},
            **(kept if i % 7 == 3 else {}),
        )
        for i in range(40)
    ]
    engine, host = on_gpu(make_module()), on_host(make_module())
    futures, wanted = ([one.submit(request) for request in requests] for one in (engine, host))
    for future, want in zip(futures, wanted, strict=True):
        close(future.result(timeout=60), want.result(timeout=60))
    stats = engine.stats()
    assert stats["samples"] == 40
    assert stats["forwards"] < sum(3 + i % 8 for i in range(40)) / 2  # they were shared


def test_noise_that_is_given_is_where_it_begins(on_gpu, on_cpu, make_module, close):
    noise = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    arguments = {"cond": 1, "steps": 10, "noise": noise, "seed": 0}
    close(on_gpu(make_module()).sample(2, **arguments), on_cpu(make_module(), 2, **arguments))


def test_previews_are_the_cpu_s_and_what_an_owner_changes_is_seen(on_gpu, on_host, make_module, close):
    def double(step, total, x):
        if step == 2:
            x *= 2

    seen = {}
    for name, engine in (("gpu", on_gpu(make_module())), ("cpu", on_host(make_module()))):
        previews = seen[name] = []
        look = lambda step, total, x0, previews=previews: previews.append(x0.copy())  # noqa: E731
        previews.append(engine.sample(3, callback=look, on_state=double, **SHORT))
    assert len(seen["gpu"]) == len(seen["cpu"]) == 1 + SHORT["steps"]
    for got, want in zip(seen["gpu"], seen["cpu"], strict=True):
        close(got, want)


def test_a_stream_a_walk_and_an_inversion_are_the_cpu_s(on_gpu, on_host, make_module, close):
    engine, host = on_gpu(make_module()), on_host(make_module())
    request = sf.Request(**SHORT)
    last = [list(one.stream(request))[-1] for one in (engine, host)]
    assert last[0].step == last[0].total == SHORT["steps"]
    close(last[0].x0, last[1].x0)
    ends = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    walks = [one.interpolate(*ends, n=5, cond=2, steps=6, seed=0) for one in (engine, host)]
    close(*walks)
    close(*[one.encode(np.clip(walks[1][:2], -1, 1), steps=8, cond=2) for one in (engine, host)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_a_trajectory_s(torch, on_gpu, cubins, near, dtype):
    class Conditional(torch.nn.Module):
        """Of a float conditioning input, which the engine has in float32 and the network in its own type."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)
            self.conditioning = torch.nn.Linear(7, 16)

        def forward(self, sample, timestep, text):
            hidden = self.first(sample) + self.conditioning(text)[:, :, None, None]
            return self.last(torch.tanh(hidden)) + 0.5 * sample

    text = np.linspace(-1, 1, 7, dtype=np.float32)
    model = {"shape": (3, 16, 16), "schedule": support.SCHEDULE}
    model["cond"] = {"text": sf.CondInput(dtype="float32", shape=(7,), null=0.0)}
    kind = getattr(torch, dtype)
    arguments = {"cond": text, "steps": 8, "guidance_scale": 2.0, "seed": 0}
    module = Conditional().eval().requires_grad_(False).to("cuda", kind)
    whole = Trajectories.from_torch(module, **model, max_rows=8, cubins=cubins).sample(3, **arguments).cpu().numpy()
    got = on_gpu(module, model=model, dtype=kind).sample(3, **arguments)
    near(got, whole, tolerances.GPU_HALF_IMAGES * np.abs(whole).max())
    unconditional = on_gpu(module, model=model, dtype=kind).sample(3, **{**arguments, "cond": None})
    assert np.abs(unconditional - got).max() > tolerances.GPU_HALF_IMAGES * np.abs(whole).max()


def test_padded_an_image_is_the_same_bits_whatever_shares_its_forwards(on_gpu, make_module):
    engine = on_gpu(make_module(), serving=sf.Serving(max_rows=8, deterministic=True))
    request = sf.Request(cond=3, steps=12, guidance_scale=3.0, seed=7)
    alone = engine.submit(request).result(timeout=60)
    others = [engine.submit(sf.Request(cond=i % 7, steps=5 + i, seed=i)) for i in range(9)]
    np.testing.assert_array_equal(engine.submit(request).result(timeout=60), alone)
    for other in others:
        other.result(timeout=60)


def test_alone_an_image_is_the_same_bits_again(on_gpu, make_module):
    engine = on_gpu(make_module())
    drawn = [engine.sample(3, **GUIDED) for _ in range(3)]
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


def faulty(torch, module):
    class Faulty(torch.nn.Module):
        """Predicts no number for one class, once it is half-way."""

        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, sample, timestep, class_labels):
            bad = (class_labels == BAD) & (timestep < 500)
            return self.module(sample, timestep, class_labels).masked_fill(bad[:, None, None, None], float("nan"))

    return Faulty()


@pytest.mark.parametrize("others", [0, 3])
def test_a_state_that_is_not_finite_fails_its_own_request_and_says_where(
    torch, on_gpu, on_host, make_module, close, others
):
    bad, good = sf.Request(cond=BAD, seed=1, steps=6), [sf.Request(cond=i, seed=i, steps=6) for i in range(others)]
    engine, host = on_gpu(faulty(torch, make_module())), on_host(faulty(torch, make_module()))
    messages, images = [], []
    for one in (engine, host):
        futures = [one.submit(request) for request in good]
        with pytest.raises(sf.DenoiserError) as error:
            one.submit(bad).result(timeout=60)
        messages += re.findall(r"went non-finite at step \d of 6 \(ddim\)", str(error.value))
        images.append([future.result(timeout=60) for future in futures])
    assert len(messages) == 2
    assert messages[0] == messages[1]
    for got, want in zip(*images, strict=True):
        close(got, want)
    close(engine.sample(2, cond=1, seed=3, steps=5), host.sample(2, cond=1, seed=3, steps=5))


def test_cancelled_requests_leave_and_their_slots_are_free(on_gpu, on_cpu, make_module, close):
    engine = on_gpu(make_module())
    futures = [engine.submit(sf.Request(cond=3, steps=1000, seed=i)) for i in range(24)]
    kept = engine.submit(sf.Request(**SHORT))
    cancelled = sum(future.cancel() for future in futures)
    assert cancelled > 0
    close(kept.result(timeout=60), on_cpu(make_module(), 1, **SHORT)[0])
    close(engine.sample(9, **SHORT), on_cpu(make_module(), 9, **SHORT))
    assert engine.stats()["cancelled"] == cancelled


def test_a_module_that_waits_is_refused_and_leaves_all_usable(on_gpu, on_cpu, make_module, close, waiting, caplog):
    want = on_cpu(make_module(), 2, **GUIDED)
    with pytest.raises(CaptureError, match=r"a forward of 8 rows cannot be captured: .*must neither wait"):
        on_gpu(make_module(spoil=waiting))
    close(on_gpu(make_module()).sample(2, **GUIDED), want)
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        engine = on_gpu(make_module(spoil=waiting), eager=None)
    assert "the network runs eagerly, a launch a kernel: a forward of 8 rows cannot be captured" in caplog.text
    close(engine.sample(2, **GUIDED), want)


def test_what_an_eager_module_raises_is_its_requests_and_the_engine_goes_on(on_gpu, on_cpu, make_module, close):
    broken = [False]

    def spoil(hidden):
        if broken[0]:
            raise ZeroDivisionError("a network's own")
        return hidden

    engine = on_gpu(make_module(spoil=spoil), eager=True)
    broken[0] = True
    with pytest.raises(ZeroDivisionError, match="a network's own"):
        engine.sample(2, **SHORT)
    broken[0] = False
    close(engine.sample(2, **SHORT), on_cpu(make_module(), 2, **SHORT))


def test_a_budget_gives_up_the_largest_forwards_and_says_so(on_gpu, on_cpu, make_module, close, caplog):
    want = on_cpu(make_module(width=64), 6, **GUIDED)
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        engine = on_gpu(make_module(width=64), memory_bytes=200 << 20, max_rows=2048, buckets=[2048, 8])
    # A hidden layer of 2048 rows takes 128 MiB, and two are held at once.
    assert engine.serving.max_rows == 8
    assert "forwards of [2048] rows are given up: memory suffices for [8]" in caplog.text
    close(engine.sample(6, **GUIDED), want)


def test_out_of_memory_gives_up_the_largest_forward_and_not_the_process(torch, on_gpu, on_cpu, make_module, close):
    total = torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        engine = on_gpu(make_module(width=64), max_rows=4096, buckets=[4096, 8, 2])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.serving.max_rows == 8
    close(engine.sample(6, **GUIDED), on_cpu(make_module(width=64), 6, **GUIDED))


def test_a_closed_engine_leaves_no_memory_behind(torch, context, cubins, model, make_module):
    module = make_module().cuda()

    def left():
        engine = sf.Engine.from_torch(module, **model, device=sf.Cuda(cubins=cubins, eager=False), max_rows=8)
        engine.sample(5, **GUIDED, **KEPT)
        engine.close()
        del engine
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return context.memory[0]

    left()  # libraries keep what they load
    free = left()
    for _ in range(3):
        assert left() >= free - (4 << 20)  # of the driver's own


def test_the_profiler_sees_the_driver_s_waits(torch, context, traced):
    stream = torch.cuda.Stream()
    ours, event = cuda.Stream.borrow(context, stream.cuda_stream), cuda.Event(context)

    def busy(wait):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
        ours.record(event)
        wait()

    for wait, kind in ((event.synchronize, "Event"), (ours.synchronize, "Stream")):
        [seen] = traced(lambda wait=wait: busy(wait)).waits
        assert kind in seen.name


def test_the_host_is_ahead_and_waits_once_an_iteration(on_gpu, make_module, traced, monkeypatch):
    monkeypatch.setattr("stepfuse.engine.CHECK_INVARIANTS", False)
    engine, steps = on_gpu(make_module(width=512)), 40
    arguments = {**GUIDED, "steps": steps}
    engine.sample(4, **arguments)
    trace = traced(lambda: engine.sample(4, **arguments))

    found = trace.kernels_named("fused_step")
    assert len(found) == steps + 1  # the first fills the rows of the first forward
    assert len({one.launch for one in found[1:]}) == steps // 4  # four steps are one launch
    assert all("Event" in wait.name for wait in trace.waits), trace.waits
    assert len(trace.waits) <= steps
    # While the device is at a step, the next one is on its stream already.
    launched = {call.launch: call.began for call in trace.calls}
    ahead = [launched[after.launch] < before.ended for before, after in itertools.pairwise(found[2:])]
    assert sum(ahead) >= 0.9 * len(ahead), f"{sum(ahead)} of {len(ahead)} steps"


def test_a_closed_engine_refuses_and_the_next_works(on_gpu, make_module):
    engine = on_gpu(make_module())
    engine.close()
    with pytest.raises(sf.EngineClosed):
        engine.sample(1, **SHORT)
    assert np.isfinite(on_gpu(make_module()).sample(1, **SHORT)).all()
