"""Requests for pictures through all stages: submitted, awaited, streamed, withdrawn, and ended with the pipeline."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import wait

import handmade
import numpy as np
import pytest

import stepfuse as sf
from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend
from stepfuse.pipeline import service
from stepfuse.pipeline.prompts import PromptCutWarning, PromptEncoder
from stepfuse.pipeline.vae import Vae

TIMEOUT = 20  # seconds: nothing here takes one; a hang must end
CAT = sf.PromptRequest("a cat", seed=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("requests") / "bundle")


@pytest.fixture
def pipe(bundle):
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        yield pipe


class Held:
    """A method that waits until it is let go, each time."""

    def __init__(self, monkeypatch, owner, name):
        self.entered, self.permits = threading.Semaphore(0), threading.Semaphore(0)
        self.calls = 0
        original = getattr(owner, name)

        def held(*arguments, **options):
            self.calls += 1
            self.entered.release()
            assert self.permits.acquire(timeout=TIMEOUT / 2)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, held)

    def wait(self):
        assert self.entered.acquire(timeout=TIMEOUT)

    def let_go(self, times=10_000):
        self.permits.release(times)


STAGES = {
    "encoding": (PromptEncoder, "encode"),
    "denoising": (OnnxRuntimeBackend, "forward"),
    "decoding": (Vae, "decode"),
}


@pytest.fixture(params=STAGES)
def stage(request, monkeypatch):
    held = Held(monkeypatch, *STAGES[request.param])
    yield held
    held.let_go()


@pytest.fixture
def forward(monkeypatch):
    held = Held(monkeypatch, OnnxRuntimeBackend, "forward")
    yield held
    held.let_go()


def until(condition):
    """Waits for it."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def rng_picture():
    return np.random.default_rng(1).uniform(0, 1, (8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"negative_prompt": "blue", "steps": 3, "sampler": "dpmpp_2m"},
        {"guidance_scale": 1.0},
        {"width": 12, "height": 16},
        {"image": rng_picture(), "strength": 0.5},
        {"image": rng_picture(), "mask": np.eye(8), "sample_posterior": True},
        {"sampler": "euler_ancestral"},
        {"steps": 6, "denoising_end": 0.5},
    ],
    ids=["plain", "negative", "unguided", "size", "image", "mask", "noise", "part"],
)
def test_a_request_gives_the_bits_of_a_call(pipe, arguments):
    called = pipe("a red cat", seed=3, **arguments)
    got = pipe.submit(sf.PromptRequest("a red cat", seed=3, **arguments)).result(TIMEOUT)
    np.testing.assert_array_equal(got.latents, called.latents)
    np.testing.assert_array_equal(got.pixels, called.pixels)
    assert (got.facts, got.seeds) == (called.facts, called.seeds)


def test_options_latents_and_embeddings_are_those_of_a_call(pipe):
    latents = sf.normal(8, handmade.SHAPE)
    embeds = pipe.encode_prompt("a dog")
    called = pipe(prompt_embeds=embeds, latents=latents[None], spacing="trailing", seed=0)
    request = sf.PromptRequest(prompt_embeds=embeds, latents=latents, options={"spacing": "trailing"}, seed=0)
    np.testing.assert_array_equal(pipe.submit(request).result(TIMEOUT).pixels, called.pixels)


@pytest.mark.parametrize(
    "part",
    [{"denoising_end": 0.6}, {"denoising_start": 0.6, "latents": sf.normal(8, handmade.SHAPE)}, {"strength": 0.5}],
    ids=["end", "start", "strength"],
)
def test_previews_and_the_place_in_line_count_the_steps_that_are_taken(pipe, part, monkeypatch):
    order, passes = service.order_of, []

    def order_of(*arguments, **options):
        passes.append(options["passes"])
        return order(*arguments, **options)

    monkeypatch.setattr(service, "order_of", order_of)
    given = {"image": rng_picture()} if "strength" in part else {}
    request = sf.PromptRequest("a red cat", seed=3, steps=6, **part, **given)
    previews = list(pipe.stream(request))
    assert {preview.total for preview in previews} == {3}
    assert passes == [2 * 3]
    assert previews[-1].step == 3
    np.testing.assert_array_equal(previews[-1].decode().pixels, pipe.submit(request).result(TIMEOUT).pixels)


def test_many_requests_share_forwards_and_three_threads(pipe):
    pipe("a cat")
    pipe.submit(CAT).result(TIMEOUT)
    threads = threading.active_count()

    async def gather():
        return await asyncio.gather(*(pipe.asample("a cat", seed=seed) for seed in range(200)))

    before = pipe.totals()["forwards"]
    pictures = asyncio.run(asyncio.wait_for(gather(), TIMEOUT))
    assert threading.active_count() == threads
    assert pipe.totals()["forwards"] - before < 200 * 4
    called = pipe("a cat", num_images=200, seed=0)
    np.testing.assert_allclose(np.concatenate([one.pixels for one in pictures]), called.pixels, rtol=0, atol=2e-6)


def test_no_request_is_encoded_before_the_denoiser_can_take_it(bundle, forward, monkeypatch):
    encoded = []
    encode = PromptEncoder.encode
    noted = lambda self, *given: encoded.append(1) or encode(self, *given)  # noqa: E731
    monkeypatch.setattr(PromptEncoder, "encode", noted)
    serving = sf.Serving(max_rows=2, max_running=3)
    with sf.TextToImage.load(bundle, threads=1, serving=serving) as pipe:
        futures = [pipe.submit(sf.PromptRequest("a cat", seed=seed)) for seed in range(20)]
        forward.wait()
        time.sleep(0.05)
        assert len(encoded) == 2 * 3  # with the negative prompts
        assert pipe.totals()["waiting"] == 17
        forward.let_go()
        assert not wait(futures, TIMEOUT).not_done


def test_a_picture_is_decoded_while_others_are_denoised(pipe, monkeypatch):
    decode = Held(monkeypatch, Vae, "decode")
    first = pipe.submit(CAT)
    decode.wait()
    second = pipe.submit(sf.PromptRequest("a dog", steps=50, seed=1))
    until(lambda: pipe.totals()["steps"] == 54)
    assert not second.done()
    assert not first.done()
    decode.let_go()
    assert not wait([first, second], TIMEOUT).not_done


def test_priorities_order_those_that_wait_and_overtake_those_in_flight(bundle, forward):
    ended = []
    with sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=2)) as pipe:
        futures = []
        for name, priority in [("a", 0), ("b", 0), ("c", 0), ("low", -1), ("d", 0), ("high", 5)]:
            futures.append(pipe.submit(sf.PromptRequest("a cat", seed=1, priority=priority, id=name)))
            futures[-1].add_done_callback(lambda _, name=name: ended.append(name))
            if name == "a":
                forward.wait()
        until(lambda: any(job.name == "high" and job.withdraw for job in pipe._service._jobs.in_flight))
        forward.let_go()
        assert not wait(futures, TIMEOUT).not_done
    assert ended == ["high", "a", "b", "c", "d", "low"]


def test_sizes_beyond_the_engines_that_are_kept_take_turns(forward, pipe):
    futures = [pipe.submit(sf.PromptRequest("a cat", width=width, seed=1)) for width in range(4, 40, 4)]
    forward.wait()
    time.sleep(0.05)
    assert len(pipe.stats()) <= 4 + 1  # the model's own size is kept from the start
    forward.let_go()
    assert not wait(futures, TIMEOUT).not_done
    assert [future.result().pixels.shape[2] for future in futures] == list(range(4, 40, 4))
    assert pipe.totals()["samples"] == 9


def test_cancelling_works_in_each_stage(stage, pipe):
    future = pipe.submit(CAT)
    stage.wait()
    assert future.cancel()
    assert future.cancelled()
    assert not wait([future], TIMEOUT).not_done
    stage.let_go()
    np.testing.assert_array_equal(pipe.submit(CAT).result(TIMEOUT).pixels, pipe("a cat", seed=5).pixels)
    counts = pipe.totals()
    assert (counts["cancelled"], counts["samples"], counts["running"], counts["waiting"]) == (1, 2, 0, 0)


def test_cancelling_the_task_that_awaits_withdraws_the_request(stage, pipe):
    async def main():
        task = asyncio.ensure_future(pipe.asample("a cat"))
        await asyncio.to_thread(stage.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    stage.let_go()
    pipe.submit(CAT).result(TIMEOUT)
    assert pipe.totals()["cancelled"] == 1


def test_a_decoding_that_is_withdrawn_is_given_up(pipe, monkeypatch):
    decode = Held(monkeypatch, Vae, "decode")
    interrupts = []
    original = Vae.decode

    def noting(self, x, interrupt, *others):
        interrupts.append(interrupt)
        return original(self, x, interrupt, *others)

    monkeypatch.setattr(Vae, "decode", noting)
    future = pipe.submit(CAT)
    decode.wait()
    future.cancel()
    assert interrupts[0].options("cpu:0").terminate
    decode.let_go()


def test_a_timeout_counts_all_stages(stage, pipe):
    future = pipe.submit(sf.PromptRequest("a cat", timeout=0.2, id="late"))
    end = time.monotonic() + 0.3
    stage.wait()
    behind = pipe.submit(sf.PromptRequest("a cat", timeout=1e-3, id="behind"))
    until(lambda: time.monotonic() > end)
    stage.let_go()
    for name, one in (("late", future), ("behind", behind)):
        with pytest.raises(sf.RequestTimeout, match=rf"request {name} was not finished within its timeout of"):
            one.result(TIMEOUT)
    assert pipe.totals()["expired"] == 2


def test_times_beyond_what_can_be_waited_are_no_limit(bundle):
    pipe = sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=1, max_queue=1))
    futures = [pipe.submit(sf.PromptRequest("a cat", seed=i, timeout=1e200), wait=1e200) for i in range(6)]
    pipe.close(timeout=1e200)
    assert [future.exception(0) for future in futures] == [None] * 6


def test_a_timeout_in_line_needs_no_stage_to_end(bundle, forward):
    with sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=1)) as pipe:
        running = pipe.submit(CAT)
        forward.wait()
        late = pipe.submit(sf.PromptRequest("a cat", timeout=0.02))
        with pytest.raises(sf.RequestTimeout, match=r"its timeout of 0.02 s: 0 of 4 steps are done"):
            late.result(TIMEOUT)
        assert not running.done()
        forward.let_go()


@pytest.fixture
def slow(monkeypatch):
    """A denoiser whose forwards take ten milliseconds."""
    original = OnnxRuntimeBackend.forward
    monkeypatch.setattr(OnnxRuntimeBackend, "forward", lambda self, rows: time.sleep(0.01) or original(self, rows))


@pytest.mark.usefixtures("slow")
def test_deadlines_that_cannot_be_met_are_refused(pipe):
    with pytest.raises(ValueError, match=r"deadline must lie ahead on time.monotonic\(\), it passed"):
        pipe.submit(sf.PromptRequest("a cat", deadline=time.monotonic() - 1))
    pipe("a cat", steps=5)
    long = pipe.submit(sf.PromptRequest("a cat", steps=1000, priority=1))
    until(lambda: pipe.totals()["running"])
    with pytest.raises(
        sf.DeadlineError, match=r"it is 0\.\d+ s away, the estimate is .* network passes to be computed"
    ):
        pipe.submit(sf.PromptRequest("a cat", deadline=time.monotonic() + 0.5))
    assert pipe.totals()["deadline_refusals"] == 1
    long.cancel()
    on_time = pipe.submit(sf.PromptRequest("a cat", steps=2, deadline=time.monotonic() + TIMEOUT))
    late = pipe.submit(sf.PromptRequest("a cat", steps=2, priority=-1, deadline=time.monotonic() + 0.2))
    assert not wait([on_time, late], TIMEOUT).not_done
    assert (on_time.exception(), late.exception()) == (None, None)


def test_a_request_whose_deadline_passes_is_finished_late(pipe, monkeypatch):
    encode = Held(monkeypatch, PromptEncoder, "encode")
    deadline = time.monotonic() + 0.3
    future = pipe.submit(sf.PromptRequest("a cat", deadline=deadline))
    encode.wait()
    until(lambda: time.monotonic() > deadline)
    encode.let_go()
    assert len(future.result(TIMEOUT)) == 1
    assert pipe.totals()["deadline_misses"] == 1


def test_a_full_queue_refuses_or_waits(bundle, forward):
    with sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=1, max_queue=2)) as pipe:
        running = pipe.submit(CAT)
        forward.wait()
        waiting = [pipe.submit(CAT) for _ in range(2)]
        for patience in (0.0, 0.01):
            with pytest.raises(sf.QueueFull, match="the queue is full: 2 requests wait"):
                pipe.submit(CAT, wait=patience)
        assert pipe.totals()["queue_refusals"] == 2
        threading.Timer(0.02, waiting[0].cancel).start()
        later = pipe.submit(CAT, wait=TIMEOUT)
        forward.let_go()
        assert not wait([running, waiting[1], later], TIMEOUT).not_done
        completed = list(pipe.as_completed(sf.PromptRequest("a cat", seed=seed) for seed in range(9)))
    assert sorted(request.seed for request, _ in completed) == list(range(9))
    assert all(future.exception() is None for _, future in completed)


def test_many_submitters_never_exceed_the_queue_and_all_come_in(bundle):
    with sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=1, max_queue=3)) as pipe:
        most, futures = [], []

        def work():
            for seed in range(8):
                futures.append(pipe.submit(sf.PromptRequest("a cat", steps=1, seed=seed), wait=TIMEOUT))
                most.append(pipe.totals()["waiting"])

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert len(futures) == 48
        assert not wait(futures, TIMEOUT).not_done
        assert max(most) <= 3 + 6  # each of the six may be looking for a place


def test_a_stream_gives_previews_that_are_decoded_if_asked_for(forward, pipe, monkeypatch):
    decoded = []
    original = Vae.decode
    monkeypatch.setattr(Vae, "decode", lambda *given, **others: decoded.append(1) or original(*given, **others))
    forward.let_go(1)
    seen = []
    for preview in pipe.stream(CAT):
        assert not decoded or preview.step == preview.total
        seen.append(preview)
        forward.let_go(1)
    assert [(one.step, one.total) for one in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    forward.let_go()
    states = []
    called = pipe("a cat", seed=5, callback=lambda step, total, x0: states.append(x0[0]))
    for preview, x0 in zip(seen[:3], states, strict=False):
        np.testing.assert_array_equal(preview.x0, x0)
    np.testing.assert_array_equal(seen[1].decode().pixels, pipe.decode(states[1][None]))
    assert seen[1].decode().facts[0]["preview"] == "step 2 of 4"
    np.testing.assert_array_equal(seen[3].decode().pixels, called.pixels)
    assert seen[3].decode().facts == called.facts
    assert len(decoded) == 1 + 1 + 3  # the request, the call, those asked for


def left_by_break(pipe):
    for _preview in pipe.stream(CAT):
        break


def left_by_break_in_a_task(pipe):
    async def read():
        async for _preview in pipe.stream(CAT):
            break

    asyncio.run(read())


def left_by_cancelling_its_task(pipe):
    async def read(stream):
        async for _preview in stream:
            pass

    async def main():
        stream = pipe.stream(CAT)  # still referred to when the task is cancelled
        task = asyncio.ensure_future(read(stream))
        while not stream._latest.wake:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    return asyncio.run(main())


def left_by_closing(pipe):
    with pipe.stream(CAT) as stream:
        next(stream)


@pytest.mark.parametrize(
    "leave", [left_by_break, left_by_break_in_a_task, left_by_cancelling_its_task, left_by_closing]
)
def test_a_stream_that_its_reader_leaves_withdraws_its_request_without_the_garbage_collector(forward, pipe, leave):
    forward.let_go(1)
    gc.disable()
    try:
        kept = leave(pipe)
        assert pipe.totals()["cancelled"] == 1
        del kept
    finally:
        gc.enable()
    forward.let_go()


def test_leaving_as_completed_withdraws_the_rest(pipe):
    for _ in pipe.as_completed(sf.PromptRequest("a cat", steps=200, seed=seed) for seed in range(20)):
        break
    counts = pipe.totals()
    assert counts["samples"] + counts["cancelled"] == 20
    assert counts["cancelled"] > 0


def test_a_failure_harms_no_other_request(pipe, monkeypatch):
    original = Vae.decode

    def decode(self, latents, *others):
        if np.array_equal(latents, fails):
            raise sf.DenoiserError("cannot")
        return original(self, latents, *others)

    fails = pipe("a cat", seed=1).latents
    monkeypatch.setattr(Vae, "decode", decode)
    futures = [pipe.submit(sf.PromptRequest("a cat", seed=seed)) for seed in range(3)]
    assert [type(future.exception(TIMEOUT)) for future in futures] == [type(None), sf.DenoiserError, type(None)]
    with pytest.raises(sf.DenoiserError, match="cannot"):
        list(pipe.stream(sf.PromptRequest("a cat", seed=1)))
    assert pipe.totals()["failures"] == 2


def test_what_is_wrong_is_said_where_it_is_submitted(pipe):
    for request, kind, message in [
        (sf.PromptRequest(), ValueError, "give prompt or prompt_embeds"),
        (sf.PromptRequest(["a", "b"]), TypeError, r"prompt must be a text, got \['a', 'b'\]: a request is for one"),
        (sf.PromptRequest("a", steps=0), ValueError, "steps must be between 1 and 1000, got 0"),
        (sf.PromptRequest("a", width=10), ValueError, "width must be a multiple of 4 pixels"),
        (sf.PromptRequest("a", strength=0.5), ValueError, "strength needs an image"),
        (sf.PromptRequest("a", denoising_start=0.5), ValueError, "denoising_start needs latents"),
        (
            sf.PromptRequest("a", image=rng_picture(), strength=0.01),
            ValueError,
            "strength must leave at least one",
        ),
        (sf.PromptRequest("a", image=np.zeros((2, 8, 8, 3))), ValueError, "image must be one, .* got 2"),
        (sf.PromptRequest("a", seed=-1), ValueError, "seed must be between"),
        (sf.PromptRequest("a", timeout=0), ValueError, "timeout must be above 0 seconds, got 0"),
        (sf.PromptRequest("a", priority=1 << 40), ValueError, "priority must fit 32 bits"),
        (sf.PromptRequest("a", options={"karras": True}), TypeError, "got karras"),
        ("a cat", TypeError, r"must be a stepfuse\.PromptRequest, got 'a cat'"),
        (sf.Request(), TypeError, r"must be a stepfuse\.PromptRequest, got a Request, which Engine takes"),
    ]:
        with pytest.raises(kind, match=message):
            pipe.submit(request)
    with pytest.raises(ValueError, match="wait must be at least 0 seconds, got -1"):
        pipe.submit(CAT, wait=-1)
    assert pipe.totals()["submitted"] == 0
    with sf.Engine.load(pipe.bundle, threads=1) as engine:
        with pytest.raises(TypeError, match=r"request must be a stepfuse\.Request, got a PromptRequest, which Text"):
            engine.submit(CAT)
        with pytest.raises(TypeError, match=r"request must be a stepfuse\.Request, got 'a cat'"):
            engine.submit("a cat")


def test_a_prompt_that_is_cut_is_said_where_it_is_submitted(pipe):
    with pytest.warns(PromptCutWarning, match="'IN the rain' is not read") as caught:
        pipe.submit(sf.PromptRequest("a red  cat Dog IN the rain")).result(TIMEOUT)
    assert caught[0].filename == __file__


def test_closing_draws_what_was_submitted(bundle):
    pipe = sf.TextToImage.load(bundle, threads=1)
    want = pipe("a cat", seed=5).pixels
    futures = [pipe.submit(CAT) for _ in range(50)]
    pipe.close()
    for future in futures:
        np.testing.assert_allclose(future.result(0).pixels, want, rtol=0, atol=2e-6)
    for call in (lambda: pipe.submit(CAT), lambda: pipe.stream(CAT), lambda: pipe("a cat")):
        with pytest.raises(sf.EngineClosed, match="the pipeline is closed"):
            call()
    pipe.close(abort=True, timeout=0)
    assert pipe.totals()["samples"] == 51


def test_aborting_gives_up_requests_in_each_stage(bundle, stage):
    pipe = sf.TextToImage.load(bundle, threads=1, serving=sf.Serving(max_rows=2, max_running=2))
    futures = [pipe.submit(sf.PromptRequest("a cat", id=f"picture {i}")) for i in range(5)]
    stream = pipe.stream(CAT)
    stage.wait()
    threading.Timer(0.05, stage.let_go).start()
    pipe.close(abort=True)
    for future in futures:
        with pytest.raises(sf.EngineClosed, match=r"the pipeline was closed before request picture \d was finished"):
            future.result(0)
    with pytest.raises(sf.EngineClosed):
        list(stream)


def test_a_stage_that_hangs_is_abandoned(bundle, stage, caplog):
    pipe = sf.TextToImage.load(bundle, threads=1)
    futures = [pipe.submit(CAT) for _ in range(3)]
    stage.wait()
    began = time.monotonic()
    pipe.close(abort=True, timeout=0.05)
    assert time.monotonic() - began < 5
    assert all(isinstance(future.exception(0), sf.EngineClosed) for future in futures)
    assert "is abandoned" in caplog.text


@pytest.mark.usefixtures("slow")
def test_a_timeout_of_close_gives_up_what_is_not_drawn_by_then(bundle):
    pipe = sf.TextToImage.load(bundle, threads=1, max_rows=2)
    futures = [pipe.submit(CAT) for _ in range(100)]
    pipe.close(timeout=0.2)
    ends = [future.exception(0) for future in futures]
    assert ends[0] is None
    assert isinstance(ends[-1], sf.EngineClosed)
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds, got -1"):
        pipe.close(timeout=-1)


def test_leaving_by_ctrl_c_gives_up_what_was_submitted(bundle, forward):
    pipe = sf.TextToImage.load(bundle, threads=1)
    futures = [pipe.submit(CAT) for _ in range(50)]
    forward.wait()
    threading.Timer(0.05, forward.let_go).start()
    pipe.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert all(isinstance(future.exception(0), sf.EngineClosed) for future in futures)


def test_callbacks_may_submit_but_not_wait_or_close(pipe):
    got = {}

    def callback(future):
        got["submitted"] = pipe.submit(sf.PromptRequest("a dog", seed=1))
        for name, call in (("result", got["submitted"].result), ("close", pipe.close)):
            try:
                call()
            except RuntimeError as error:
                got[name] = str(error)

    future = pipe.submit(CAT)
    future.add_done_callback(callback)
    future.result(TIMEOUT)
    until(lambda: len(got) == 3)
    assert "neither wait for it nor close it" in got["result"]
    assert "neither wait for it nor close it" in got["close"]
    assert len(got["submitted"].result(TIMEOUT)) == 1


def test_a_pipeline_that_is_let_go_draws_what_was_submitted_and_ends(bundle):
    gc.disable()
    try:
        pipe = sf.TextToImage.load(bundle, threads=1)
        future = pipe.submit(CAT)
        service = weakref.ref(pipe._service)
        del pipe
        assert len(future.result(TIMEOUT)) == 1
        del future
        until(lambda: service() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("abort", [False, True])
def test_whatever_comes_together_every_request_ends_once(bundle, abort):
    """Requests, calls, streams, timeouts and cancelling from several threads, and an end in the middle of it."""
    serving = sf.Serving(max_rows=4, max_running=3, max_queue=6, policy="shortest")
    pipe = sf.TextToImage.load(bundle, threads=1, serving=serving)
    futures, unexpected = [], []

    def client(seed):
        rng = np.random.default_rng(seed)
        try:
            for i in range(25):
                request = sf.PromptRequest(
                    ("a cat", "a dog", "red rain")[i % 3],
                    steps=int(rng.integers(1, 8)),
                    width=int(rng.choice([4, 8, 12])),
                    priority=int(rng.integers(3)),
                    timeout=float(rng.choice([0.002, TIMEOUT])),
                )
                kind = rng.integers(4)
                if kind == 0:
                    pipe("a cat", steps=2, width=request.width)
                elif kind == 1:
                    next(iter(pipe.stream(request, wait=TIMEOUT)))
                else:
                    futures.append(pipe.submit(request, wait=TIMEOUT))
                    if kind == 2:
                        time.sleep(rng.uniform(0, 0.005))
                        futures[-1].cancel()
        except (sf.EngineClosed, sf.RequestTimeout):
            pass
        except BaseException as error:
            unexpected.append(error)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for one in clients:
        one.start()
    time.sleep(0.3)
    pipe.close(abort=abort, timeout=TIMEOUT)
    for one in clients:
        one.join(TIMEOUT)
    assert not unexpected
    assert not wait(futures, TIMEOUT).not_done
    counts = pipe.totals()
    assert counts["submitted"] == sum(counts[name] for name in ("samples", "failures", "cancelled", "expired"))
    assert (counts["failures"], counts["waiting"], counts["running"]) == (0, 0, 0)


def test_totals_are_those_of_all_sizes_and_stages_and_are_scraped(pipe):
    from prometheus_client import CollectorRegistry, generate_latest

    from stepfuse.metrics import EngineCollector

    pipe("a cat", num_images=2, steps=3)
    for width in range(4, 32, 4):
        pipe.submit(sf.PromptRequest("a cat", width=width, steps=3)).result(TIMEOUT)
    pipe.submit(sf.PromptRequest("a cat", image=rng_picture(), steps=5, strength=0.4)).result(TIMEOUT)
    counts = pipe.totals()
    assert len(pipe.stats()) == 4  # the others are closed, and counted
    assert (counts["submitted"], counts["samples"], counts["running"]) == (10, 10, 0)
    assert counts["steps"] == 9 * 3 + 2
    assert counts["network_passes"] == 2 * counts["steps"]
    assert sum(counts["latency_seconds"]["counts"]) == sum(counts["wait_seconds"]["counts"]) == 10
    assert min(counts[f"{name}_seconds"] for name in ("text_encoder", "vae_encoder", "vae_decoder")) > 0
    registry = CollectorRegistry()
    collector = EngineCollector(pipe, {"model": "handmade"})
    collector.add(lambda: pipe.totals(), {"model": "again"})
    registry.register(collector)
    text = generate_latest(registry).decode()
    for line in (
        'stepfuse_requests_total{model="handmade",outcome="finished"} 10.0',
        'stepfuse_steps_total{model="handmade"} 29.0',
        f'stepfuse_busy_seconds_total{{model="again",phase="vae_decoder"}} {counts["vae_decoder_seconds"]}',
    ):
        assert line in text
