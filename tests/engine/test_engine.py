"""The engine as its user meets it: every argument of ``sample``, what it counts, and how it ends."""

import threading
import time

import numpy as np
import pytest
import support

import stepfuse as sf

DDIM = sf.samplers.ddim(support.SCHEDULE, 3)


@pytest.fixture
def engine():
    with support.make_engine() as engine:
        yield engine


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("ddim", {}, id="ddim"),
        pytest.param("ddim", {"eta": 0.7, "clip": 1.0, "spacing": "trailing"}, id="ddim-with-options"),
        pytest.param("ddim", {"guidance_interval": (0.2, 0.8)}, id="ddim-guided-in-the-middle"),
        pytest.param("ddpm", {"variance": "posterior"}, id="ddpm"),
        pytest.param("dpmpp_2m", {"karras": True}, id="dpmpp_2m"),
        pytest.param("dpmpp_2m_sde", {"karras": True}, id="dpmpp_2m_sde"),
        pytest.param("dpmpp_3m_sde", {"eta": 0.5}, id="dpmpp_3m_sde"),
        pytest.param("dpmpp_sde", {"clip": 1.5}, id="dpmpp_sde"),
        pytest.param("sa_solver", {"predictor_order": 3, "clip": 1.5}, id="sa_solver"),
        pytest.param("lcm", {"original_steps": 20}, id="lcm"),
        pytest.param("heun", {}, id="heun"),
        pytest.param("deis", {"order": 3, "karras": True}, id="deis"),
        pytest.param("plms", {"steps_offset": 1}, id="plms"),
        pytest.param("lms", {"karras": True}, id="lms"),
        pytest.param("kdpm2", {}, id="kdpm2"),
        pytest.param("dpmpp_2s", {"order": 3, "predict_x0": False}, id="dpmpp_2s"),
        pytest.param("kdpm2_ancestral", {"karras": True}, id="kdpm2_ancestral"),
        pytest.param("unipc", {}, id="unipc"),
        pytest.param("unipc", {"order": 3, "disable_corrector": [0], "clip": 1.5}, id="unipc-with-options"),
    ],
)
def test_a_named_sampler_runs_its_table(engine, name, options):
    images = engine.sample(2, cond="coat", sampler=name, steps=4, guidance_scale=2.0, seed=11, **options)
    assert images.dtype == np.float32
    assert images.shape == (2, *support.SHAPE)
    table = sf.samplers.SAMPLERS[name](support.SCHEDULE, 4, guidance_scale=2.0, **options)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, support.replay(table, cond=2, seed=11 + i)[0])
    assert engine.table(sampler=name, steps=4, guidance_scale=2.0, **options) == table


def test_flow_models_run_euler_by_default():
    schedule = sf.NoiseSchedule.flow(shift=3.0)
    with support.make_engine(schedule=schedule, prediction_type="flow") as engine:
        images = engine.sample(cond=1, steps=5, seed=2)
    np.testing.assert_array_equal(images[0], support.replay(sf.samplers.euler(schedule, 5), cond=1, seed=2)[0])


ONE_EACH = {
    "cond": ["bag", None, 6],
    "seed": [5, 2**64 - 1, 0],
    "steps": [2, 5, 3],
    "guidance_scale": [0.0, 1.0, 3.0],
    "eta": [0.0, 0.5, 1.0],
    "sampler": ["ddim", "lcm", "heun"],
    "table": [DDIM, DDIM[1:], sf.samplers.heun(support.SCHEDULE, 2)],
}


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_sequence_gives_each_sample_its_own_value(engine, name):
    others = {"cond": "coat", "seed": 11}
    if name != "table":
        others |= {"steps": 4, "guidance_scale": 2.0}
    together = engine.sample(3, **{**others, name: ONE_EACH[name]})
    for i, value in enumerate(ONE_EACH[name]):
        alone = engine.sample(1, **{**others, "seed": 11 + i, name: value})
        np.testing.assert_array_equal(together[i], alone[0])


@pytest.mark.parametrize("name", ["seed", "steps", "guidance_scale", "eta"])
def test_a_numpy_array_is_as_good_as_a_list(engine, name):
    values = np.array(ONE_EACH[name], dtype=np.uint64 if name == "seed" else None)
    np.testing.assert_array_equal(
        engine.sample(3, **{"steps": 4, "seed": 1, name: values}),
        engine.sample(3, **{"steps": 4, "seed": 1, name: values.tolist()}),
    )


@pytest.mark.parametrize("eta", [pytest.param(0.0, id="deterministic"), pytest.param(1.0, id="stochastic")])
def test_a_seed_fixes_the_samples_and_counts_up_over_them(engine, eta):
    images = engine.sample(4, steps=3, eta=eta, seed=40)
    np.testing.assert_array_equal(images, engine.sample(4, steps=3, eta=eta, seed=40))
    np.testing.assert_array_equal(images[2:], engine.sample(2, steps=3, eta=eta, seed=42))
    assert not np.array_equal(images, engine.sample(4, steps=3, eta=eta, seed=41))


def test_seeds_start_again_at_0_after_the_last(engine):
    images = engine.sample(2, steps=2, seed=2**64 - 1)
    np.testing.assert_array_equal(images[1:], engine.sample(1, steps=2, seed=0))


def test_without_a_seed_each_call_draws_its_own(engine):
    assert not np.array_equal(engine.sample(steps=2), engine.sample(steps=2))


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda z: z, id="float32"),
        pytest.param(lambda z: z.astype(np.float64), id="float64"),
        pytest.param(lambda z: np.repeat(z, 2, axis=-1)[..., ::2], id="strided"),
        pytest.param(np.asfortranarray, id="fortran"),
        pytest.param(lambda z: z.tolist(), id="nested-list"),
    ],
)
def test_starting_noise_of_ones_own_takes_the_seed_s_place_and_is_left_alone(engine, convert):
    noise = convert(np.stack([sf.normal(seed, support.SHAPE) for seed in (3, 4)]))
    before = np.array(noise)
    table = sf.samplers.heun(support.SCHEDULE, 3)  # its states start out scaled
    np.testing.assert_array_equal(engine.sample(2, table=table, noise=noise), engine.sample(2, table=table, seed=3))
    np.testing.assert_array_equal(np.array(noise), before)


@pytest.mark.parametrize("max_rows", [2, 3, 7])
def test_more_samples_than_fit_a_forward_give_the_same_bits(engine, max_rows):
    widths = []

    def narrow(x, t, cond):
        widths.append(len(x))
        return support.rowwise(x, t, cond)

    arguments = {"cond": "bag", "steps": 3, "guidance_scale": 3.0, "eta": 0.5, "seed": 1}
    with support.make_engine(narrow, max_rows=max_rows) as small:
        np.testing.assert_array_equal(small.sample(23, **arguments), engine.sample(23, **arguments))
    assert max(widths) <= max_rows


@pytest.mark.parametrize(
    ("cond", "guidance_scale", "passes"),
    [
        pytest.param("bag", 3.0, 2, id="guided"),
        pytest.param("bag", 1.0, 1, id="conditional-alone"),
        pytest.param("bag", 0.0, 1, id="unconditional-alone"),
        pytest.param(None, 3.0, 1, id="unconditional"),
        pytest.param(support.NULL, 3.0, 1, id="null-value"),
    ],
)
def test_passes_are_counted(engine, cond, guidance_scale, passes):
    engine.sample(3, cond=cond, steps=5, guidance_scale=guidance_scale)
    stats = engine.stats()
    assert (stats["samples"], stats["failures"], stats["steps"]) == (3, 0, 15)
    assert (stats["forwards"], stats["network_passes"]) == (5, 15 * passes)


def test_the_three_times_share_out_the_run():
    def slow(x, t, cond):
        time.sleep(0.01)
        return x

    with support.make_engine(slow) as engine:
        began = time.perf_counter()
        engine.sample(2, steps=5)
        wall = time.perf_counter() - began
        stats = engine.stats()
    assert stats["network_seconds"] >= 5 * 0.01
    assert min(stats["step_seconds"], stats["loop_seconds"]) > 0
    assert stats["network_seconds"] + stats["step_seconds"] + stats["loop_seconds"] <= wall


def test_warmup_runs_each_width_without_counting():
    widths = []

    def network(x, t, cond):
        widths.append(len(x))
        return x

    with support.make_engine(network, max_rows=8) as engine:
        engine.warmup()
        engine.warmup([8, 3])
        assert widths == [1, 2, 8, 3]
        assert engine.stats()["forwards"] == 0


def test_a_closed_engine_says_so():
    with support.make_engine() as engine:
        assert "up to 64 rows" in repr(engine)
    engine.close()
    assert "closed" in repr(engine)
    for call in (engine.sample, engine.warmup):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            call()


def test_calls_from_several_threads_run_one_after_the_other(engine):
    results = {}

    def draw(seed):
        results[seed] = engine.sample(3, cond="bag", steps=6, guidance_scale=2.0, seed=seed)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, images in results.items():
        np.testing.assert_array_equal(images, engine.sample(3, cond="bag", steps=6, guidance_scale=2.0, seed=seed))
    assert len(results) == 4
