"""Several steps of the loop as one launch, while no request joins or leaves: launches counted, bits and waits kept."""

import contextlib
import threading

import numpy as np
import pytest
import support
from engine_on_fake import hosts
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse._core import cuda

STEPS = 4  # of a piece
AHEAD = 8  # forwards that may be enqueued when a request comes
ALONE = 17  # steps that are launched one by one until a piece is built
MASK = np.linspace(0, 1, support.ELEMENTS).reshape(support.SHAPE).round(1)
IMAGE = np.full(support.SHAPE, 0.5)


def warm(engine, n=1, *, steps=40, **arguments):
    """Draws until the pieces of such samples are built."""
    return engine.sample(n, steps=steps, **arguments)


def counts(fake):
    """Of the calls since the last time: how often each."""
    names = fake.names()
    return {name: names.count(name) for name in set(names)}


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
def test_four_steps_of_a_request_alone_are_one_launch(made, fake, late):
    engine = made(late=late)
    fake.log()
    one = {"cond": 3, "steps": 32, "seed": 1}
    image = engine.sample(1, **one)
    before = counts(fake)
    np.testing.assert_array_equal(engine.sample(1, **one), image)
    after = counts(fake)
    assert before["cuGraphLaunch"] == ALONE + 15 // STEPS + 15 % STEPS
    assert after["cuGraphLaunch"] == 32 // STEPS
    assert after["cuLaunchKernel"] == 1  # which fills the first rows
    assert after["cuMemcpyHtoDAsync"] == 32 // STEPS + 4  # beside frames the state, its seed, its history and the label
    assert after["cuMemcpyDtoHAsync"] == 32 // STEPS + 1  # beside flags the sample
    assert after["cuEventSynchronize"] <= 32 // STEPS
    assert "cuGraphInstantiateWithFlags" not in after
    np.testing.assert_array_equal(image, hosts(1, **one))
    assert engine.stats()["forwards"] == engine.stats()["steps"] == 64
    assert engine.network.forwards == [2] * 64


@pytest.mark.parametrize(
    ("arguments", "launches"),
    [
        pytest.param({"steps": 16}, 4, id="whole"),
        pytest.param({"steps": 18}, 4 + 2, id="rest"),
        pytest.param({"steps": 16, "callback": lambda step, total, x0: None}, 16, id="callback"),
        pytest.param({"steps": 16, "on_state": lambda step, total, x: None}, 16, id="state"),
        pytest.param(
            {"steps": 16, "guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)},
            (1 + 3) + (2 + 1),  # 7 steps and 9
            id="interval",
        ),
    ],
)
def test_what_needs_the_host_between_two_steps_is_stepped_one_by_one(made, fake, arguments, launches):
    engine = made()
    one = {"cond": 3, "seed": 1, "sampler": "ddim", **arguments}
    for _ in range(5):
        engine.sample(1, **one)
    fake.log()
    image = engine.sample(1, **one)
    assert counts(fake)["cuGraphLaunch"] == launches
    np.testing.assert_array_equal(image, hosts(1, **one))


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"cond": 3, "guidance_scale": 2.0}, id="guided"),
        pytest.param({"cond": 3, "guidance_scale": 3.0, "eta": 1.0}, id="noise"),
        pytest.param({"cond": "bag", "sampler": "dpmpp_2m"}, id="history"),
        pytest.param({"cond": "bag", "sampler": "unipc", "guidance_scale": 2.0}, id="second-line"),
        pytest.param({"sampler": "heun"}, id="unconditional"),
        pytest.param({"cond": 1, "negative_cond": 4, "guidance_scale": 3.0}, id="negative"),
        pytest.param({"cond": 1, "image": IMAGE, "strength": 0.6, "guidance_scale": 1.0}, id="image"),
        pytest.param({"cond": 1, "guidance_scale": 3.0, "eta": 1.0, "image": IMAGE, "mask": MASK}, id="mask"),
    ],
)
def test_samples_are_the_host_s_to_the_bit(made, fake, late, arguments):
    engine = made(late=late)
    for n in (1, 3):
        warm(engine, n, seed=5, **arguments)
        fake.log()
        images = engine.sample(n, seed=7, steps=11, **arguments)
        launched, forwards = counts(fake)["cuGraphLaunch"], len(engine.network.forwards)
        np.testing.assert_array_equal(images, hosts(n, seed=7, steps=11, **arguments))
        assert launched < forwards


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"guidance_rescale": 0.7, "dynamic_threshold": (0.9, 2.0)}, id="rescale-and-threshold"),
        pytest.param({"apg": (0.5, 2.0), "apg_form": "paper"}, id="apg-of-clean"),
    ],
)
def test_what_is_taken_from_a_whole_sample_is_taken_in_each_step(made, fake, options):
    arguments = {"cond": 3, "guidance_scale": 4.0, "sampler": "ddim", **options}

    def louder(x, t, cond):
        return support.rowwise(x, t, cond) * (1 + cond["class_labels"].reshape(-1, 1, 1, 1).astype(np.float32) / 8)

    engine = made(fn=louder)
    warm(engine, 3, seed=5, **arguments)
    fake.log()
    images = engine.sample(3, seed=5, steps=8, **arguments)
    assert counts(fake)["cuGraphLaunch"] == 2
    with support.make_engine(louder) as host:
        want = host.sample(3, seed=5, steps=8, **arguments)
    np.testing.assert_allclose(images, want, rtol=0, atol=ADAPTED_SAMPLES * np.abs(want).max())


def test_samplers_steps_and_scales_mix(made, fake):
    engine = made()
    tables = (
        sf.samplers.ddim(support.SCHEDULE, 20, eta=1.0, guidance_scale=3.0),
        sf.samplers.dpmpp_2m(support.SCHEDULE, 23),
        sf.samplers.unipc(support.SCHEDULE, 21, guidance_scale=2.0),
        sf.samplers.ddpm(support.SCHEDULE, 34, guidance_scale=0.0),
    )
    mixed = {"table": tables, "cond": [2, 4, 5, None], "seed": [11, 1 << 63, 13, 14]}
    want = hosts(4, **mixed)
    for _ in range(3):
        fake.log()
        np.testing.assert_array_equal(engine.sample(4, **mixed), want)
    assert counts(fake)["cuGraphLaunch"] < 34 - 4 * (STEPS - 1)


@pytest.mark.parametrize("at", range(60, 68))
def test_a_request_waits_for_eight_forwards_at_most(made, at):
    submit, forwards, joined = [], [], []  # lists, since the fake keeps the network, and must not keep the engine

    def network(x, t, cond):
        forwards.append(len(x))
        if len(forwards) == at:
            joined.append(submit.pop()(sf.Request(cond=5, steps=6, seed=2, guidance_scale=3.0)))
        return support.rowwise(x, t, cond)

    engine = made(fn=network)
    submit.append(engine.submit)
    one = {"cond": 3, "seed": 1, "guidance_scale": 3.0}
    warm(engine, **one)  # 40 forwards
    np.testing.assert_array_equal(engine.sample(1, steps=60, **one), hosts(1, steps=60, **one))
    np.testing.assert_array_equal(joined.pop().result(), hosts(1, cond=5, steps=6, seed=2, guidance_scale=3.0)[0])
    assert 0 < forwards.index(2 * forwards[0]) - at <= AHEAD


@pytest.mark.parametrize("bad_step", range(24, 32))
def test_a_state_that_is_not_finite_fails_with_its_own_step(made, bad_step):
    bad, steps = 6, 40
    at = sf.samplers.ddim(support.SCHEDULE, steps)["t"][bad_step]

    def network(x, t, cond):
        predictions = support.rowwise(x, t, cond)
        predictions[(cond["class_labels"] == bad) & (t <= at)] = np.nan
        return predictions

    engine = made(fn=network)
    one = {"steps": steps, "sampler": "ddim", "guidance_scale": 1.0}
    for _ in range(2):
        futures = [engine.submit(sf.Request(cond=label, seed=label, **one)) for label in (1, bad, 2)]
        with pytest.raises(sf.DenoiserError, match=f"went non-finite at step {bad_step} of {steps}"):
            futures.pop(1).result()
        for label, future in zip((1, 2), futures, strict=True):
            np.testing.assert_array_equal(future.result(), hosts(1, cond=label, seed=label, **one)[0])
    np.testing.assert_array_equal(engine.sample(2, cond=1, seed=3, **one), hosts(2, cond=1, seed=3, **one))


def test_padded_forwards_have_all_rows(made, fake):
    engine = made(serving=sf.Serving(max_rows=8, deterministic=True))
    one = {"cond": 3, "seed": 1, "guidance_scale": 1.0}
    warm(engine, **one)
    fake.log()
    np.testing.assert_array_equal(engine.sample(1, steps=8, **one), hosts(1, steps=8, **one))
    assert counts(fake)["cuGraphLaunch"] == 2
    assert set(engine.network.forwards) == {8}
    stats = engine.stats()
    assert (stats["network_passes"], stats["padded_rows"]) == (48, 7 * 48)


def test_padding_up_to_a_captured_forward_is_counted(made):
    engine = made()
    warm(engine, 3, cond=3, seed=1, guidance_scale=1.0)
    stats = engine.stats()
    assert engine.network.forwards == [4] * 40
    assert (stats["forwards"], stats["network_passes"], stats["padded_rows"]) == (40, 120, 40)


def test_cancelled_requests_leave(made):
    engine = made()
    warm(engine, cond=3, seed=1)
    futures = [engine.submit(sf.Request(cond=3, steps=900, seed=i)) for i in range(3)]
    kept = engine.submit(sf.Request(cond=2, steps=60, seed=7))
    for future in futures:
        future.cancel()
    np.testing.assert_array_equal(kept.result(), hosts(1, cond=2, steps=60, seed=7)[0])


@pytest.mark.parametrize("calls", range(40))
def test_whatever_call_fails_the_request_fails_or_succeeds_and_the_next_succeeds(made, fake, calls):
    engine = made()
    arguments = {"cond": 3, "steps": 9, "seed": 1}
    expected = hosts(2, **arguments)
    warm(engine, 2, cond=3, seed=1)
    fake.fail(calls, 999)
    with contextlib.suppress(cuda.CudaError):
        np.testing.assert_array_equal(engine.sample(2, **arguments), expected)
    fake.fail(-1, 0)
    np.testing.assert_array_equal(engine.sample(2, **arguments), expected)


def test_without_memory_for_a_piece_steps_go_on_one_by_one(made, fake):
    engine = made()
    engine.sample(1, cond=3, seed=1, steps=10)
    free, total = engine.network.context.memory
    fake.set(memory=total - free)
    for _ in range(2):
        fake.log()
        one = {"cond": 3, "seed": 1, "steps": 30}
        np.testing.assert_array_equal(engine.sample(1, **one), hosts(1, **one))
        assert counts(fake)["cuGraphLaunch"] == 30
    fake.set(memory=1 << 30)


def test_pieces_follow_memory_that_has_moved(made, fake):
    begun, submitted = threading.Event(), threading.Event()
    waits = []

    def network(x, t, cond):
        if waits:
            begun.set()
            assert submitted.wait(10)
        return support.rowwise(x, t, cond)

    engine = made(rows=2, buckets=(2, 1), fn=network, serving=sf.Serving(max_rows=2, policy="shortest"))
    one = {"cond": 1, "steps": 40, "guidance_scale": 1.0}
    warm(engine, seed=1, cond=1, guidance_scale=1.0)
    # There are two slots to begin with. Each new request has fewer passes left than those before, and steps at once.
    waits.append(True)
    futures = [engine.submit(sf.Request(seed=0, **one))]
    assert begun.wait(10)
    later = [{**one, "steps": 30 - 5 * i, "seed": i + 1} for i in range(5)]
    futures += [engine.submit(sf.Request(**request)) for request in later]
    submitted.set()
    for request, future in zip([{**one, "seed": 0}, *later], futures, strict=True):
        np.testing.assert_array_equal(future.result(), hosts(1, **request)[0])
    warm(engine, seed=1, cond=1, guidance_scale=1.0)
    fake.log()
    np.testing.assert_array_equal(engine.sample(1, seed=2, **one), hosts(1, seed=2, **one))
    assert counts(fake)["cuGraphLaunch"] == 40 // STEPS


def test_eight_pieces_are_kept(made, fake):
    engine = made(rows=8, buckets=(8, 4, 2))
    graphs = fake.live.count("executable graph")
    for eta in (0.0, 1.0):
        for n in (1, 2, 3, 5):
            for sampler in ("ddim", "unipc") if eta == 0 else ("ddim",):
                extra = {"eta": eta} if sampler == "ddim" else {}
                one = {"cond": 3, "sampler": sampler, "guidance_scale": 1.0, **extra}
                np.testing.assert_array_equal(warm(engine, n, seed=n, **one), hosts(n, seed=n, steps=40, **one))
    assert fake.live.count("executable graph") == graphs + 8
