"""The engine's loop on a GPU, on the recording driver: the samples of the loop in the host's memory, to the bit."""

import contextlib
import threading

import numpy as np
import pytest
import support
from engine_on_fake import BUCKETS, Network, hosts
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse import _core
from stepfuse._core import cuda
from stepfuse.backends.cuda.program import loop_program

MASK = np.linspace(0, 1, support.ELEMENTS).reshape(support.SHAPE).round(1)
GUIDED = {"steps": 6, "guidance_scale": 3.0, "eta": 1.0}


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("buckets", [BUCKETS, ()], ids=["captured", "eager"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"cond": 3, "steps": 4, "guidance_scale": 2.0}, id="guided"),
        pytest.param({"cond": 3, **GUIDED}, id="noise"),
        pytest.param({"cond": "bag", "sampler": "dpmpp_2m", "steps": 5}, id="history"),
        pytest.param({"sampler": "heun", "steps": 3}, id="unconditional"),
        pytest.param({"cond": 1, "negative_cond": 4, "steps": 3, "guidance_scale": 3.0}, id="negative"),
        pytest.param({"cond": 2, "steps": 5, "guidance_scale": 2.0, "guidance_interval": (0.2, 0.6)}, id="interval"),
        pytest.param(
            {"cond": 1, "steps": 5, "image": np.full(support.SHAPE, 0.5), "strength": 0.6, "guidance_scale": 1.0},
            id="image",
        ),
        pytest.param({"cond": 1, **GUIDED, "image": np.full(support.SHAPE, 0.5), "mask": MASK}, id="mask"),
    ],
)
def test_samples_are_the_host_s_to_the_bit(made, late, buckets, arguments):
    engine = made(late=late, buckets=buckets)
    for n in (1, 3, 9):
        np.testing.assert_array_equal(engine.sample(n, seed=5, **arguments), hosts(n, seed=5, **arguments))
    rows = engine.network.forwards
    assert set(rows) <= set(buckets or range(1, 9))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"guidance_rescale": 0.7}, id="rescale"),
        pytest.param({"dynamic_threshold": (0.9, 2.0)}, id="threshold"),
        pytest.param({"guidance_rescale": 0.7, "dynamic_threshold": (0.9, 2.0)}, id="both"),
        pytest.param({"apg": (0.0, 2.0), "guidance_rescale": 0.3}, id="apg"),
        pytest.param({"apg": (0.5, 2.0), "apg_form": "paper"}, id="apg-of-clean"),
        pytest.param({"cfg_zero_star": True, "zero_init": 2}, id="zero-star"),
        pytest.param({"cfg_renorm": 1, "dynamic_threshold": (0.9, 2.0)}, id="renorm"),
    ],
)
def test_what_is_taken_from_a_whole_sample_is_taken_on_the_device(made, options):
    arguments = {"cond": 3, "steps": 5, "guidance_scale": 4.0, "seed": 5, "sampler": "ddim"}

    def louder(x, t, cond):  # conditioning changes the deviation of the prediction
        return support.rowwise(x, t, cond) * (1 + cond["class_labels"].reshape(-1, 1, 1, 1).astype(np.float32) / 8)

    with support.make_engine(louder) as engine:
        plain, want = engine.sample(3, **arguments), engine.sample(3, **arguments, **options)
    bound = ADAPTED_SAMPLES * np.abs(want).max()
    np.testing.assert_allclose(made(fn=louder).sample(3, **arguments, **options), want, rtol=0, atol=bound)
    assert np.abs(want - plain).max() > 100 * bound


def test_samplers_steps_and_scales_mix(made):
    tables = (
        sf.samplers.ddim(support.SCHEDULE, 6, eta=1.0, guidance_scale=3.0),
        sf.samplers.dpmpp_2m(support.SCHEDULE, 5),
        sf.samplers.ddim(support.SCHEDULE, 7, guidance_scale=2.0, guidance_interval=(0.0, 0.5)),
        sf.samplers.ddpm(support.SCHEDULE, 9, guidance_scale=0.0),
    )
    mixed = {"table": tables, "cond": [2, 4, 5, None], "seed": [11, 1 << 63, 13, 14]}
    np.testing.assert_array_equal(made().sample(4, **mixed), hosts(4, **mixed))


def test_requests_join_and_leave_between_steps(made):
    engine = made()
    requests = [sf.Request(cond=i % 7, seed=i, steps=3 + i % 5, guidance_scale=[1.0, 3.0][i % 2]) for i in range(40)]
    futures = [engine.submit(request) for request in requests]
    for i, future in enumerate(futures):
        one = {"cond": i % 7, "seed": i, "steps": 3 + i % 5, "guidance_scale": [1.0, 3.0][i % 2]}
        np.testing.assert_array_equal(future.result(), hosts(1, **one)[0])
    assert engine.stats()["samples"] == 40
    assert max(engine.network.forwards) == 8


def test_more_samples_than_slots_are_held_behind_a_gate(made):
    seen = []
    engine = made(rows=4, buckets=(4, 2), serving=sf.Serving(max_rows=4, max_running=2))
    arguments = {"cond": 3, "steps": 3, "seed": 1, "guidance_scale": 2.0}
    images = engine.sample(11, callback=lambda step, total, x0: seen.append(x0.copy()), **arguments)
    np.testing.assert_array_equal(images, hosts(11, **arguments))
    previews = []
    with support.make_engine(max_rows=4, serving=sf.Serving(max_rows=4, max_running=2)) as engine:
        engine.sample(11, callback=lambda step, total, x0: previews.append(x0.copy()), **arguments)
    np.testing.assert_array_equal(seen, previews)


def test_a_state_that_its_owner_changes_is_the_next_forward_s(made):
    def double(step, total, x):
        if step == 2:
            x *= 2

    arguments = {"cond": 3, "steps": 4, "seed": 1, "on_state": double}
    np.testing.assert_array_equal(made().sample(3, **arguments), hosts(3, **arguments))


def test_previews_stream(made):
    previews = list(made().stream(sf.Request(cond=3, steps=4, seed=2)))
    image = hosts(1, cond=3, steps=4, seed=2)[0]
    assert previews[-1].step == previews[-1].total == 4
    np.testing.assert_array_equal(previews[-1].x0, image)


def test_padded_forwards_have_all_rows(made):
    engine = made(serving=sf.Serving(max_rows=8, deterministic=True))
    np.testing.assert_array_equal(engine.sample(1, cond=3, seed=1, **GUIDED), hosts(1, cond=3, seed=1, **GUIDED))
    assert set(engine.network.forwards) == {8}


def test_padding_up_to_a_captured_forward_is_counted(made):
    engine = made()
    engine.sample(3, cond=3, seed=1, steps=5, guidance_scale=1.0)
    stats = engine.stats()
    assert engine.network.forwards == [4] * stats["forwards"]
    assert (stats["network_passes"], stats["padded_rows"]) == (15, 5)


def test_padding_rows_hold_no_sample(made, monkeypatch):
    bad = 6

    def network(x, t, cond):
        predictions = support.rowwise(x, t, cond)
        predictions[(cond["class_labels"] == bad) & (t < 500)] = np.nan
        return predictions

    def forward(self, rows):  # as a module that reads its inputs on the host
        assert submitted.wait(60)  # alone, the bad one would be in the forward behind the one that fails it
        self.stream.synchronize()
        assert np.isfinite(self.memory["sample"][:rows]).all(), "refused"
        launch(self, rows)

    launch, submitted = Network.forward, threading.Event()
    monkeypatch.setattr(Network, "forward", forward)
    engine = made(buckets=(), fn=network, serving=sf.Serving(max_rows=8, deterministic=True))
    labels = [1, 2, bad]
    futures = [engine.submit(sf.Request(cond=label, seed=label, steps=6)) for label in labels]
    submitted.set()
    with pytest.raises(sf.DenoiserError, match="went non-finite at step 2 of 6"):
        futures.pop().result()
    for label, future in zip(labels, futures, strict=False):
        np.testing.assert_array_equal(future.result(), hosts(1, cond=label, seed=label, steps=6)[0])


@pytest.mark.parametrize("others", [0, 3])
def test_a_state_that_is_not_finite_fails_its_own_request_and_says_where(made, others):
    bad = 6

    def network(x, t, cond):
        predictions = support.rowwise(x, t, cond)
        predictions[(cond["class_labels"] == bad) & (t < 500)] = np.nan
        return predictions

    engine = made(fn=network)
    good = [engine.submit(sf.Request(cond=i, seed=i, steps=6)) for i in range(others)]
    with pytest.raises(sf.DenoiserError, match=r"went non-finite at step 2 of 6 \(ddim\)"):
        engine.submit(sf.Request(cond=bad, seed=1, steps=6)).result()
    for i, future in enumerate(good):
        np.testing.assert_array_equal(future.result(), hosts(1, cond=i, seed=i, steps=6)[0])
    # Its slot is another sample's now, with a flag of its own.
    np.testing.assert_array_equal(engine.sample(2, cond=1, seed=3, steps=5), hosts(2, cond=1, seed=3, steps=5))


def test_the_host_is_an_iteration_ahead_and_waits_for_nothing_else(made, fake):
    engine = made()
    engine.sample(1, cond=3, steps=3, seed=1)
    fake.log()
    engine.sample(1, cond=3, steps=3, seed=1)
    names = fake.names()
    launches = [i for i, name in enumerate(names) if name == "cuGraphLaunch"]
    waits = [i for i, name in enumerate(names) if name == "cuEventSynchronize"]
    assert len(launches) == 3
    assert "cuStreamSynchronize" not in names
    # Each wait is for the iteration before the last; the result waits for the two that are enqueued.
    assert len(waits) <= 3
    between = names[launches[1] : launches[2]]
    frame = ["cuMemcpyHtoDAsync", "cuEventRecord", "cuStreamWaitEvent"]  # copied beside the forward
    step = ["cuLaunchKernel", "cuEventRecord"]  # what is not finite comes back by itself
    assert [name for name in between if name != "cuEventSynchronize"] == ["cuGraphLaunch", *frame, *step]


def test_cancelled_requests_leave_and_their_slots_are_free(made):
    engine = made()
    futures = [engine.submit(sf.Request(cond=3, steps=900, seed=i)) for i in range(6)]
    kept = engine.submit(sf.Request(cond=2, steps=30, seed=7))
    for future in futures:
        future.cancel()
    np.testing.assert_array_equal(kept.result(), hosts(1, cond=2, steps=30, seed=7)[0])
    np.testing.assert_array_equal(engine.sample(8, cond=2, steps=3, seed=7), hosts(8, cond=2, steps=3, seed=7))


def test_calibrating_waits_for_the_forward(made):
    cost = made().calibrate()
    assert cost.row > 0


def test_more_slots_than_memory_has_room_for_are_refused_one_by_one(made, fake):
    begun, submitted = threading.Event(), threading.Event()

    def network(x, t, cond):
        begun.set()
        assert submitted.wait(10)
        return support.rowwise(x, t, cond)

    engine = made(late=False, rows=2, buckets=(), fn=network, serving=sf.Serving(max_rows=2, policy="shortest"))
    # There are two slots to begin with. Each new request has fewer passes left than those before, and steps at once.
    arguments = [{"cond": 1, "steps": 60 - 10 * i, "seed": i} for i in range(6)]
    free, total = engine.network.context.memory
    fake.set(memory=total - free)
    futures = [engine.submit(sf.Request(**arguments[0]))]
    assert begun.wait(10)
    futures += [engine.submit(sf.Request(**one)) for one in arguments[1:]]
    submitted.set()
    outcomes = [future.exception() for future in futures]
    refused = [one for one in outcomes if one is not None]
    assert refused
    assert all(isinstance(one, cuda.CudaError) and one.out_of_memory for one in refused)
    for one, outcome, future in zip(arguments, outcomes, futures, strict=True):
        if outcome is None:
            np.testing.assert_array_equal(future.result(), hosts(1, **one)[0])
    assert outcomes[0] is None
    fake.set(memory=1 << 30)


@pytest.mark.parametrize("calls", range(60))
def test_whatever_call_fails_the_request_fails_or_succeeds_and_the_next_succeeds(made, fake, calls):
    engine = made()
    arguments = {"cond": 3, "steps": 4, "seed": 1}
    expected = hosts(2, **arguments)
    np.testing.assert_array_equal(engine.sample(2, **arguments), expected)
    fake.fail(calls, 999)
    with contextlib.suppress(cuda.CudaError):
        np.testing.assert_array_equal(engine.sample(2, **arguments), expected)
    fake.fail(-1, 0)
    np.testing.assert_array_equal(engine.sample(2, **arguments), expected)


def test_invariants_hold_after_each_iteration(made, monkeypatch):
    monkeypatch.setattr("stepfuse.engine.CHECK_INVARIANTS", True)
    engine = made()
    np.testing.assert_array_equal(engine.sample(5, cond=3, seed=1, **GUIDED), hosts(5, cond=3, seed=1, **GUIDED))


def test_a_stepper_belongs_to_one_server(fake, step_on):
    network = Network(fake, step_on)
    program = loop_program(network.kernels, "float32", support.ELEMENTS, 8)
    rows = {name: network.addresses[name] for name in ("sample", "timestep", "prediction")}
    stepper = cuda.device_stepper(
        network.stream,
        elements=support.ELEMENTS,
        integer_timestep=False,
        max_rows=8,
        sample_bytes=4 * support.ELEMENTS,
        cond=[],
        program=program,
        **rows,
    )
    options = sf.Serving().loop_options()
    _core.Server(stepper, options, 4)
    with pytest.raises(ValueError, match="belongs to one server"):
        _core.Server(stepper, options, 4)
