"""Samplers of EDM schedules and of consistency models against diffusers' classes over whole runs."""

import numpy as np
import peers
import pytest
import tolerances

import stepfuse as sf
from stepfuse.analysis import analyze
from stepfuse.requests.partial_run import begin_late
from stepfuse.requests.resolution import compile_table

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

EDM = sf.NoiseSchedule.edm()
STEPS = (1, 2, 3, 5, 7, 10, 25, 50)
V = {"prediction_type": "v_prediction"}
CASES = {
    "edm_euler": {
        "plain": ({}, {}),
        "v": (V, V),
        "guided": ({"guidance_scale": 3.0}, {}),
        "exponential": ({"levels": "exponential"}, {"sigma_schedule": "exponential"}),
        "rho": ({"rho": 3.0, "final_sigma": 0.002}, {"rho": 3.0, "final_sigmas_type": "sigma_min"}),
    },
    "edm_dpmpp_2m": {
        "plain": ({}, {}),
        "v-guided": ({**V, "guidance_scale": 3.0}, V),
        "exponential": ({"levels": "exponential"}, {"sigma_schedule": "exponential"}),
        "order-1": ({"order": 1}, {"solver_order": 1}),
        "heun": ({"solver_type": "heun"}, {"solver_type": "heun"}),
        "order-3": ({"order": 3}, {"solver_order": 3}),
        "third-order-end": ({"order": 3, "lower_order_final": False}, {"solver_order": 3, "lower_order_final": False}),
        "rho": ({"rho": 3.0, "final_sigma": 0.002}, {"rho": 3.0, "final_sigmas_type": "sigma_min"}),
    },
    "cm": {
        "plain": ({}, {"clip_denoised": False}),
        "clip": ({"clip": 1.0}, {}),
        "guided": (
            {"guidance_scale": 3.0, "rho": 5.0, "s_noise": 0.9},
            {"clip_denoised": False, "rho": 5.0, "s_noise": 0.9},
        ),
    },
}
CLASSES = {
    "edm_euler": "EDMEulerScheduler",
    "edm_dpmpp_2m": "EDMDPMSolverMultistepScheduler",
    "cm": "CMStochasticIterativeScheduler",
}
LEVELS = {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.7}


def schedule_of(sampler, **levels):
    more = {"timestep_scale": 250.0, "num_train_timesteps": 40} if sampler == "cm" else {}
    return sf.NoiseSchedule.edm(**levels, **more)


def grid():
    for sampler, cases in CASES.items():
        for case, (options, config) in cases.items():
            for steps in (*STEPS, 999) if case == "plain" and sampler != "cm" else STEPS:
                if case == "exponential" and steps == 1:
                    continue  # diffusers' only level is then the least
                if (sampler, case, steps) == ("edm_euler", "rho", 1):
                    continue  # diffusers' only step leads from the most noise to itself
                if sampler == "cm" and steps == 50:
                    steps = 40
                yield pytest.param(sampler, options, config, steps, id=f"{sampler}-{case}-{steps}")


def ours(schedule, table):
    with peers.engine(schedule, table.options["prediction_type"]) as engine:
        return engine.sample(peers.BATCH, cond=1.0, table=table, noise=peers.NOISE, seed=peers.SEED)


def theirs(sampler, config, monkeypatch, guidance_scale=1.0, **timesteps):
    scheduler = getattr(diffusers, CLASSES[sampler])(**config)
    scheduler.set_timesteps(**timesteps)
    scheduler.sigmas = scheduler.sigmas.double()
    return peers.run(scheduler, monkeypatch, guidance_scale)


def assert_same(sampler, got, want):
    limit = tolerances.MULTISTEP if sampler == "edm_dpmpp_2m" else tolerances.ONE_STEP
    assert np.abs(got - want).max() < limit * np.abs(want).max()


@pytest.mark.parametrize(("sampler", "options", "config", "steps"), list(grid()))
def test_sampler_is_diffusers(sampler, options, config, steps, monkeypatch):
    schedule = schedule_of(sampler)
    want = theirs(sampler, config, monkeypatch, options.get("guidance_scale", 1.0), num_inference_steps=steps)
    table = getattr(sf.samplers, sampler)(schedule, steps, **options)
    assert_same(sampler, ours(schedule, table), want)
    assert table.passes == steps * (2 if "guidance_scale" in options else 1)


@pytest.mark.parametrize("sampler", CLASSES)
def test_other_levels_and_data(sampler, monkeypatch):
    schedule = schedule_of(sampler, **LEVELS)
    want = theirs(sampler, LEVELS, monkeypatch, num_inference_steps=6)
    options = {"clip": 1.0} if sampler == "cm" else {}
    assert_same(sampler, ours(schedule, getattr(sf.samplers, sampler)(schedule, 6, **options)), want)


@pytest.mark.parametrize("sampler", ["edm_euler", "edm_dpmpp_2m"])
def test_levels_of_one_s_own(sampler):
    """Ends within the schedule are those of another schedule, and all levels at once are the same run."""
    make = getattr(sf.samplers, sampler)
    narrow = make(EDM, 6, levels="exponential", sigma_min=0.01, sigma_max=50.0)
    assert narrow == make(sf.NoiseSchedule.edm(0.01, 50.0), 6, levels="exponential")
    sigmas = narrow.levels[:, 1].tolist()
    assert sigmas[-1] == 0.0
    for given in (sigmas, sigmas[:-1]):
        assert make(EDM, sigmas=given) == narrow
    late = begin_late(make(EDM, sigmas=sigmas), 0.5, EDM)
    np.testing.assert_array_equal(late["t"], narrow["t"][3:])


def test_a_consistency_model_takes_places_among_its_levels(monkeypatch):
    schedule = schedule_of("cm")
    want = theirs("cm", {}, monkeypatch, timesteps=[22, 0])
    assert_same("cm", ours(schedule, sf.samplers.cm(schedule, timesteps=[22, 0], clip=1.0)), want)


@pytest.mark.parametrize(("sampler", "options"), [("edm_euler", {}), ("edm_dpmpp_2m", {"order": 3})])
def test_image_to_image_is_diffusers(sampler, options, monkeypatch):
    import torch

    images = np.random.default_rng(3).uniform(-1, 1, (peers.BATCH, peers.SIZE)).astype(np.float32)
    scheduler = getattr(diffusers, CLASSES[sampler])(**{f"solver_{name}": value for name, value in options.items()})
    scheduler.set_timesteps(10)
    scheduler.sigmas = scheduler.sigmas.double()
    x = torch.from_numpy(images + scheduler.sigmas[5].item() * peers.NOISE.astype(np.float64))
    want = peers.run(scheduler, monkeypatch, x=x, begin=5)
    arguments = {"sampler": sampler, "steps": 10, "cond": 1.0, "seed": peers.SEED, "noise": peers.NOISE, **options}
    with peers.engine(EDM) as engine:
        got = engine.sample(peers.BATCH, image=images, strength=0.5, **arguments)
    assert_same(sampler, got, want)


def test_a_table_is_saved_with_its_negative_timesteps(tmp_path):
    table = sf.samplers.edm_euler(EDM, 5)
    assert table["t"].min() < 0
    table.save(tmp_path / "table.npz")
    assert sf.StepTable.load(tmp_path / "table.npz") == table
    assert sf.StepTable.load(tmp_path / "table.npz").min_timestep == table.min_timestep == EDM.min_timestep


def test_levels_are_those_of_the_timesteps():
    for sampler in CLASSES:
        schedule = schedule_of(sampler)
        table = getattr(sf.samplers, sampler)(schedule, 7)
        signal, noise = schedule.levels(table["t"])
        np.testing.assert_allclose(table.levels[:-1], np.stack([signal, noise], axis=1), rtol=1e-5)


def test_a_run_begins_in_the_middle_with_a_step_of_first_order():
    table, late = (sf.samplers.edm_dpmpp_2m(EDM, 10, order=3, begin=begin) for begin in (0, 4))
    np.testing.assert_array_equal(late["t"], table["t"][4:])
    np.testing.assert_array_equal(late.rows[2:], table.rows[6:])
    assert not late["q_h"][0]


def test_guidance_is_on_between_logarithms_of_noise():
    table = sf.samplers.edm_euler(EDM, 20, guidance_scale=3.0, guidance_interval=(0.3, 0.8))
    share = (table["t"] - EDM.min_timestep) / (EDM.max_timestep - EDM.min_timestep)
    np.testing.assert_array_equal(table["g"] == 3, (share >= 0.3) & (share <= 0.8))


def test_models_have_edm_euler_by_default():
    info = sf.ModelInfo((4,), EDM)
    assert compile_table(info, None, 5, None, None, {}) == sf.samplers.edm_euler(EDM, 5)
    assert sf.NoiseSchedule.from_config(EDM.config).config == EDM.config
    with pytest.raises(ValueError, match=r"an EDM schedule has no alphas_cumprod: use .* such as 'edm_euler'"):
        compile_table(info, "ddim", 5, None, None, {})


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("edm_euler", {"final_sigma": 0.1}, "final_sigma must be between 0 and 0.002, got 0.1"),
        ("edm_euler", {"rho": 0.0}, "rho must be between 0.1 and 1000, got 0.0"),
        ("edm_euler", {"rho": 5.0, "levels": "beta"}, "rho must be left out with levels 'beta', got 5.0"),
        (
            "edm_euler",
            {"sigma_max": 81.0},
            "sigma_max must lie within .*, 0.002 to 80, got 81",
        ),
        ("edm_euler", {"sigmas": [5.0, 1.0], "levels": "karras"}, r"sigmas must be left out with levels 'karras', .*"),
        ("edm_euler", {"sigmas": [5.0, 0.001]}, r"sigmas\[1\] must lie within .*, 0.002 to 80, got 0.001"),
        ("edm_dpmpp_2m", {"sigmas": [5.0, 0.0], "final_sigma": 0.001}, "final_sigma must be 0 with sigmas that end .*"),
        ("edm_euler", {"prediction_type": "sample"}, "prediction_type must be 'epsilon' or .*, got 'sample'"),
        ("edm_dpmpp_2m", {"order": 4}, "order must be between 1 and 3, got 4"),
        ("edm_dpmpp_2m", {"solver_type": "bh1"}, "solver_type must be 'midpoint' or 'heun', got 'bh1'"),
        ("edm_dpmpp_2m", {"begin": 5}, "begin must be between 0 and 4, got 5"),
        ("cm", {"s_noise": -1.0}, "s_noise must be between 0 and inf, got -1.0"),
        ("cm", {"clip": 0.0}, "clip must be above 0, or None, got 0.0"),
        ("cm", {"timesteps": [0, 22]}, r"timesteps\[1\] must be below the one before it, got 22.0"),
    ],
)
def test_refuses_options(sampler, options, message):
    steps = None if options.keys() & {"timesteps", "sigmas"} else 5
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(sf.samplers, sampler)(schedule_of(sampler), steps, **options)


@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("steps", [0, 1001, None])
def test_refuses_other_counts_and_schedules(sampler, steps):
    with pytest.raises(ValueError, match=r"steps must be (between 1 and \d+, got|given)"):
        getattr(sf.samplers, sampler)(schedule_of(sampler), steps)
    for schedule in (sf.NoiseSchedule.linear(), sf.NoiseSchedule.flow()):
        with pytest.raises(ValueError, match=r"schedule must be of EDM's kind, NoiseSchedule.edm\(...\), got <Noise"):
            getattr(sf.samplers, sampler)(schedule, 5)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"sigma_min": 0.0}, "sigma_min must be positive and finite, got 0.0"),
        ({"sigma_max": float("inf")}, "sigma_max must be positive and finite, got inf"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min must be below sigma_max, 1.0, got 2.0"),
        ({"timestep_scale": -1}, "timestep_scale must be positive and finite, got -1"),
    ],
)
def test_refuses_levels(levels, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        sf.NoiseSchedule.edm(**levels)


def test_what_needs_training_timesteps_is_refused(tmp_path):
    rule = "model must have training timesteps, which .*, got one with <NoiseSchedule edm, T = 1000>"
    with peers.engine(EDM) as engine:
        with pytest.raises(ValueError, match=rule):
            sf.fit(engine, 5)
        with pytest.raises(ValueError, match=rule):
            analyze(engine, tmp_path, quick=True)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type must be 'epsilon' or 'v_prediction' with an EDM schedule"),
        ({"timestep_dtype": "int64"}, "timestep_dtype must be 'float32' with an EDM schedule, got 'int64'"),
    ],
)
def test_a_model_s_facts_go_with_its_schedule(facts, message):
    with pytest.raises(ValueError, match=message):
        sf.ModelInfo((4,), EDM, **facts)
